package main

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
)

// figures are the measurements of one package or of several.
type figures struct {
	fileLines, funcLines []int // of files and functions that are not tests
	codeLines            int   // lines that have code, without tests
	commentLines         int   // lines that have only a comment, without tests
	testLines            int   // lines of tests that have code
}

func (f *figures) add(other *figures) {
	f.fileLines = append(f.fileLines, other.fileLines...)
	f.funcLines = append(f.funcLines, other.funcLines...)
	f.codeLines += other.codeLines
	f.commentLines += other.commentLines
	f.testLines += other.testLines
}

// measure measures the Go files below root, by folder.
func measure(root fs.FS) (map[string]*figures, error) {
	byPackage := map[string]*figures{}
	err := fs.WalkDir(root, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := entry.Name()
		if entry.IsDir() {
			if name != "." && (base[0] == '.' || base[0] == '_' || slices.Contains([]string{"testdata", "vendor", "third_party", "node_modules"}, base)) {
				return fs.SkipDir
			}
			return nil
		}
		if path.Ext(base) != ".go" {
			return nil
		}
		source, err := fs.ReadFile(root, name)
		if err != nil || generated.Match(source) {
			return err
		}
		pkg := path.Dir(name)
		if byPackage[pkg] == nil {
			byPackage[pkg] = new(figures)
		}
		return byPackage[pkg].measureFile(name, source)
	})
	return byPackage, err
}

// generated matches the line by which Go's tools recognize generated files.
var generated = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.$`)

// measureFile adds one file.
func (f *figures) measureFile(name string, source []byte) error {
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, name, source, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	line := func(p token.Pos) int { return files.Position(p).Line }
	code, comments, license := 0, 0, 0
	kinds := lineKinds(file, line, source)
	for _, kind := range kinds {
		switch kind {
		case codeLine:
			code++
		case commentLine:
			comments++
		case licenseLine:
			license++
		}
	}
	if strings.HasSuffix(name, "_test.go") {
		f.testLines += code
		return nil
	}
	f.codeLines += code
	f.commentLines += comments
	f.fileLines = append(f.fileLines, len(kinds)-license)
	for _, d := range file.Decls {
		if d, ok := d.(*ast.FuncDecl); ok {
			f.funcLines = append(f.funcLines, line(d.End())-line(d.Pos())+1)
		}
	}
	return nil
}

// A lineKind is what a line of a file contains.
type lineKind int

const (
	blankLine lineKind = iota
	codeLine           // also code with a comment behind it
	commentLine
	licenseLine
)

// lineKinds returns the kind of each line of a file.
func lineKinds(file *ast.File, line func(token.Pos) int, source []byte) []lineKind {
	text := bytes.Split(bytes.TrimSuffix(source, []byte("\n")), []byte("\n"))
	kinds := make([]lineKind, len(text))
	for i := range text {
		if len(bytes.TrimSpace(text[i])) > 0 {
			kinds[i] = codeLine
		}
	}
	for i, group := range file.Comments {
		kind := commentLine
		if i == 0 && isLicense(group, file) {
			kind = licenseLine
		}
		for _, c := range group.List {
			for n := line(c.Pos()); n <= line(c.End()); n++ {
				first := n == line(c.Pos())
				if first && !bytes.HasPrefix(bytes.TrimSpace(text[n-1]), []byte(c.Text[:2])) {
					continue // code precedes the comment
				}
				kinds[n-1] = kind
			}
		}
	}
	return kinds
}

// isLicense reports whether the first comment of a file is a license header.
func isLicense(group *ast.CommentGroup, file *ast.File) bool {
	text := strings.ToLower(group.Text())
	return group != file.Doc && group.End() < file.Package && (strings.Contains(text, "copyright") || strings.Contains(text, "license"))
}
