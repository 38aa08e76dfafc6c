package pages

import (
	"fmt"
	"io/fs"
	"regexp"
	"strings"
)

// The files import and export in these forms only.
var (
	importLine  = regexp.MustCompile(`(?m)^import (\{ \w+(?:, \w+)* \}) from "\./([\w.]+)";$`)
	exportOne   = regexp.MustCompile(`(?m)^export ((?:async function|function|class|const) (\w+))`)
	exportNames = regexp.MustCompile(`(?m)^export \{ (\w+(?:, \w+)*) \};$`)
	otherForm   = regexp.MustCompile(`(?m)^(?:import|export)\b.*`)
)

// A bundle is a module in one file with all that it imports. A browser that loads it
// never mixes the files of two releases, both of which are served during a deploy: what
// the files export to each other changes from one to the next.
type bundle struct {
	files   fs.FS
	text    strings.Builder
	exports map[string][]string // by file
}

// bundled returns the bundle of a file. It panics for a form that it does not know: the
// files are built into the program.
func bundled(files fs.FS, name string) []byte {
	b := &bundle{files: files, exports: map[string][]string{}}
	b.add(name)
	if names := b.exports[name]; len(names) > 0 {
		fmt.Fprintf(&b.text, "export const { %s } = %s;\n", strings.Join(names, ", "), variable(name))
	}
	return []byte(b.text.String())
}

// add writes what a file imports, and then the file as a function that returns its
// exports.
func (b *bundle) add(name string) {
	if _, isThere := b.exports[name]; isThere {
		return
	}
	content, err := fs.ReadFile(b.files, name)
	if err != nil {
		panic(err)
	}
	text := string(content)
	for _, line := range importLine.FindAllStringSubmatch(text, -1) {
		b.add(line[2])
	}
	names := []string{}
	for _, line := range exportOne.FindAllStringSubmatch(text, -1) {
		names = append(names, line[2])
	}
	for _, line := range exportNames.FindAllStringSubmatch(text, -1) {
		names = append(names, line[1])
	}
	b.exports[name] = names
	text = importLine.ReplaceAllStringFunc(text, func(line string) string {
		parts := importLine.FindStringSubmatch(line)
		return fmt.Sprintf("const %s = %s;", parts[1], variable(parts[2]))
	})
	text = exportOne.ReplaceAllString(exportNames.ReplaceAllString(text, ""), "$1")
	if form := otherForm.FindString(text); form != "" {
		panic(fmt.Sprintf("%s: a form of import or export that a bundle does not know: %s", name, form))
	}
	fmt.Fprintf(&b.text, "const %s = (() => {\n%s\nreturn { %s };\n})();\n", variable(name), text, strings.Join(names, ", "))
}

// variable returns the name for the exports of a file.
func variable(name string) string { return "$" + strings.TrimSuffix(name, ".js") }
