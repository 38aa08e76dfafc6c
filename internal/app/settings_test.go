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

// A settingUse is where this package reads a setting: Store.RetentionAge, which is
// given to the field of a part's Config that key names, if it is.
type settingUse struct{ group, field, key string }

// settingUses finds them in the source. A group is known by its place in the settings
// (a.opt.Config.Store), by a variable that it was given to, or by its type.
func settingUses(t *testing.T) (found []settingUse) {
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
				found = append(found, settingUsesIn(f, groups)...)
			}
		}
	}
	return found
}

func settingUsesIn(f *ast.FuncDecl, groups map[string]bool) (found []settingUse) {
	groupOf := map[string]string{} // variables, by the group they hold
	for _, p := range f.Type.Params.List {
		if kind, ok := p.Type.(*ast.SelectorExpr); ok && groups[kind.Sel.Name] {
			for _, name := range p.Names {
				groupOf[name.Name] = kind.Sel.Name
			}
		}
	}
	group := func(e ast.Expr) string {
		switch e := e.(type) {
		case *ast.Ident:
			return groupOf[e.Name]
		case *ast.SelectorExpr:
			if groups[e.Sel.Name] {
				return e.Sel.Name
			}
		}
		return ""
	}
	var walk func(n ast.Node, key string)
	walk = func(n ast.Node, key string) {
		ast.Inspect(n, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.AssignStmt:
				if name, ok := n.Lhs[0].(*ast.Ident); ok && group(n.Rhs[0]) != "" {
					groupOf[name.Name] = group(n.Rhs[0])
				}
			case *ast.KeyValueExpr:
				if name, ok := n.Key.(*ast.Ident); ok && isSingleSetting(n.Value) {
					walk(n.Value, name.Name)
					return false
				}
			case *ast.SelectorExpr:
				if g := group(n.X); g != "" {
					found = append(found, settingUse{g, n.Sel.Name, key})
				}
			}
			return true
		})
	}
	walk(f.Body, "")
	return found
}

// isSingleSetting says whether a value is one setting as it is, or as it is revealed.
func isSingleSetting(value ast.Expr) bool {
	if call, ok := value.(*ast.CallExpr); ok && len(call.Args) == 0 {
		if f, ok := call.Fun.(*ast.SelectorExpr); ok {
			value = f.X
		}
	}
	_, ok := value.(*ast.SelectorExpr)
	return ok
}

// renamedSettings is what a part calls a setting, where that is not its name here or
// its group's and its own.
var renamedSettings = map[string]string{
	"Store.Lanes":               "AppendWorkers",
	"Limits.ConnectionsPerUser": "MaxPerUser",
	"Limits.ConnectionsPerIP":   "MaxPerAddress",
}

// A setting that nothing reads, or that goes where another belongs, is one that
// an operator turns in vain. A group of which nothing is read yet is of a part
// that is still to come.
func TestEachSettingReachesTheFieldOfItsName(t *testing.T) {
	found := settingUses(t)
	if len(found) < 25 {
		t.Fatalf("%d uses were found", len(found))
	}
	for _, u := range found {
		if u.key != "" && u.key != u.field && u.key != u.group+u.field && u.key != renamedSettings[u.group+"."+u.field] {
			t.Errorf("%s.%s goes to %s", u.group, u.field, u.key)
		}
	}
	for g := range reflect.TypeFor[config.Config]().Fields() {
		if !slices.ContainsFunc(found, func(u settingUse) bool { return u.group == g.Name }) {
			t.Logf("%s is not read yet", g.Name)
			continue
		}
		for f := range g.Type.Fields() {
			if !slices.ContainsFunc(found, func(u settingUse) bool { return u.group == g.Name && u.field == f.Name }) {
				t.Errorf("%s.%s is not read", g.Name, f.Name)
			}
		}
	}
}
