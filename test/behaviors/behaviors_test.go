package behaviors

import (
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"switchyard/internal/testkit"
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
		t.Errorf("the list has %d behaviors, want 180 or more", len(names))
	}
	if unique := slices.Compact(slices.Clone(names)); len(unique) != len(names) {
		t.Error("two behaviors have the same name")
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
				t.Errorf("%s: step %d has each without codes or errors", b.Name, i)
			}
			expects = expects || s.Client != "" || s.Server == "received credentials"
		}
		if !expects {
			t.Errorf("%s expects nothing", b.Name)
		}
	}
}

// A behavior covers each documented close code: the action of clients in the
// document leads to its name.
func TestEveryCloseCodeHasABehavior(t *testing.T) {
	b := testkit.ReadFile(t, "../../web/asyncapi.yaml")
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
		{"does not reconnect", "does not reconnect"},
		{"reconnects within a second", "reconnects within a second"},
		{"backs off", "backs off"}, {"drops the publish", "backs off"},
		{"reconnects with a fresh token", "reconnects with a fresh token"},
		{"discards this connection", "the first may end with any code once the next is welcomed"},
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
			t.Errorf("no behavior covers %s (%s)", code, documented.Client)
		}
	}
}
