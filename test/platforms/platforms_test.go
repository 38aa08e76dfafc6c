// Package platforms checks that the service, its command and its unit tests compile on
// every system for which they are meant, without compiling them: the types of all
// packages are checked, as a compiler does first. make cross compiles them.
package platforms

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "switchyard/"

// A listed is a package as go list describes it.
type listed struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	ImportMap  map[string]string
	Error      *struct{ Err string }
}

// list returns packages with their tests and all that they import, each behind its
// imports.
func list(t *testing.T, goos, goarch string, packages ...string) (all []listed) {
	t.Helper()
	args := append([]string{"list", "-e", "-deps", "-test", "-json=ImportPath,Dir,GoFiles,ImportMap,Error"}, packages...)
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "GOOS="+goos, "GOARCH="+goarch, "CGO_ENABLED=0", "GOFLAGS=-mod=readonly")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// sqlitePrefix begins the packages of SQLite: megabytes of C that was translated for
// each system. They are not checked. The type checker does not complain about what it
// can't find in a package that can't be imported.
const sqlitePrefix = "modernc.org/"

// ourPackages returns the packages of this module that a command consists of.
func ourPackages(t *testing.T, command string) (ours []string) {
	t.Helper()
	for _, p := range list(t, "linux", "amd64", command) {
		if rest, ok := strings.CutPrefix(p.ImportPath, module); ok && !strings.Contains(rest, " ") && !strings.HasSuffix(rest, ".test") {
			ours = append(ours, "./"+rest)
		}
	}
	if len(ours) < 20 {
		t.Fatalf("%s has %d packages only: %v", command, len(ours), ours)
	}
	return ours
}

// A checker checks packages, and keeps what several systems share.
type checker struct {
	fset  *token.FileSet
	files map[string]*ast.File
}

// check returns the mistakes in the packages of this module on one system.
func (c *checker) check(goarch string, packages []listed) (mistakes []string) {
	checked := map[string]*types.Package{"unsafe": types.Unsafe}
	for _, p := range packages {
		ours := strings.HasPrefix(p.ImportPath, module)
		report := func(err error) {
			if ours && len(mistakes) < 20 && !strings.Contains(err.Error(), "could not import "+sqlitePrefix) {
				mistakes = append(mistakes, strings.TrimPrefix(err.Error(), "../../"))
			}
		}
		if p.Error != nil {
			report(errors.New(p.Error.Err))
		}
		if strings.HasSuffix(p.ImportPath, ".test") || p.ImportPath == "unsafe" {
			continue // a generated main
		}
		path, _, _ := strings.Cut(p.ImportPath, " ")
		if strings.HasPrefix(path, sqlitePrefix) {
			continue
		}
		config := types.Config{
			Sizes: types.SizesFor("gc", goarch), IgnoreFuncBodies: !ours, FakeImportC: true, Error: report,
			Importer: importer(func(path string) (*types.Package, error) {
				if mapped, ok := p.ImportMap[path]; ok {
					path = mapped
				}
				if found := checked[path]; found != nil {
					return found, nil
				}
				return nil, fmt.Errorf("%s is not listed", path)
			}),
		}
		var files []*ast.File
		for _, name := range p.GoFiles {
			file, err := c.parse(filepath.Join(p.Dir, name), ours)
			if err != nil {
				report(err)
				continue
			}
			files = append(files, file)
		}
		checked[p.ImportPath], _ = config.Check(path, c.fset, files, nil) // the errors were reported
	}
	return mistakes
}

// parse parses a file once. It keeps the bodies of functions of this module only.
func (c *checker) parse(path string, bodies bool) (*ast.File, error) {
	if file := c.files[path]; file != nil {
		return file, nil
	}
	file, err := parser.ParseFile(c.fset, path, nil, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	for _, d := range file.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && !bodies {
			f.Body = nil
		}
	}
	c.files[path] = file
	return file, nil
}

type importer func(path string) (*types.Package, error)

func (i importer) Import(path string) (*types.Package, error) { return i(path) }

// The service compiles with its unit tests on systems that differ in what these three
// differ: 32 bits, a Unix other than Linux, and Windows. The operator's tool manages the
// containers of the host that it is on, which is Linux.
func TestTheServiceCompilesOnEverySystem(t *testing.T) {
	t.Parallel()
	c := &checker{token.NewFileSet(), map[string]*ast.File{}}
	for system, command := range map[string]string{"linux/386": "./cmd/...", "darwin/arm64": "./cmd/server", "windows/amd64": "./cmd/server"} {
		goos, goarch, _ := strings.Cut(system, "/")
		packages := list(t, goos, goarch, ourPackages(t, command)...)
		if len(packages) < 300 {
			t.Fatalf("%s: %d packages are listed", system, len(packages))
		}
		for _, mistake := range c.check(goarch, packages) {
			t.Errorf("%s: %s", system, mistake)
		}
	}
}
