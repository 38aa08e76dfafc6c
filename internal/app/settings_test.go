package app

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"switchyard/internal/config"
)

// A settingUse is an expression of this package that reads a setting, such as
// Store.RetentionAge. Its key is the field of a part's Config that the setting is
// assigned to, or empty.
type settingUse struct{ group, field, key string }

// settingUses finds the uses in the source. It recognizes a group of settings by
// its path (a.opt.Config.Store), by a variable that holds it, and by its type.
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
	groupOf := map[string]string{} // the group that each variable holds
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

// isSingleSetting reports whether a value is a setting, or a secret setting that
// is revealed.
func isSingleSetting(value ast.Expr) bool {
	if call, ok := value.(*ast.CallExpr); ok && len(call.Args) == 0 {
		if f, ok := call.Fun.(*ast.SelectorExpr); ok {
			value = f.X
		}
	}
	_, ok := value.(*ast.SelectorExpr)
	return ok
}

// renamedSettings has the fields of parts that are named neither as the setting nor
// as its group and the setting.
var renamedSettings = map[string]string{
	"Store.Lanes": "AppendWorkers",
}

// A setting that nothing reads, or that is assigned to the field of another one,
// has no effect when an operator changes it.
func TestEachSettingReachesTheFieldOfItsName(t *testing.T) {
	found := settingUses(t)
	if len(found) < 25 {
		t.Fatalf("found %d uses only", len(found))
	}
	unused := maps.Clone(renamedSettings)
	for _, u := range found {
		if u.key != "" && u.key != u.field && u.key != u.group+u.field && u.key != renamedSettings[u.group+"."+u.field] {
			t.Errorf("%s.%s is assigned to %s", u.group, u.field, u.key)
		}
		delete(unused, u.group+"."+u.field)
	}
	for name := range unused {
		t.Errorf("renamedSettings has %s, which no code reads", name)
	}
	for g := range reflect.TypeFor[config.Config]().Fields() {
		for f := range g.Type.Fields() {
			if !slices.ContainsFunc(found, func(u settingUse) bool { return u.group == g.Name && u.field == f.Name }) {
				t.Errorf("%s.%s is not read", g.Name, f.Name)
			}
		}
	}
}
