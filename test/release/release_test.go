// Package release runs earlier releases beside this one, as a deploy and a
// rollback do: servers on one database and one Redis, clients of either on
// servers of either. docs/releases.md says what is promised.
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

func TestMain(m *testing.M) { testkit.Main(m) }

// testTimeout bounds every wait of a test; nothing should need it.
const testTimeout = time.Minute

// A release is an earlier version, built from its archive in testdata.
type release struct {
	name string // such as v0.1.0
	dir  string // its source
	err  error
}

// server and visitor are its programs.
func (r *release) server() string  { return filepath.Join(r.dir, "bin", "server") }
func (r *release) visitor() string { return filepath.Join(r.dir, "bin", "visitor") }

// builds has each release that a test has asked for, once a test binary.
var builds sync.Map // of func() *release, by archive

// eachRelease tells a story with every release there is.
func eachRelease(t *testing.T, test func(t *testing.T, r *release)) {
	t.Helper()
	archives, err := filepath.Glob("testdata/v*.tar.gz")
	if err != nil || len(archives) == 0 {
		t.Fatalf("no release in testdata (%v): scripts/release-archive makes one", err)
	}
	for _, archive := range archives {
		name := strings.TrimSuffix(filepath.Base(archive), ".tar.gz")
		t.Run(name, func(t *testing.T) {
			build, _ := builds.LoadOrStore(archive, sync.OnceValue(func() *release {
				r := &release{name: name}
				r.err = r.build(archive)
				return r
			}))
			r := build.(func() *release)()
			if r.err != nil {
				t.Fatal(r.err)
			}
			test(t, r)
		})
	}
}

// build unpacks the source in a private directory and builds its programs. The
// race detector is left out: a release's code is what it is.
func (r *release) build(archive string) (err error) {
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
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	build := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-ldflags", "-X main.version="+r.name,
		"-o", filepath.Join(r.dir, "bin")+"/", "./cmd/server", "./cmd/visitor")
	build.Dir = r.dir
	build.Env = append(os.Environ(), "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", r.name, err, out)
	}
	return nil
}

// unpack writes the regular files of a .tar.gz below dir, and nothing outside.
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

// run starts a program to its end and returns its exit code and what it printed.
func run(t *testing.T, program string, env []string, args ...string) (int, string) {
	t.Helper()
	p, err := testkit.Start(testkit.Program{Path: program, Args: args, Env: env})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	err = p.Wait(ctx)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, p.Output()
	case errors.As(err, &exit):
		return exit.ExitCode(), p.Output()
	}
	t.Fatalf("%s %v: %v\n%s", program, args, err, p.Output())
	return 0, ""
}

// What the script keeps must be enough, and no more than it says.
func TestArchivesAreSmallAndHoldNoTests(t *testing.T) {
	eachRelease(t, func(t *testing.T, r *release) {
		info, err := os.Stat("testdata/" + r.name + ".tar.gz")
		if err != nil || info.Size() > 400_000 {
			t.Errorf("%d bytes (%v), want under 400 kB", info.Size(), err)
		}
		err = filepath.WalkDir(r.dir, func(path string, _ os.DirEntry, err error) error {
			if strings.HasSuffix(path, "_test.go") {
				t.Errorf("%s is in it", path)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		if code, out := run(t, r.server(), nil, "version"); code != 0 || !strings.Contains(out, r.name) {
			t.Errorf("version: exit %d, %q", code, out)
		}
	})
}
