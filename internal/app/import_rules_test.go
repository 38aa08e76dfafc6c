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
)

const (
	modulePrefix  = "switchyard/"
	prometheus    = "github.com/prometheus/client_golang/prometheus"
	prometheusAPI = "github.com/prometheus/client_golang/api"
	prometheusLib = "github.com/prometheus/common/model"
	expfmt        = "github.com/prometheus/common/expfmt"
	redis         = "github.com/redis/go-redis/v9"
	websocket     = "nhooyr.io/websocket"
	yamlLib       = "gopkg.in/yaml.v3"
	windows       = "golang.org/x/sys/windows"
	unix          = "golang.org/x/sys/unix"
)

// An importRule lists what the non-test files of a package may import beside the
// standard library. A path without a domain is a package of this module, and means
// exactly that package. Other paths include the packages below them.
type importRule struct {
	pkg     string
	imports []string
}

// importRules has one rule for each package. It is the only source: the linter's
// rules in .golangci.yml and the table of docs/architecture.md are generated from
// it (TestTheImportRulesAreInTheLinterAndInTheDocuments).
var importRules = []importRule{
	{"internal/message", nil},
	{"internal/protocol", []string{"internal/message"}},
	{"internal/auth", []string{
		"internal/message", "github.com/golang-jwt/jwt/v5", "github.com/MicahParks/jwkset", prometheus,
	}},
	{"internal/hub", []string{"internal/message", "internal/protocol", "internal/fairqueue", prometheus}},
	{"internal/store", []string{
		"internal/message", "migrations", "github.com/jackc/pgx/v5", "modernc.org/sqlite", "github.com/pressly/goose/v3", windows, prometheus,
	}},
	{"internal/broker", []string{"internal/message", redis, prometheus}},
	{"internal/sharedstate", []string{"internal/message", redis, prometheus}},
	{"internal/ratelimit", nil},
	{"internal/fairqueue", nil},
	{"internal/audit", []string{prometheus}},
	{"internal/ingress", nil},
	{"internal/admission", []string{"internal/protocol"}},
	{"internal/wheel", nil},
	{"internal/pages", []string{"web"}},
	{"internal/conn", []string{"internal/protocol", "internal/ratelimit", "internal/fairqueue", unix}},
	{"internal/drain", []string{"internal/protocol", prometheus}},
	{"internal/session", []string{"internal/message", "internal/protocol"}},
	{"internal/http", []string{
		"internal/conn", "internal/ingress", "internal/audit", "internal/ratelimit", "internal/admission", "internal/wheel", "internal/pages",
		"internal/drain", "internal/session", "internal/hub", "internal/auth", "internal/protocol", "internal/message",
		"github.com/go-chi/chi/v5", websocket, "golang.org/x/time/rate", prometheus,
	}},
	{"internal/config", []string{"github.com/kelseyhightower/envconfig"}},
	{"internal/app", []string{
		"internal/auth", "internal/broker", "internal/config", "internal/drain", "internal/http", "internal/hub", "internal/message",
		"internal/session", "internal/sharedstate", "internal/store", prometheus,
	}},
	{"internal/client", []string{"internal/message", websocket}},
	{"internal/load", []string{"internal/client", "internal/message", "github.com/HdrHistogram/hdrhistogram-go"}},
	{"internal/stack", []string{yamlLib, prometheusAPI, prometheusLib, expfmt, "github.com/google/renameio/v2", "github.com/golang-jwt/jwt/v5"}},
	{"internal/backup", []string{"internal/stack"}},
	{"internal/checks", []string{"internal/backup", "internal/client", "internal/load", "internal/message", "internal/stack"}},
	{"internal/deploy", []string{"internal/checks", "internal/stack", yamlLib}},
	{"internal/inspect", []string{"internal/backup", "internal/checks", "internal/stack", "github.com/google/pprof/profile"}},
	{"internal/testkit", []string{"go.uber.org/goleak", windows}},
	{"internal/testkit/chromium", []string{"internal/testkit", "github.com/chromedp/chromedp", "github.com/chromedp/cdproto"}},
	{"internal/testkit/fakeservice", []string{"internal/testkit", "internal/message", websocket}},
	{"internal/testkit/webdriver", []string{"internal/testkit"}},
	{"internal/testkit/metrictest", []string{prometheus, prometheusLib, expfmt}},
	{"cmd/server", []string{"internal/app", "internal/config"}},
	{"cmd/switchyard", []string{"internal/checks", "internal/deploy", "internal/backup", "internal/inspect", "internal/load", "internal/stack", "github.com/spf13/cobra"}},
	{"scripts/advisories", []string{yamlLib, "golang.org/x/mod/modfile", "golang.org/x/mod/semver"}},
	{"scripts/figures", nil},
	{"scripts/platforms", nil},
	{"test/behaviors", nil},
	{"web", nil},
	{"migrations", nil},
}

// restrictedCalls are the calls that only some packages may make. testkit may make
// all of them, since it starts processes and ends test binaries.
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
func isMain(pkg string) bool {
	return strings.HasPrefix(pkg, "cmd/") || strings.HasPrefix(pkg, "scripts/")
}

// Every import is allowed by a rule, and every rule is used: a rule for an import
// that no file has would allow it unseen later.
func TestEveryPackageFollowsTheImportRules(t *testing.T) {
	t.Parallel()
	found, err := checkImports(os.DirFS("../.."))
	if err != nil {
		t.Fatal(err)
	}
	if found.files < 20 {
		t.Fatalf("read %d files only: this is not the module", found.files)
	}
	for _, v := range found.violations {
		t.Error(v)
	}
	for _, rule := range importRules {
		if found.used[rule.pkg] == nil {
			t.Errorf("%s has a rule and no files", rule.pkg)
			continue
		}
		for _, target := range rule.imports {
			if !found.used[rule.pkg][target] {
				t.Errorf("%s may import %s, and no file of it does: remove it from the rule", rule.pkg, target)
			}
		}
	}
}

// importCheck is the result of checkImports.
type importCheck struct {
	violations []string
	files      int
	// used has the imports of rules that occur in the files, by package.
	used map[string]map[string]bool
}

// checkImports checks every non-test Go file below root against the import rules.
func checkImports(root fs.FS) (*importCheck, error) {
	found := &importCheck{used: map[string]map[string]bool{}}
	err := walkGoFiles(root, func(name string, source []byte) error {
		if strings.HasSuffix(name, "_test.go") {
			return nil
		}
		found.files++
		file, err := parser.ParseFile(token.NewFileSet(), name, source, 0)
		if err != nil {
			return err
		}
		found.checkFile(name, file)
		return nil
	})
	return found, err
}

// walkGoFiles calls visit for each Go file of the module, tests included.
func walkGoFiles(root fs.FS, visit func(name string, source []byte) error) error {
	return fs.WalkDir(root, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := entry.Name()
		if entry.IsDir() {
			if name != "." && (base[0] == '.' || base == "testdata" || base == "node_modules") {
				return fs.SkipDir
			}
			if _, err := fs.Stat(root, path.Join(name, "go.mod")); name != "." && err == nil {
				return fs.SkipDir // another module: nothing here can import it
			}
			return nil
		}
		if path.Ext(base) != ".go" {
			return nil
		}
		source, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		return visit(name, source)
	})
}

func (c *importCheck) checkFile(name string, file *ast.File) {
	pkg := path.Dir(name)
	violation := func(format string, args ...any) {
		c.violations = append(c.violations, name+": "+pkg+" "+fmt.Sprintf(format, args...))
	}
	i := slices.IndexFunc(importRules, func(r importRule) bool { return r.pkg == pkg })
	if i < 0 {
		violation("has no import rule")
		return
	}
	if c.used[pkg] == nil {
		c.used[pkg] = map[string]bool{}
	}
	imports := map[string]string{} // the imported paths by their names in this file
	for _, spec := range file.Imports {
		target, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			violation("has an import that can't be read: %v", err)
			return
		}
		localName := path.Base(target)
		if spec.Name != nil {
			localName = spec.Name.Name
		}
		imports[localName] = target
		rule, ok := allowedBy(importRules[i].imports, target)
		switch {
		case localName == ".":
			violation("may not dot-import %s", target)
		case !ok:
			violation("may not import %s", target)
		case rule != "":
			c.used[pkg][rule] = true
		}
	}
	if pkg == "internal/testkit" {
		return
	}
	ast.Inspect(file, func(n ast.Node) bool {
		selector, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if x, ok := selector.X.(*ast.Ident); ok && imports[x.Name] != "" {
			call := imports[x.Name] + "." + selector.Sel.Name
			if permitted := restrictedCalls[call]; permitted != nil && !permitted(pkg) {
				violation("may not use %s", call)
			}
		}
		return true
	})
}

// allowedBy reports whether a path may be imported, and returns the element of
// imports that allows it: none for the standard library.
func allowedBy(imports []string, target string) (rule string, ok bool) {
	own, isOwn := strings.CutPrefix(target, modulePrefix)
	first, _, _ := strings.Cut(target, "/")
	if !isOwn && !strings.Contains(first, ".") {
		return "", true // the paths of the standard library begin without a domain
	}
	for _, rule := range imports {
		if isOwn && own == rule || !isOwn && (target == rule || strings.HasPrefix(target, rule+"/")) {
			return rule, true
		}
	}
	return "", false
}
