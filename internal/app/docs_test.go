package app_test

import (
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"
	"unicode"

	"switchyard/internal/testkit"
)

// Every relative link in the repository's Markdown leads to a file, and to a
// heading where it names one.
func TestRelativeLinksLeadSomewhere(t *testing.T) {
	t.Parallel()
	broken, links, err := brokenLinks(os.DirFS("../.."))
	if err != nil {
		t.Fatal(err)
	}
	if links < 100 {
		t.Fatalf("found %d links only: this is not the repository", links)
	}
	for _, b := range broken {
		t.Error(b)
	}
}

// Every page of docs is in its index, so that a reader finds it.
func TestTheIndexOfTheDocsIsComplete(t *testing.T) {
	t.Parallel()
	const folder = "../../docs/"
	index := testkit.ReadFile(t, folder+"README.md")
	pages, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range pages {
		if name := page.Name(); path.Ext(name) == ".md" && name != "README.md" && !strings.Contains(string(index), "]("+name+")") {
			t.Errorf("docs/README.md does not link to %s", name)
		}
	}
}

func TestABrokenLinkIsFound(t *testing.T) {
	t.Parallel()
	repository := fstest.MapFS{
		"docs/there.md":    {Data: []byte("# The page\n\n## `GET /v1` and more\n\n## Twice\n\n## Twice\n\n```\n## in code\n```\n")},
		"docs/plots/a.svg": {Data: []byte("<svg/>")},
	}
	tests := []struct{ name, text, says string }{
		{"a file", "[x](there.md)", ""},
		{"a folder", "[x](plots/)", ""},
		{"an image", "![x](plots/a.svg)", ""},
		{"a heading", "[x](there.md#get-v1-and-more)", ""},
		{"the second of two equal headings", "[x](there.md#twice-1)", ""},
		{"a heading of its own", "# Its own\n\n[x](#its-own)", ""},
		{"a place outside", "[x](https://example.com/gone.md) [y](mailto:a@example.com)", ""},
		{"a link in code", "`[x](gone.md)`\n\n```\n[x](gone.md)\n```\n", ""},
		{"no such file", "[x](gone.md)", "docs/page.md: there is no gone.md"},
		{"no such file, by reference", "[x][r]\n\n[r]: gone.md", "docs/page.md: there is no gone.md"},
		{"no such image", "![x](plots/gone.svg)", "docs/page.md: there is no plots/gone.svg"},
		{"out of the repository", "[x](../../there.md)", "docs/page.md: there is no ../../there.md"},
		{"no such heading", "[x](there.md#gone)", "docs/page.md: there.md has no heading for #gone"},
		{"a heading in code", "[x](there.md#in-code)", "docs/page.md: there.md has no heading for #in-code"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			with := fstest.MapFS{"docs/page.md": {Data: []byte(tt.text)}}
			for name, file := range repository {
				with[name] = file
			}
			broken, _, err := brokenLinks(with)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(broken, "; "); got != tt.says {
				t.Errorf("got %q, want %q", got, tt.says)
			}
		})
	}
}

var (
	fence      = regexp.MustCompile("(?ms)^[ \t]*```.*?^[ \t]*```[ \t]*$")
	codeSpan   = regexp.MustCompile("`[^`\n]*`")
	inlineLink = regexp.MustCompile(`\]\(<?([^()\s>]+)>?(?:\s+"[^"]*")?\)`)
	reference  = regexp.MustCompile(`(?m)^ {0,3}\[[^\]]+\]:\s+<?([^\s>]+)`)
	heading    = regexp.MustCompile(`(?m)^#{1,6} +(.+?)[ #]*$`)
	label      = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`)
)

// brokenLinks reads every Markdown file below root. It returns one line for
// each relative link that leads nowhere, and the number of relative links.
func brokenLinks(root fs.FS) (broken []string, links int, err error) {
	pages := map[string]string{}
	err = fs.WalkDir(root, ".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (entry.Name() == ".git" || entry.Name() == "node_modules"):
			return fs.SkipDir
		case entry.IsDir() || path.Ext(name) != ".md":
			return nil
		}
		text, err := fs.ReadFile(root, name)
		pages[name] = fence.ReplaceAllString(string(text), "")
		return err
	})
	for name, text := range pages {
		prose := codeSpan.ReplaceAllString(text, "")
		for _, m := range append(inlineLink.FindAllStringSubmatch(prose, -1), reference.FindAllStringSubmatch(prose, -1)...) {
			target, err := url.Parse(m[1])
			if err != nil || target.IsAbs() {
				continue
			}
			links++
			file := name
			if target.Path != "" {
				file = path.Join(path.Dir(name), target.Path)
			}
			if _, err := fs.Stat(root, file); err != nil {
				broken = append(broken, fmt.Sprintf("%s: there is no %s", name, target.Path))
			} else if page, ok := pages[file]; target.Fragment != "" && (!ok || !anchors(page)[target.Fragment]) {
				broken = append(broken, fmt.Sprintf("%s: %s has no heading for #%s", name, target.Path, target.Fragment))
			}
		}
	}
	return broken, links, err
}

// anchors returns the anchors that GitHub gives the headings of a page.
func anchors(page string) map[string]bool {
	found := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(page, -1) {
		anchor := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case unicode.IsLetter(r) || unicode.IsDigit(r) || r == '-' || r == '_':
				return unicode.ToLower(r)
			}
			return -1
		}, label.ReplaceAllString(m[1], "$1"))
		unique := anchor
		for i := 1; found[unique]; i++ {
			unique = fmt.Sprintf("%s-%d", anchor, i)
		}
		found[unique] = true
	}
	return found
}
