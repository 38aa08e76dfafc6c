package testkit

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// A Mount is a folder of files that are replaced together, as Kubernetes mounts a
// secret: each name is a link to ..data/name, and ..data a link that is exchanged.
type Mount struct {
	tb       testing.TB
	dir      string
	versions int
}

// NewMount returns a folder with these files, by name and content.
func NewMount(tb testing.TB, files map[string][]byte) *Mount {
	tb.Helper()
	m := &Mount{tb: tb, dir: tb.TempDir()}
	m.Replace(files)
	for name := range files {
		if err := os.Symlink(filepath.Join("..data", name), m.Path(name)); err != nil {
			tb.Fatal(err)
		}
	}
	return m
}

// Path returns the path of a file.
func (m *Mount) Path(name string) string { return filepath.Join(m.dir, name) }

// Replace replaces all files at once.
func (m *Mount) Replace(files map[string][]byte) {
	m.tb.Helper()
	m.versions++
	version := fmt.Sprintf("..%d", m.versions)
	err := os.Mkdir(filepath.Join(m.dir, version), 0o755)
	for name, content := range files {
		if err == nil {
			err = os.WriteFile(filepath.Join(m.dir, version, name), content, 0o600)
		}
	}
	if err == nil {
		err = os.Symlink(version, m.Path("..next"))
	}
	if err == nil {
		err = os.Rename(m.Path("..next"), m.Path("..data"))
	}
	if err != nil {
		m.tb.Fatalf("testkit: replace the files of a mount: %v", err)
	}
}

// ReadFiles returns the content of files, by the last part of their paths.
func ReadFiles(tb testing.TB, paths ...string) map[string][]byte {
	tb.Helper()
	files := map[string][]byte{}
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			tb.Fatalf("testkit: %v", err)
		}
		files[filepath.Base(path)] = content
	}
	return files
}
