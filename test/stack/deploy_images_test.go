//go:build stack

package stack

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// buildVersion makes an image of the service with this version's name, on top of the
// one that the stack began with: another binary and another label.
func buildVersion(t *testing.T, name string) string {
	t.Helper()
	return buildDerivedImage(t, name, nil, "")
}

// buildBadVersion makes an image with a defect, which shows after the given time.
func buildBadVersion(t *testing.T, defect, after string) string {
	t.Helper()
	return buildDerivedImage(t, "bad-"+defect, badVersionOverlay(t), " -X switchyard/internal/store.defect="+defect+" -X switchyard/internal/store.defectAfter="+after)
}

// buildDerivedImage builds the service, with files replaced as in overlay, and puts it
// into an image.
func buildDerivedImage(t *testing.T, name string, overlay map[string]string, flags string) string {
	t.Helper()
	dir := t.TempDir()
	text, err := json.Marshal(map[string]any{"Replace": overlay})
	if err != nil {
		t.Fatal(err)
	}
	dockerfile := fmt.Sprintf("FROM %s\nLABEL org.opencontainers.image.version=%s\nCOPY server /server\n", sharedStack.image, name)
	for file, text := range map[string][]byte{"overlay.json": text, "Dockerfile": []byte(dockerfile), ".dockerignore": []byte("overlay.json\n")} {
		if err := os.WriteFile(filepath.Join(dir, file), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-overlay", filepath.Join(dir, "overlay.json"),
		"-ldflags", "-s -w -X main.version="+name+flags, "-o", filepath.Join(dir, "server"), "./cmd/server")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the version %s: %v\n%s", name, err, out)
	}
	tag := "switchyard:e2e-" + name
	if out, err := exec.Command("docker", "build", "--quiet", "--tag", tag, dir).CombinedOutput(); err != nil {
		t.Fatalf("docker build: %v\n%s", err, out)
	}
	return tag
}
