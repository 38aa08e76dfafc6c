package pages

import (
	"fmt"
	"io/fs"
	"regexp"
	"strings"
)

// The files import and export in these forms only.
var (
	importLine  = regexp.MustCompile(`^import (\{ \w+(?:, \w+)* \}) from "\./([\w.]+)";$`)
	exportOne   = regexp.MustCompile(`^export ((?:async function|function|class|const) (\w+).*)`)
	exportNames = regexp.MustCompile(`^export \{ (\w+(?:, \w+)*) \};$`)
	anyForm     = regexp.MustCompile(`^(?:import|export)\b`)
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
	b.exports[name] = []string{}
	lines := strings.Split(string(content), "\n")
	for i, line := range lines {
		if !anyForm.MatchString(line) {
			continue
		}
		if form := importLine.FindStringSubmatch(line); form != nil {
			b.add(form[2])
			lines[i] = fmt.Sprintf("const %s = %s;", form[1], variable(form[2]))
		} else if form := exportOne.FindStringSubmatch(line); form != nil {
			b.exports[name] = append(b.exports[name], form[2])
			lines[i] = form[1]
		} else if form := exportNames.FindStringSubmatch(line); form != nil {
			b.exports[name] = append(b.exports[name], form[1])
			lines[i] = ""
		} else {
			panic(fmt.Sprintf("%s: a form of import or export that a bundle does not know: %s", name, line))
		}
	}
	fmt.Fprintf(&b.text, "const %s = (() => {\n%s\nreturn { %s };\n})();\n",
		variable(name), strings.Join(lines, "\n"), strings.Join(b.exports[name], ", "))
}

// variable returns the name for the exports of a file.
func variable(name string) string { return "$" + strings.TrimSuffix(name, ".js") }
