package app_test

import (
	"flag"
	"fmt"
	"os"
	"path"
	"regexp"
	"strings"
	"testing"

	"switchyard/internal/testkit"
)

var update = flag.Bool("update", false, "rewrite the copies of the import rules in .golangci.yml and docs/architecture.md")

// The linter and the reader of docs/architecture.md get exactly the rules that the
// test above enforces. `go test ./internal/app -run TestTheImportRules -update`
// writes both.
func TestTheImportRulesAreInTheLinterAndInTheDocuments(t *testing.T) {
	for file, generate := range map[string]func(string) (string, error){
		"../../.golangci.yml":        withLinterRules,
		"../../docs/architecture.md": withDocumentRules,
	} {
		text := testkit.ReadFile(t, file)
		want, err := generate(string(text))
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if *update {
			if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
		} else if string(text) != want {
			t.Errorf("%s differs from importRules: run go test ./internal/app -run %s -update", file, t.Name())
		}
	}
}

// linterRules is the section depguard of .golangci.yml.
var linterRules = regexp.MustCompile(`(?s)    depguard:\n.*?\n(  exclusions:\n)`)

// withLinterRules returns .golangci.yml with the section depguard that the import
// rules demand. A $ at the end of a path excludes the packages below it.
func withLinterRules(text string) (string, error) {
	section := linterRules.FindStringSubmatchIndex(text)
	if section == nil {
		return "", fmt.Errorf("it has no section depguard before exclusions")
	}
	var b strings.Builder
	b.WriteString("    depguard:\n      # Generated from internal/app/import_rules_test.go, which says how.\n      rules:\n")
	for _, rule := range importRules {
		fmt.Fprintf(&b, "        %s:\n          list-mode: strict\n          files: [\"**/%s/*.go\", \"!$test\"]\n          allow:\n            - $gostd\n",
			strings.ReplaceAll(strings.TrimPrefix(rule.pkg, "internal/"), "/", "-"), rule.pkg)
		for _, target := range rule.imports {
			if isOwn(target) {
				target = modulePrefix + target + "$"
			}
			fmt.Fprintf(&b, "            - %s\n", target)
		}
	}
	return text[:section[0]] + b.String() + text[section[2]:], nil
}

// isOwn reports whether an element of a rule is a package of this module.
func isOwn(target string) bool {
	first, _, _ := strings.Cut(target, "/")
	return !strings.Contains(first, ".")
}

// documentRow is a row of the table of packages: names of packages, the purpose,
// the imports.
var documentRow = regexp.MustCompile("(?m)^\\| (`[a-z/`, ]+`) \\| (.+) \\| (.+) \\|$")

// withDocumentRules returns docs/architecture.md with the imports of each package in
// the third column of its table. The purposes in the second column are kept. Each
// rule must have a row and each row a rule.
func withDocumentRules(text string) (string, error) {
	purposes := map[string]string{}
	rows := documentRow.FindAllStringSubmatchIndex(text, -1)
	for _, at := range rows {
		for name := range strings.SplitSeq(text[at[2]:at[3]], ", ") {
			purposes[strings.Trim(name, "`")] = text[at[4]:at[5]]
		}
	}
	if len(rows) == 0 {
		return "", fmt.Errorf("it has no table of packages")
	}
	var b strings.Builder
	for i, rule := range importRules {
		purpose := purposes[rule.pkg]
		if purpose == "" {
			return "", fmt.Errorf("its table has no row for %s: add one with the purpose", rule.pkg)
		}
		delete(purposes, rule.pkg)
		names := make([]string, len(rule.imports))
		for j, target := range rule.imports {
			names[j] = shortName(target)
		}
		if len(names) == 0 {
			names = []string{"nothing"}
		}
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |", rule.pkg, purpose, strings.Join(names, ", "))
	}
	for pkg := range purposes {
		return "", fmt.Errorf("its table has a row for %s, which has no rule", pkg)
	}
	return text[:rows[0][0]] + b.String() + text[rows[len(rows)-1][1]:], nil
}

var majorVersion = regexp.MustCompile(`[/.]v\d+$`)

// shortName returns the name of a package for the table: without internal/, the
// host, the owner and the major version.
func shortName(target string) string {
	if isOwn(target) {
		return strings.TrimPrefix(target, "internal/")
	}
	switch target {
	case prometheusAPI, prometheusLib:
		return "prometheus/" + path.Base(target)
	case "golang.org/x/time/rate":
		return "x/time/rate"
	}
	return path.Base(majorVersion.ReplaceAllString(target, ""))
}

func TestARowWithoutARuleIsFound(t *testing.T) {
	text := testkit.ReadFile(t, "../../docs/architecture.md")
	const row = "| `internal/message` |"
	for name, changed := range map[string]string{
		"a package without a rule": strings.Replace(string(text), row, "| `internal/other` | another package | nothing |\n"+row, 1),
		"a rule without a package": strings.Replace(string(text), row, "| internal/message |", 1),
	} {
		if _, err := withDocumentRules(changed); err == nil {
			t.Errorf("%s in the table is not found", name)
		}
	}
	wider := strings.Replace(string(text), "| nothing |", "| hub |", 1)
	if got, err := withDocumentRules(wider); err != nil || got != string(text) {
		t.Errorf("an import that is only in the table stays there, %v", err)
	}
}
