package http

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"switchyard/internal/testkit"
)

func readDoc(t *testing.T, name string) string {
	t.Helper()
	return string(testkit.ReadFile(t, "../../docs/"+name))
}

// testNames returns the names of all tests of the module.
func testNames(t *testing.T) map[string]bool {
	t.Helper()
	names, err := findTestNames()
	if err != nil {
		t.Fatal(err)
	}
	return names
}

var findTestNames = sync.OnceValues(func() (map[string]bool, error) {
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	found := map[string]bool{}
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		for _, m := range declared.FindAllStringSubmatch(string(b), -1) {
			found[m[1]] = true
		}
		return err
	})
	return found, err
})

// Each row of docs/limits.md names tests and settings that exist.
func TestEveryDocumentedLimitNamesATest(t *testing.T) {
	declared, settings := testNames(t), readDoc(t, "configuration.md")
	named := regexp.MustCompile(`\b(?:Test|Fuzz)\w+`)
	setting := regexp.MustCompile("`([A-Z][A-Z_]+)`")
	rows := 0
	page := readDoc(t, "limits.md")
	computed, end := strings.Index(page, "<!-- products -->"), strings.Index(page, "<!-- end of products -->")
	if computed < 0 || end < computed {
		t.Fatal("limits.md has no table of products")
	}
	for line := range strings.Lines(page[:computed] + page[end:]) {
		if !strings.HasPrefix(line, "| ") || strings.HasSuffix(line, " test |\n") {
			continue
		}
		rows++
		names := named.FindAllString(line, -1)
		if len(names) == 0 {
			t.Errorf("the row names no test: %s", line)
		}
		for _, name := range names {
			if !declared[name] {
				t.Errorf("there is no %s: %s", name, line)
			}
		}
		for _, m := range setting.FindAllStringSubmatch(line, -1) {
			if !strings.Contains(settings, "| `"+m[1]+"` |") {
				t.Errorf("there is no setting %s: %s", m[1], line)
			}
		}
	}
	if rows < 40 {
		t.Errorf("%d rows were read", rows)
	}
}

// Each test that a page names exists.
func TestDocsNameExistingTests(t *testing.T) {
	declared := testNames(t)
	named := regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z]\w+`)
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(pages) < 10 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	for _, page := range pages {
		for _, name := range named.FindAllString(readDoc(t, filepath.Base(page)), -1) {
			if !declared[name] {
				t.Errorf("%s: there is no %s", filepath.Base(page), name)
			}
		}
	}
}

// The transcripts of docs/protocol.md show every frame of asyncapi.yaml, and its
// tables list every error and close code.
func TestProtocolTranscriptsMatchAsyncAPI(t *testing.T) {
	d, text := readDocument(t, "asyncapi.yaml"), readDoc(t, "protocol.md")
	for arrow, operation := range map[string]string{"→ ": "request", "← ": "deliver"} {
		known := payloads(d, operation)
		shown := map[string]bool{}
		for line := range strings.Lines(text) {
			frame, ok := strings.CutPrefix(strings.TrimSpace(line), arrow)
			if !ok || !strings.HasPrefix(frame, "{") {
				continue
			}
			for kind, schema := range known {
				if strings.HasPrefix(frame, `{"type":"`+kind+`"`) && (operation == "deliver" || d.checkText(frame, schema...) == nil) {
					shown[kind] = true
					if err := d.checkText(frame, schema...); err != nil {
						t.Errorf("%s: %v", frame, err)
					}
				}
			}
		}
		for kind := range known {
			if !shown[kind] {
				t.Errorf("no transcript shows %s%s", arrow, kind)
			}
		}
	}
	codes := d.strings(append(payloads(d, "deliver")["error"], "properties", "code", "enum")...)
	for code := range d.object("channels", "socket", "x-close-codes") {
		codes = append(codes, code)
	}
	for _, code := range codes {
		if !strings.Contains(text, "\n| `"+code+"` |") {
			t.Errorf("no row for %s", code)
		}
	}
}

// docs/http.md has every operation and every code of openapi.yaml.
func TestTheHTTPReferenceIsComplete(t *testing.T) {
	d, text := readDocument(t, "openapi.yaml"), readDoc(t, "http.md")
	for _, operation := range operations(d) {
		method, route, _ := strings.Cut(operation, " ")
		if slices.Contains(fileNames(d), route[1:]) {
			route = "/{file}"
		}
		if !strings.Contains(text, "`"+method+" "+route+"`") {
			t.Errorf("%s %s is missing", method, route)
		}
	}
	for _, code := range d.strings("components", "schemas", "Problem", "properties", "code", "enum") {
		if !strings.Contains(text, "\n| `"+code+"` |") {
			t.Errorf("no row for %s", code)
		}
	}
}
