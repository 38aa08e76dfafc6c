// Command platforms checks that the service, its command and its unit tests compile on
// other systems, without compiling them: the types of all packages are checked, as a
// compiler does first. It prints the mistakes and exits with 1 if there are any. make
// cross compiles the service instead.
//
//	go run ./scripts/platforms GOOS/GOARCH=PACKAGES...
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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
func list(goos, goarch string, packages ...string) (all []listed, err error) {
	args := append([]string{"list", "-e", "-deps", "-test", "-json=ImportPath,Dir,GoFiles,ImportMap,Error"}, packages...)
	cmd := exec.CommandContext(context.Background(), "go", args...)
	cmd.Env = append(cmd.Environ(), "GOOS="+goos, "GOARCH="+goarch, "CGO_ENABLED=0", "GOFLAGS=-mod=readonly")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w\n%s", err, stderr.String())
	}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		all = append(all, p)
	}
}

// sqlitePrefix begins the packages of SQLite: megabytes of C that was translated for
// each system. They are not checked. The type checker does not complain about what it
// can't find in a package that can't be imported.
const sqlitePrefix = "modernc.org/"

// ourPackages returns the packages of this module that a command consists of.
func ourPackages(command string) (ours []string, err error) {
	all, err := list("linux", "amd64", command)
	if err != nil {
		return nil, err
	}
	for _, p := range all {
		if rest, ok := strings.CutPrefix(p.ImportPath, module); ok && !strings.Contains(rest, " ") && !strings.HasSuffix(rest, ".test") {
			ours = append(ours, "./"+rest)
		}
	}
	if len(ours) < 20 {
		return nil, fmt.Errorf("%s has %d packages only: %v", command, len(ours), ours)
	}
	return ours, nil
}

// A checker checks packages, and keeps what several systems share.
type checker struct {
	root  string // is left out of the names of files
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
				mistakes = append(mistakes, strings.TrimPrefix(err.Error(), c.root))
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

// checkSystem returns the mistakes in a command's packages on one system.
func (c *checker) checkSystem(system, command string) (mistakes []string, err error) {
	goos, goarch, _ := strings.Cut(system, "/")
	ours, err := ourPackages(command)
	if err != nil {
		return nil, err
	}
	packages, err := list(goos, goarch, ours...)
	if err != nil {
		return nil, err
	}
	if len(packages) < 300 {
		return nil, fmt.Errorf("%d packages are listed", len(packages))
	}
	return c.check(goarch, packages), nil
}

func main() {
	root, err := os.Getwd()
	if err != nil {
		log.Fatal(err)
	}
	log.SetFlags(0)
	c := &checker{root: root + string(filepath.Separator), fset: token.NewFileSet(), files: map[string]*ast.File{}}
	failed := len(os.Args) == 1
	for _, arg := range os.Args[1:] {
		system, command, _ := strings.Cut(arg, "=")
		mistakes, err := c.checkSystem(system, command)
		if err != nil {
			mistakes = append(mistakes, err.Error())
		}
		for _, mistake := range mistakes {
			log.Printf("%s: %s", system, mistake)
			failed = true
		}
	}
	if failed {
		os.Exit(1)
	}
}
