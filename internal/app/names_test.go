package app_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"unicode"
)

// retiredWords are words that the code used for concepts that have a term in
// docs/glossary.md, or for which the industry has another name. Each has the term to use
// instead. Names must not contain them as whole words of camelCase.
var retiredWords = map[string]string{
	"ask":         "query, request or claim",
	"bar":         "ban",
	"barred":      "banned",
	"beat":        "heartbeat or timer wheel",
	"behaviour":   "behavior",
	"board":       "the name of its content",
	"colour":      "color",
	"crew":        "nodes",
	"door":        "import rule, or the name of its content",
	"ear":         "frame tap",
	"enrol":       "register",
	"expel":       "close slow",
	"fleet":       "nodes",
	"foresee":     "plan",
	"guest":       "identity",
	"guilty":      "data error",
	"house":       "backend factory; probe host or internal only",
	"lane":        "append worker",
	"leftover":    "stale tag",
	"letter":      "envelope",
	"liar":        "faulty server",
	"mail":        "pub/sub",
	"mailbox":     "inbox",
	"moody":       "faulty",
	"mute":        "error",
	"newcomer":    "new connection",
	"notice":      "node event",
	"occupant":    "presence entry",
	"office":      "broker",
	"parcel":      "message",
	"patience":    "timeout",
	"poke":        "presence change",
	"rebuilt":     "restored",
	"repair shop": "repair queue",
	"roll":        "presence snapshot",
	"roster":      "admission",
	"saver":       "session writer",
	"scatter":     "close all",
	"seat":        "presence entry or handle",
	"settle":      "complete or commit",
	"sight":       "snapshot",
	"switchboard": "service manager",
	"tell":        "send, notify, report or record",
	"telling":     "recorder",
	"told":        "sent, notified, reported or recorded",
	"twin":        "parity",
	"ticket":      "pending publish",
	"turn away":   "reject",
	"untold":      "missing, or the error",
	"vault":       "repository",
	"vet":         "verify",
	"witness":     "observer",
	"world":       "environment or dependencies",
}

// nameExceptions are names with a retired word that stay, each with the reason.
var nameExceptions = map[string]string{
	"internal/config.Store.Lanes": "the setting DATABASE_LANES",
	"internal/load.Plan.Settle":   "the flag --settle of switchyard verify",
	"internal/load.Run.settle":    "waits as the flag --settle says",
	"internal/load.settle":        "waits as the flag --settle says",
}

// allowedPhrases are phrases in which the first word is not retired.
var allowedPhrases = []string{"roll back", "rolls back"}

// No name uses a retired word: packages, files, package-level names, methods, fields
// and tests. Locals and parameters are left to the reviewer.
func TestNoNameUsesARetiredWord(t *testing.T) {
	t.Parallel()
	names, err := moduleNames(os.DirFS("../.."))
	if err != nil {
		t.Fatal(err)
	}
	if len(names) < 5000 {
		t.Fatalf("found %d names only: this is not the module", len(names))
	}
	unused := maps.Clone(nameExceptions)
	for _, n := range names {
		word := retiredWordIn(n.name)
		if word == "" {
			continue
		}
		if nameExceptions[n.String()] != "" {
			delete(unused, n.String())
			continue
		}
		t.Errorf("%s: the name %s has the retired word %q: use %s", n.where, n, word, retiredWords[word])
	}
	for name := range unused {
		t.Errorf("nameExceptions has %s, which no code has", name)
	}
}

// A moduleName is a name that the code declares.
type moduleName struct {
	pkg, name string
	of        string // the type of a field or method; empty for others
	where     string // file:line
}

// String returns the name in the form that nameExceptions uses: package.Type.name or package.name.
func (n moduleName) String() string {
	if n.of != "" {
		return n.pkg + "." + n.of + "." + n.name
	}
	return n.pkg + "." + n.name
}

// moduleNames returns the names that the Go files below root declare.
func moduleNames(root fs.FS) (names []moduleName, err error) {
	err = walkGoFiles(root, func(file string, source []byte) error {
		files := token.NewFileSet()
		parsed, err := parser.ParseFile(files, file, source, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		pkg := path.Dir(file)
		add := func(of string, at token.Pos, name string) {
			names = append(names, moduleName{pkg, name, of, fmt.Sprintf("%s:%d", file, files.Position(at).Line)})
		}
		add("", parsed.Package, parsed.Name.Name)
		add("", parsed.Package, path.Base(pkg))
		add("", parsed.Package, strings.TrimSuffix(path.Base(file), ".go"))
		for _, d := range parsed.Decls {
			addDeclared(d, add)
		}
		return nil
	})
	return names, err
}

// addDeclared adds the names that one declaration of a file declares.
func addDeclared(d ast.Decl, add func(of string, at token.Pos, name string)) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		add(receiver(d), d.Pos(), d.Name.Name)
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			switch spec := spec.(type) {
			case *ast.ValueSpec:
				for _, name := range spec.Names {
					add("", name.Pos(), name.Name)
				}
			case *ast.TypeSpec:
				add("", spec.Pos(), spec.Name.Name)
				ast.Inspect(spec.Type, func(n ast.Node) bool {
					var fields *ast.FieldList
					switch n := n.(type) {
					case *ast.StructType:
						fields = n.Fields
					case *ast.InterfaceType:
						fields = n.Methods
					default:
						return true
					}
					for _, field := range fields.List {
						for _, name := range field.Names {
							add(spec.Name.Name, name.Pos(), name.Name)
						}
					}
					return true
				})
			}
		}
	}
}

// receiver returns the type that a method belongs to, or nothing for a function.
func receiver(d *ast.FuncDecl) string {
	if d.Recv == nil {
		return ""
	}
	expr := d.Recv.List[0].Type
	for {
		switch e := expr.(type) {
		case *ast.StarExpr:
			expr = e.X
		case *ast.IndexExpr:
			expr = e.X
		case *ast.Ident:
			return e.Name
		default:
			return ""
		}
	}
}

// wordsOf splits a name of camelCase or snake_case into lowercase words. An
// acronym is one word.
func wordsOf(name string) (words []string) {
	runes := []rune(name)
	begin := 0
	end := func(at int) {
		if at > begin {
			words = append(words, strings.ToLower(string(runes[begin:at])))
		}
		begin = at
	}
	for i, r := range runes {
		switch {
		case !unicode.IsLetter(r):
			end(i)
			begin = i + 1
		case unicode.IsUpper(r) && i > 0 && (!unicode.IsUpper(runes[i-1]) || i+1 < len(runes) && unicode.IsLower(runes[i+1])):
			end(i)
		}
	}
	end(len(runes))
	return words
}

// retiredWordIn returns the retired word that a name contains, in the singular, or
// nothing.
func retiredWordIn(name string) string {
	words := wordsOf(name)
	for i, w := range words {
		candidates := []string{w, strings.TrimSuffix(w, "s")}
		if i+1 < len(words) {
			phrase := w + " " + words[i+1]
			if slices.Contains(allowedPhrases, phrase) {
				continue
			}
			candidates = append(candidates, phrase, strings.TrimSuffix(phrase, "s"))
		}
		for _, c := range candidates {
			if retiredWords[c] != "" {
				return c
			}
		}
	}
	return ""
}

func TestARetiredWordIsFoundInEachKindOfName(t *testing.T) {
	names, err := moduleNames(fstest.MapFS{
		"internal/fleet/guest_list.go": {Data: []byte(`package fleet
var toldOnce, fine int
const moodyLog = 1
type crewMember struct { mailbox, Seats int; nested struct { beats int } }
type teller interface { Foresee() }
func (c *crewMember) turnsAway() {}
func TestWhoIsToldTheHTTPSeats() {}
func rollback() { colour := 1; _ = colour }
`)},
	})
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, n := range names {
		if w := retiredWordIn(n.name); w != "" {
			found = append(found, n.String())
		}
	}
	slices.Sort(found)
	want := []string{
		"internal/fleet.TestWhoIsToldTheHTTPSeats", "internal/fleet.crewMember", "internal/fleet.crewMember.Seats", "internal/fleet.crewMember.beats",
		"internal/fleet.crewMember.mailbox", "internal/fleet.fleet", "internal/fleet.fleet", "internal/fleet.guest_list",
		"internal/fleet.moodyLog", "internal/fleet.teller.Foresee", "internal/fleet.toldOnce",
	}
	if !slices.Equal(found, want) {
		t.Errorf("found %q\nwant  %q", found, want)
	}
}
