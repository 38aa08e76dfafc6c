// Package mutants breaks the code on purpose, one small change at a time, and
// demands that its tests notice. Each file *.yml holds the mutants of one
// package; `make mutants` runs them and names those that survive.
package mutants

import (
	"path/filepath"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"switchyard/internal/testkit"
)

// A mutant is a change of one file that must make a test fail.
type mutant struct {
	// Name says what the broken code does, such as "a failed publication is
	// broadcast".
	Name string
	// File is the path of the file from the module's root. From occurs in it
	// exactly once and is replaced by To.
	File, From, To string
	// Test is the pattern of the tests that notice, as for go test -run. Package
	// is where they are; empty means the package of File.
	Test, Package string
}

const root = "../.."

// mutated returns the text of the mutant's file with the change made.
func (m *mutant) mutated(t *testing.T) string {
	t.Helper()
	text := testkit.ReadFile(t, filepath.Join(root, m.File))
	if n := strings.Count(string(text), m.From); n != 1 {
		t.Fatalf("%s has the text to change %d times, want once:\n%s", m.File, n, m.From)
	}
	return strings.Replace(string(text), m.From, m.To, 1)
}

// mutants reads all tables.
func mutants(t *testing.T) (all []*mutant) {
	t.Helper()
	files, err := filepath.Glob("*.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text := testkit.ReadFile(t, file)
		var table []*mutant
		if err := yaml.Unmarshal(text, &table); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		all = append(all, table...)
	}
	return all
}

// The tables follow the code: a change that no longer applies tests nothing.
func TestEveryMutantApplies(t *testing.T) {
	names := map[string]bool{}
	for _, m := range mutants(t) {
		if m.Name == "" || m.Test == "" || m.From == m.To || names[m.Name] {
			t.Errorf("%q in %s: a mutant has a name of its own, a change, and a test", m.Name, m.File)
		}
		names[m.Name] = true
		m.mutated(t)
	}
}
