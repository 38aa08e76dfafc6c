//go:build stack

package stack

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// buildVersion makes an image of the service that calls itself so, on top of the one
// that the stack began with: another binary and another label.
func buildVersion(t *testing.T, name string) string {
	t.Helper()
	return buildDerivedImage(t, name, nil, "")
}

// buildBadVersion makes an image with a bug: testdata/bad is laid over the sources of the
// store, which call it. Nothing of it is in the service's own build.
func buildBadVersion(t *testing.T, badness, after string) string {
	t.Helper()
	store, err := filepath.Abs(filepath.Join(root, "internal/store"))
	if err != nil {
		t.Fatal(err)
	}
	overlay := map[string]string{filepath.Join(store, "bad.go"): abs(t, "testdata/bad/bad.go")}
	for file, change := range map[string][][2]string{
		"committer.go": {
			{"\tk.workerFor(p.Room).append(p)\n", "\tif !spoiled(k, p) {\n\t\tk.workerFor(p.Room).append(p)\n\t}\n"},
			{"Check() error {\n", "Check() error {\n\tif err := unwell(); err != nil {\n\t\treturn err\n\t}\n"},
		},
		"batch.go": {{"w.writer.commit(ctx, queued)", "dawdled(ctx, w, queued)"}},
	} {
		text := read(t, filepath.Join(store, file))
		for _, c := range change {
			if strings.Count(text, c[0]) != 1 {
				t.Fatalf("%s does not have %q once", file, c[0])
			}
			text = strings.ReplaceAll(text, c[0], c[1])
		}
		spoiled := filepath.Join(t.TempDir(), file)
		if err := os.WriteFile(spoiled, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		overlay[filepath.Join(store, file)] = spoiled
	}
	return buildDerivedImage(t, "bad-"+badness, overlay, " -X switchyard/internal/store.badness="+badness+" -X switchyard/internal/store.badAfter="+after)
}

func abs(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// buildDerivedImage builds the service and puts it into an image.
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
