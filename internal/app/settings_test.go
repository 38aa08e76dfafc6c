package app

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"switchyard/internal/config"
)

// A use is where this package reads a setting: Store.RetentionAge, which is
// given to the field of a part's Config that key names, if it is.
type use struct{ group, field, key string }

// uses finds them in the source. A group is known by its place in the settings
// (a.opt.Config.Store), by a variable that it was given to, or by its type.
func uses(t *testing.T) (found []use) {
	t.Helper()
	groups := map[string]bool{}
	for f := range reflect.TypeFor[config.Config]().Fields() {
		groups[f.Name] = true
	}
	paths, err := filepath.Glob("*.go")
	if err != nil || len(paths) == 0 {
		t.Fatalf("%d files, %v", len(paths), err)
	}
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok {
				found = append(found, usesIn(f, groups)...)
			}
		}
	}
	return found
}

func usesIn(f *ast.FuncDecl, groups map[string]bool) (found []use) {
	bound := map[string]string{} // variables, by the group they hold
	for _, p := range f.Type.Params.List {
		if kind, ok := p.Type.(*ast.SelectorExpr); ok && groups[kind.Sel.Name] {
			for _, name := range p.Names {
				bound[name.Name] = kind.Sel.Name
			}
		}
	}
	group := func(e ast.Expr) string {
		switch e := e.(type) {
		case *ast.Ident:
			return bound[e.Name]
		case *ast.SelectorExpr:
			if groups[e.Sel.Name] {
				return e.Sel.Name
			}
		}
		return ""
	}
	var see func(n ast.Node, key string)
	see = func(n ast.Node, key string) {
		ast.Inspect(n, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.AssignStmt:
				if name, ok := n.Lhs[0].(*ast.Ident); ok && group(n.Rhs[0]) != "" {
					bound[name.Name] = group(n.Rhs[0])
				}
			case *ast.KeyValueExpr:
				if name, ok := n.Key.(*ast.Ident); ok && isOne(n.Value) {
					see(n.Value, name.Name)
					return false
				}
			case *ast.SelectorExpr:
				if g := group(n.X); g != "" {
					found = append(found, use{g, n.Sel.Name, key})
				}
			}
			return true
		})
	}
	see(f.Body, "")
	return found
}

// isOne says whether a value is one setting as it is, or as it is revealed.
func isOne(value ast.Expr) bool {
	if call, ok := value.(*ast.CallExpr); ok && len(call.Args) == 0 {
		if f, ok := call.Fun.(*ast.SelectorExpr); ok {
			value = f.X
		}
	}
	_, ok := value.(*ast.SelectorExpr)
	return ok
}

// otherwise is what a part calls a setting, where that is not its name here or
// its group's and its own.
var otherwise = map[string]string{
	"Limits.ConnectionsPerUser": "MaxPerUser",
	"Limits.ConnectionsPerIP":   "MaxPerAddress",
}

// A setting that nothing reads, or that goes where another belongs, is one that
// an operator turns in vain. A group of which nothing is read yet is of a part
// that is still to come.
func TestEachSettingGoesWhereItsNameSays(t *testing.T) {
	found := uses(t)
	if len(found) < 25 {
		t.Fatalf("%d uses were found", len(found))
	}
	for _, u := range found {
		if u.key != "" && u.key != u.field && u.key != u.group+u.field && u.key != otherwise[u.group+"."+u.field] {
			t.Errorf("%s.%s goes to %s", u.group, u.field, u.key)
		}
	}
	for g := range reflect.TypeFor[config.Config]().Fields() {
		if !slices.ContainsFunc(found, func(u use) bool { return u.group == g.Name }) {
			t.Logf("%s is not read yet", g.Name)
			continue
		}
		for f := range g.Type.Fields() {
			if !slices.ContainsFunc(found, func(u use) bool { return u.group == g.Name && u.field == f.Name }) {
				t.Errorf("%s.%s is not read", g.Name, f.Name)
			}
		}
	}
}
