package app

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// prom is the metrics library's root.
const prom = "github.com/prometheus/client_golang"

// doors are what the non-test files of each package may import beside the
// standard library; docs/architecture.md gives the reasons. A package that is
// not listed may not exist. Names without a dot in their first element are
// packages of this module.
var doors = map[string][]string{
	"internal/message":  {},
	"internal/protocol": {"internal/message"},
	"internal/auth":     {"internal/message", "github.com/golang-jwt/jwt/v5", "github.com/MicahParks/keyfunc/v3"},
	"internal/hub":      {"internal/message", "internal/protocol", prom},
	"internal/store":    {"internal/message", "migrations", "github.com/jackc/pgx/v5", "modernc.org/sqlite", "github.com/pressly/goose/v3", prom},
	"internal/broker":   {"internal/message", "github.com/redis/go-redis/v9", prom},
	"internal/session":  {"internal/message", "github.com/redis/go-redis/v9", prom},
	"internal/http": {
		"internal/hub", "internal/auth", "internal/protocol", "internal/message", "web",
		"github.com/go-chi/chi/v5", "nhooyr.io/websocket", "golang.org/x/time/rate", prom,
	},
	"internal/config": {"github.com/kelseyhightower/envconfig"},
	"internal/app": {
		"internal/auth", "internal/broker", "internal/config", "internal/http", "internal/hub", "internal/message",
		"internal/protocol", "internal/session", "internal/store", prom,
	},
	"internal/client":  {"internal/protocol", "internal/message", "nhooyr.io/websocket"},
	"internal/deploy":  {"internal/client", "internal/message", "gopkg.in/yaml.v3", prom + "/api", "github.com/prometheus/common/model"},
	"internal/backup":  {"internal/client", "internal/message", "gopkg.in/yaml.v3", prom + "/api", "github.com/prometheus/common/model"},
	"internal/load":    {"internal/client", "internal/message", "gopkg.in/yaml.v3", prom + "/api", "github.com/prometheus/common/model"},
	"internal/testkit": {"github.com/chromedp/chromedp", "github.com/chromedp/cdproto", "go.uber.org/goleak"},
	"cmd/server":       {"internal/app", "internal/config"},
	"cmd/switchyard":   {"internal/deploy", "internal/backup", "internal/load", "internal/client", "github.com/spf13/cobra"},
	"web":              {},
	"migrations":       {},
}

// calls that belong to one place each.
var onlyIn = map[string][]string{
	"os.Getenv":    {"internal/config"},
	"os.LookupEnv": {"internal/config"},
	"os.Environ":   {"internal/testkit"},
	"os.Exit":      {"cmd/server", "cmd/switchyard", "internal/testkit"},
	"log.Fatal":    {},
	"log.Fatalf":   {},
}

// violations reads the non-test files of dir, the module's package pkg.
func violations(pkg, dir string) (found []string, err error) {
	allowed, known := doors[pkg]
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		if !known {
			return []string{pkg + " has no row in the table of doors"}, nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			return nil, err
		}
		for _, i := range f.Imports {
			path, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return nil, err
			}
			if !open(allowed, path) {
				found = append(found, fmt.Sprintf("%s: %s may not import %s", filepath.Base(file), pkg, path))
			}
		}
		found = append(found, misplaced(pkg, file, f)...)
	}
	return found, nil
}

// open says whether a door leads from a list of allowed imports to path.
func open(allowed []string, path string) bool {
	path, ours := strings.CutPrefix(path, "switchyard/")
	if first, _, _ := strings.Cut(path, "/"); !ours && !strings.Contains(first, ".") {
		return true // the standard library
	}
	return slices.ContainsFunc(allowed, func(a string) bool {
		return path == a || !ours && strings.HasPrefix(path, a+"/")
	})
}

// misplaced finds calls that belong to another package.
func misplaced(pkg, file string, f *ast.File) (found []string) {
	ast.Inspect(f, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		x, ok := sel.X.(*ast.Ident)
		if !ok {
			return true
		}
		call := x.Name + "." + sel.Sel.Name
		if places, guarded := onlyIn[call]; guarded && !slices.Contains(places, pkg) {
			found = append(found, fmt.Sprintf("%s: %s may not call %s", filepath.Base(file), pkg, call))
		}
		return true
	})
	return found
}

func TestEveryPackageKeepsToItsDoors(t *testing.T) {
	root := "../.."
	packages := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		pkg, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		pkg = filepath.ToSlash(pkg)
		if strings.HasPrefix(d.Name(), ".") && pkg != "." || d.Name() == "testdata" || d.Name() == "node_modules" || pkg == "bench" {
			return fs.SkipDir // bench is a module of its own
		}
		found, err := violations(pkg, path)
		for _, v := range found {
			t.Error(v)
		}
		packages++
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if packages < 10 {
		t.Errorf("looked at %d folders only", packages)
	}
}

// The check itself must be able to fail.
func TestPlantedViolationsAreFound(t *testing.T) {
	tests := []struct{ pkg, code, want string }{
		{"internal/hub", `import _ "switchyard/internal/store"`, "may not import switchyard/internal/store"},
		{"internal/hub", `import _ "github.com/jackc/pgx/v5/pgxpool"`, "may not import github.com/jackc/pgx"},
		{"internal/protocol", `import _ "nhooyr.io/websocket"`, "may not import nhooyr.io/websocket"},
		{"internal/store", `import "os"` + "\n" + `var x = os.Getenv("X")`, "may not call os.Getenv"},
		{"internal/app", `import "os"` + "\n" + `func f() { os.Exit(1) }`, "may not call os.Exit"},
		{"internal/nobody", ``, "no row in the table"},
		{"internal/store", `import _ "github.com/jackc/pgx/v5/pgxpool"`, ""},
		{"internal/hub", `import _ "net/http"`, ""},
	}
	for _, tt := range tests {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "x.go"), []byte("package x\n\n"+tt.code+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		found, err := violations(tt.pkg, dir)
		if err != nil {
			t.Fatal(err)
		}
		got := strings.Join(found, "; ")
		if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
			t.Errorf("%s with %q: got %q, want %q", tt.pkg, tt.code, got, tt.want)
		}
	}
}
