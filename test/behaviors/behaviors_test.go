package behaviors

import (
	"os"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

func TestEveryBehaviorIsDecodedAndHasAUniqueName(t *testing.T) {
	all, err := All()
	if err != nil {
		t.Fatal(err)
	}
	names, err := Names()
	if err != nil {
		t.Fatal(err)
	}
	if len(names) < 180 {
		t.Errorf("%d behaviors: the list is not what it was", len(names))
	}
	if unique := slices.Compact(slices.Clone(names)); len(unique) != len(names) {
		t.Error("two behaviors have one name")
	}
	for _, b := range all {
		expects := false
		for i, s := range b.Steps {
			actors := 0
			for _, actor := range []string{s.Server, s.User, s.Client, s.Time} {
				if actor != "" {
					actors++
				}
			}
			if actors != 1 {
				t.Errorf("%s: step %d has %d actors", b.Name, i, actors)
			}
			if s.Code == "each" || s.Error == "each" {
				t.Errorf("%s: step %d says each, of what?", b.Name, i)
			}
			expects = expects || s.Client != "" || s.Server == "was given"
		}
		if !expects {
			t.Errorf("%s cannot fail", b.Name)
		}
	}
}

// Whoever adds a close code says what clients do with it.
func TestEveryCloseCodeHasABehavior(t *testing.T) {
	b, err := os.ReadFile("../../web/asyncapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Channels map[string]struct {
			Codes map[string]struct{ Client string } `yaml:"x-close-codes"`
		}
	}
	if err := yaml.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	names, err := Names()
	if err != nil {
		t.Fatal(err)
	}
	actions := []struct{ description, name string }{
		{"stays away", "stays away"}, {"does not come back as it is", "stays away"},
		{"comes back within a second", "comes back within a second"},
		{"backs off", "backs off"}, {"drops the publish", "backs off"},
		{"brings a fresh token", "comes back with a fresh token"},
		{"forgets this socket", "the first may end in any way once the second is there"},
	}
	codes := doc.Channels["socket"].Codes
	if len(codes) < 10 {
		t.Fatalf("%d close codes in the document", len(codes))
	}
	for code, documented := range codes {
		covered := false
		for _, v := range actions {
			if strings.HasPrefix(documented.Client, v.description) {
				covered = slices.Contains(names, code+": "+v.name)
			}
		}
		if !covered {
			t.Errorf("%s (%s) has no behaviour that says so", code, documented.Client)
		}
	}
}
