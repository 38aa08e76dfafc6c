package app_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
)

const (
	modulePrefix = "switchyard/"
	prometheus   = "github.com/prometheus/client_golang/prometheus"
)

// importRules is the table of docs/architecture.md: which packages the non-test files
// of a package may import, beside the standard library. A path of ours means
// exactly that package; another one also means what lies below it. Packages of
// later releases stand here already: a door is decided before it is used.
var importRules = map[string][]string{
	"internal/message":  {},
	"internal/protocol": {modulePrefix + "internal/message"},
	"internal/auth": {
		modulePrefix + "internal/message", "github.com/golang-jwt/jwt/v5", "github.com/MicahParks/keyfunc/v3",
		"github.com/MicahParks/jwkset", prometheus,
	},
	"internal/hub": {modulePrefix + "internal/message", modulePrefix + "internal/protocol", prometheus},
	"internal/store": {
		modulePrefix + "internal/message", modulePrefix + "migrations", prometheus,
		"github.com/jackc/pgx/v5", "modernc.org/sqlite", "github.com/pressly/goose/v3",
	},
	"internal/broker":      {modulePrefix + "internal/message", "github.com/redis/go-redis/v9", prometheus},
	"internal/sharedstate": {modulePrefix + "internal/message", "github.com/redis/go-redis/v9", prometheus},
	"internal/http": {
		modulePrefix + "internal/hub", modulePrefix + "internal/auth", modulePrefix + "internal/protocol", modulePrefix + "internal/message",
		modulePrefix + "web", "github.com/go-chi/chi/v5", "nhooyr.io/websocket", "golang.org/x/time/rate", prometheus,
	},
	"internal/config": {"github.com/kelseyhightower/envconfig"},
	"internal/app": {
		modulePrefix + "internal/auth", modulePrefix + "internal/broker", modulePrefix + "internal/config", modulePrefix + "internal/http",
		modulePrefix + "internal/hub", modulePrefix + "internal/message", modulePrefix + "internal/protocol", modulePrefix + "internal/sharedstate",
		modulePrefix + "internal/store", prometheus,
	},
	"internal/client":           {modulePrefix + "internal/protocol", modulePrefix + "internal/message", "nhooyr.io/websocket"},
	"internal/deploy":           operatorImports,
	"internal/backup":           operatorImports,
	"internal/inspect":          append([]string{modulePrefix + "internal/backup"}, operatorImports...),
	"internal/load":             operatorImports,
	"internal/testkit":          {"go.uber.org/goleak"},
	"internal/testkit/chromium": {modulePrefix + "internal/testkit", "github.com/chromedp/chromedp", "github.com/chromedp/cdproto"},
	"cmd/server":                {modulePrefix + "internal/app", modulePrefix + "internal/config"},
	"cmd/switchyard": {
		modulePrefix + "internal/deploy", modulePrefix + "internal/backup", modulePrefix + "internal/inspect", modulePrefix + "internal/load",
		modulePrefix + "internal/client", "github.com/spf13/cobra",
	},
	"web":            {},
	"migrations":     {},
	"test/behaviors": {},
}

// operatorImports is the door of what stands outside the server.
var operatorImports = []string{
	modulePrefix + "internal/client", modulePrefix + "internal/message", "gopkg.in/yaml.v3",
	"github.com/prometheus/client_golang/api", "github.com/prometheus/common/model",
}

// restrictedCalls are calls that one kind of package may make. The test kit, which
// starts processes and ends test binaries, may make all of them.
var restrictedCalls = map[string]func(pkg string) bool{
	"os.Getenv":       isConfig,
	"os.LookupEnv":    isConfig,
	"os.Environ":      isConfig,
	"os.ExpandEnv":    isConfig,
	"os.Setenv":       isConfig,
	"os.Unsetenv":     isConfig,
	"syscall.Getenv":  isConfig,
	"syscall.Environ": isConfig,
	"os.Exit":         isMain,
	"syscall.Exit":    isMain,
	"log.Fatal":       isMain,
	"log.Fatalf":      isMain,
	"log.Fatalln":     isMain,
}

func isConfig(pkg string) bool { return pkg == "internal/config" }
func isMain(pkg string) bool   { return strings.HasPrefix(pkg, "cmd/") }

func TestEveryPackageFollowsTheImportRules(t *testing.T) {
	found, files, err := findViolations(os.DirFS("../.."))
	if err != nil {
		t.Fatal(err)
	}
	if files < 20 {
		t.Fatalf("read %d files only: this is not the module", files)
	}
	for _, b := range found {
		t.Error(b)
	}
}

func TestAForbiddenImportIsFound(t *testing.T) {
	tests := []struct{ name, file, source, want string }{
		{
			"the hub knows the store", "internal/hub/a.go",
			`package hub; import _ "switchyard/internal/store"`, "internal/hub may not import switchyard/internal/store",
		},
		{
			"a package below an allowed one of ours", "internal/protocol/a.go",
			`package protocol; import _ "switchyard/internal/message/extra"`, "may not import switchyard/internal/message/extra",
		},
		{
			"a driver outside the store", "internal/http/a.go",
			`package http; import _ "github.com/jackc/pgx/v5"`, "internal/http may not import github.com/jackc/pgx/v5",
		},
		{
			"a module whose name only begins like an allowed one", "internal/broker/a.go",
			`package broker; import _ "github.com/redis/go-redis/v9000"`, "may not import github.com/redis/go-redis/v9000",
		},
		{
			"the vocabulary imports a library", "internal/message/a.go",
			`package message; import _ "golang.org/x/text/cases"`, "internal/message may not import golang.org/x/text/cases",
		},
		{"a package without a row", "internal/helper/a.go", `package helper`, "internal/helper has no row"},
		{
			"the environment, under another name", "internal/store/a.go",
			"package store\nimport sys \"os\"\nvar home = sys.Getenv(\"HOME\")", "internal/store may not use os.Getenv",
		},
		{
			"an exit that no deferred call survives", "internal/app/a.go",
			"package app\nimport \"log\"\nfunc f() { log.Fatalf(\"no\") }", "internal/app may not use log.Fatalf",
		},
		{
			"a dot import, which hides what is used", "internal/app/a.go",
			"package app\nimport . \"os\"\nvar _ = Args", "internal/app may not dot-import os",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			found, _, err := findViolations(fstest.MapFS{tt.file: {Data: []byte(tt.source)}})
			if err != nil {
				t.Fatal(err)
			}
			if len(found) != 1 || !strings.Contains(found[0], tt.want) {
				t.Errorf("found %q, want one that says %q", found, tt.want)
			}
		})
	}
}

func TestAllowedImportsAreNoViolation(t *testing.T) {
	found, files, err := findViolations(fstest.MapFS{
		"internal/store/a.go":        {Data: []byte(`package store; import _ "github.com/jackc/pgx/v5/pgxpool"`)},
		"internal/store/a_test.go":   {Data: []byte(`package store; import _ "switchyard/internal/hub"`)},
		"bench/go.mod":               {Data: []byte("module switchyard/bench")},
		"bench/peer/a.go":            {Data: []byte(`package main; import _ "github.com/centrifugal/centrifuge"`)},
		"internal/config/a.go":       {Data: []byte("package config\nimport \"os\"\nvar _ = os.Getenv(\"X\")")},
		"cmd/server/main.go":         {Data: []byte("package main\nimport \"os\"\nfunc main() { os.Exit(1) }")},
		"node_modules/x/a.go":        {Data: []byte(`package broken import`)},
		"internal/hub/testdata/a.go": {Data: []byte(`package broken import`)},
		// A variable that is named as a package is no package.
		"internal/hub/b.go": {Data: []byte("package hub\ntype exiter struct{ Exit func(int) }\nfunc f(os exiter) { os.Exit(1) }")},
	})
	if err != nil {
		t.Fatal(err)
	}
	if files != 4 || len(found) != 0 {
		t.Errorf("%d files, breaches %q", files, found)
	}
}

// findViolations holds every non-test Go file below root against the doors, and
// tells how many there were.
func findViolations(root fs.FS) (found []string, files int, err error) {
	err = fs.WalkDir(root, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := entry.Name()
		if entry.IsDir() {
			if name != "." && (base[0] == '.' || base == "testdata" || base == "node_modules") {
				return fs.SkipDir
			}
			if _, err := fs.Stat(root, path.Join(name, "go.mod")); name != "." && err == nil {
				return fs.SkipDir // a module of its own: nothing here can import it
			}
			return nil
		}
		if path.Ext(base) != ".go" || strings.HasSuffix(base, "_test.go") {
			return nil
		}
		files++
		source, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, source, 0)
		if err != nil {
			return err
		}
		found = append(found, violationsIn(name, file)...)
		return nil
	})
	return found, files, err
}

func violationsIn(name string, file *ast.File) (found []string) {
	pkg := path.Dir(name)
	rules, known := importRules[pkg]
	if !known {
		return []string{fmt.Sprintf("%s: %s has no row in the table of doors", name, pkg)}
	}
	// local is what each import is called in this file.
	imports := map[string]string{}
	for _, spec := range file.Imports {
		target, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return []string{fmt.Sprintf("%s: %v", name, err)}
		}
		localName := path.Base(target)
		if spec.Name != nil {
			localName = spec.Name.Name
		}
		imports[localName] = target
		switch {
		case localName == ".":
			found = append(found, fmt.Sprintf("%s: %s may not dot-import %s", name, pkg, target))
		case !allowed(rules, target):
			found = append(found, fmt.Sprintf("%s: %s may not import %s", name, pkg, target))
		}
	}
	if pkg == "internal/testkit" {
		return found
	}
	ast.Inspect(file, func(n ast.Node) bool {
		selector, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if x, ok := selector.X.(*ast.Ident); ok && imports[x.Name] != "" {
			call := imports[x.Name] + "." + selector.Sel.Name
			if permitted := restrictedCalls[call]; permitted != nil && !permitted(pkg) {
				found = append(found, fmt.Sprintf("%s: %s may not use %s", name, pkg, call))
			}
		}
		return true
	})
	return found
}

func allowed(rules []string, target string) bool {
	first, _, _ := strings.Cut(target, "/")
	if !strings.Contains(first, ".") && first+"/" != modulePrefix {
		return true // the standard library: its paths begin without a domain
	}
	return slices.ContainsFunc(rules, func(rule string) bool {
		return target == rule || !strings.HasPrefix(rule, modulePrefix) && strings.HasPrefix(target, rule+"/")
	})
}
