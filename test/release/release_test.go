// Package release runs earlier releases beside this one, as a deploy and a rollback
// do: servers of both on one database and one Redis, and clients of either on servers
// of either. docs/releases.md has the promises.
package release

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"switchyard/internal/testkit"
)

// TestMain runs more parallel tests at once than there are cores, unless -parallel
// says otherwise: they mostly wait.
func TestMain(m *testing.M) { testkit.MainParallel(m, 5) }

// A release is an earlier version, unpacked from its archive in testdata. Its source
// is shared by the tests of this binary, which only read it.
type release struct {
	name  string // such as v0.1.0
	dir   string // its source
	err   error
	build func() error // once
}

// server and visitor return the paths of its programs, built at the first call.
func (r *release) server(t *testing.T) string  { return r.program(t, "server") }
func (r *release) visitor(t *testing.T) string { return r.program(t, "visitor") }

func (r *release) program(t *testing.T, name string) string {
	t.Helper()
	if err := r.build(); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(r.dir, "bin", name)
}

// releases has a once-function for each archive, which returns its *release.
var releases sync.Map

// eachRelease runs a test with each of the releases, in parallel.
func eachRelease(t *testing.T, test func(t *testing.T, r *release)) {
	t.Helper()
	t.Parallel()
	archives, err := filepath.Glob("testdata/v*.tar.gz")
	if err != nil || len(archives) == 0 {
		t.Fatalf("no release in testdata (%v): scripts/release-archive makes one", err)
	}
	for _, archive := range archives {
		name := strings.TrimSuffix(filepath.Base(archive), ".tar.gz")
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			once, _ := releases.LoadOrStore(archive, sync.OnceValue(func() *release {
				r := &release{name: name}
				r.err = r.unpack(archive)
				r.build = sync.OnceValue(r.buildPrograms)
				return r
			}))
			r := once.(func() *release)()
			if r.err != nil {
				t.Fatal(r.err)
			}
			test(t, r)
		})
	}
}

// unpack writes the source and the visitor into a private directory.
func (r *release) unpack(archive string) (err error) {
	if r.dir, err = testkit.TempDir(r.name, nil); err != nil {
		return err
	}
	if err := unpack(archive, r.dir); err != nil {
		return fmt.Errorf("unpack %s: %w", archive, err)
	}
	// A browser loads client.js as a module because the page says so; Node needs
	// a package.json that does, and only releases from v0.2 on have one.
	if err := os.WriteFile(filepath.Join(r.dir, "web", "package.json"), []byte(`{"type":"module"}`), 0o644); err != nil {
		return fmt.Errorf("mark the web files of %s as modules: %w", r.name, err)
	}
	if err := os.CopyFS(filepath.Join(r.dir, "cmd", "visitor"), os.DirFS("testdata/visitor")); err != nil {
		return fmt.Errorf("add the visitor: %w", err)
	}
	return nil
}

// buildPrograms builds without the race detector: the code of a release does not
// change any more.
func (r *release) buildPrograms() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	// By -trimpath, Go's build cache has the packages of an earlier run, whose directory had
	// another name.
	build := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-trimpath", "-ldflags", "-s -w -X main.version="+r.name,
		"-o", filepath.Join(r.dir, "bin")+"/", "./cmd/server", "./cmd/visitor")
	build.Dir = r.dir
	build.Env = append(os.Environ(), "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", r.name, err, out)
	}
	return nil
}

// unpack writes the regular files of a .tar.gz below dir, and none outside.
func unpack(archive, dir string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	unzipped, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for files := tar.NewReader(unzipped); ; {
		head, err := files.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch head.Typeflag {
		case tar.TypeDir:
			err = root.MkdirAll(head.Name, 0o755)
		case tar.TypeReg:
			err = writeFile(root, head.Name, files)
		}
		if err != nil {
			return err
		}
	}
}

func writeFile(root *os.Root, name string, from io.Reader) error {
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := root.Create(name)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	return errors.Join(err, f.Close())
}

// run runs a program to its end, and returns its exit code and what it printed.
func run(t *testing.T, program string, env []string, args ...string) (int, string) {
	t.Helper()
	p, err := testkit.Start(testkit.Program{Path: program, Args: args, Env: env})
	if err != nil {
		t.Fatal(err)
	}
	code := p.ExitCode(t, testkit.Timeout)
	return code, p.Output()
}

// An archive has enough to build the release, and no tests.
func TestArchivesAreSmallAndHoldNoTests(t *testing.T) {
	eachRelease(t, func(t *testing.T, r *release) {
		info, err := os.Stat("testdata/" + r.name + ".tar.gz")
		if err != nil || info.Size() > 400_000 {
			t.Errorf("%d bytes (%v), want under 400 kB", info.Size(), err)
		}
		err = filepath.WalkDir(r.dir, func(path string, _ os.DirEntry, err error) error {
			if strings.HasSuffix(path, "_test.go") {
				t.Errorf("the archive has %s", path)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		if code, out := run(t, r.server(t), nil, "version"); code != 0 || !strings.Contains(out, r.name) {
			t.Errorf("version: exit %d, %q", code, out)
		}
	})
}
