//go:build mutants

package mutants

import (
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var whole = flag.Bool("mutants.whole", false, "run the whole suite of the package, not only the tests that a mutant names")

// Each mutant is compiled in by an overlay, so that the tree stays as it is and
// several can be tried at once. A test of its must fail; a mutant that does not
// compile proves nothing.
func TestMutants(t *testing.T) {
	top, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mutants(t) {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			changed := filepath.Join(dir, "changed"+filepath.Ext(m.File))
			overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(top, m.File): changed}})
			if err != nil {
				t.Fatal(err)
			}
			write(t, changed, m.mutated(t))
			write(t, filepath.Join(dir, "overlay.json"), string(overlay))
			pkg := m.Package
			if pkg == "" {
				pkg = filepath.Dir(m.File)
			}
			args := []string{"test", "-overlay", filepath.Join(dir, "overlay.json"), "-count=1", "-failfast", "-timeout=5m", "./" + pkg}
			if !*whole {
				args = append(args, "-run", m.Test)
			}
			cmd := exec.CommandContext(t.Context(), "go", args...)
			cmd.Dir = top
			out, err := cmd.CombinedOutput()
			text := string(out)
			switch {
			case err == nil && strings.Contains(text, "no tests to run"):
				t.Errorf("no test is named %s", m.Test)
			case err == nil:
				t.Errorf("survived: %s in %s passes although %s", m.Test, pkg, m.Name)
			case strings.Contains(text, "[build failed]") || strings.Contains(text, "[setup failed]"):
				t.Errorf("does not compile:\n%s", text)
			default:
				t.Logf("noticed by %s", strings.Join(failed.FindAllString(text, 3), ", "))
			}
		})
	}
}

var failed = regexp.MustCompile(`(?m)^--- FAIL: \S+|^panic: .*`)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
