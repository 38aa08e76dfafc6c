package load

import (
	"strings"
	"testing"

	"switchyard/internal/testkit"
)

// The example in docs/verify.md is a valid history, and the page lists every
// event, fault and verdict.
func TestTheDocsMatchTheCode(t *testing.T) {
	b := testkit.ReadFile(t, "../../docs/verify.md")
	document := string(b)
	var example []string
	for _, line := range strings.Split(document, "\n") {
		if strings.HasPrefix(line, `    {"`) {
			example = append(example, line)
		}
	}
	h, err := ReadHistory(strings.NewReader(strings.Join(example, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	if report := Check(h); report.Verdict != Clean || report.Delivered != 1 {
		t.Error(report)
	}
	for _, name := range kindNames {
		if !strings.Contains(document, "`"+name+"`") {
			t.Errorf("docs/verify.md does not list the event %s", name)
		}
	}
	for _, f := range AllFaults {
		if !strings.Contains(document, "| `"+string(f)+"` | ") {
			t.Errorf("docs/verify.md does not list the fault %s", f)
		}
	}
	for _, v := range []Verdict{Clean, Wrong, Empty, Incomplete} {
		if !strings.Contains(document, "`"+string(v)+"`") {
			t.Errorf("docs/verify.md does not list the verdict %s", v)
		}
	}
}
