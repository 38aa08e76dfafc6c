package stack

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// badVersionOverlay returns the files that a build with a defect replaces, for go build
// -overlay: testdata/bad/bad.go is added to internal/store, and copies of the store's
// files call it. The service's own build has none of it.
func badVersionOverlay(t *testing.T) map[string]string {
	t.Helper()
	store := mustAbs(t, filepath.Join(root, "internal/store"))
	overlay := map[string]string{filepath.Join(store, "bad.go"): mustAbs(t, "testdata/bad/bad.go")}
	dir := t.TempDir()
	for file, edits := range map[string][][2]string{
		"committer.go": {
			{"\tc.workerFor(p.Room).append(p)\n", "\tif !failed(c, p) {\n\t\tc.workerFor(p.Room).append(p)\n\t}\n"},
			{"Check() error {\n", "Check() error {\n\tif err := notReady(); err != nil {\n\t\treturn err\n\t}\n"},
		},
		"append_worker_batch.go": {{"w.writer.commit(ctx, queued)", "commitSlowly(ctx, w, queued)"}},
	} {
		text := read(t, filepath.Join(store, file))
		for _, edit := range edits {
			if n := strings.Count(text, edit[0]); n != 1 {
				t.Fatalf("%s has the text of an edit %d times, want once: %q", file, n, edit[0])
			}
			text = strings.Replace(text, edit[0], edit[1], 1)
		}
		edited := filepath.Join(dir, file)
		if err := os.WriteFile(edited, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		overlay[filepath.Join(store, file)] = edited
	}
	return overlay
}

// TestDeployRollsBackBadVersions needs Docker: here the bad versions are only built, so
// that a change of internal/store which they do not fit is noticed at once.
func TestBadVersionsStillBuild(t *testing.T) {
	text, err := json.Marshal(map[string]any{"Replace": badVersionOverlay(t)})
	if err != nil {
		t.Fatal(err)
	}
	overlay := filepath.Join(t.TempDir(), "overlay.json")
	if err := os.WriteFile(overlay, text, 0o644); err != nil {
		t.Fatal(err)
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-overlay", overlay, "switchyard/internal/store")
	if out, err := build.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func mustAbs(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}
