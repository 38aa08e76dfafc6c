// Package node runs the tests of client.js in Node's own test runner. Each
// module here runs in Chromium, too: test/browser.
package node

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"switchyard/internal/testkit"
	"switchyard/test/behaviors"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// tapResult is a line of TAP, the Test Anything Protocol, version 13.
var tapResult = regexp.MustCompile(`(?m)^ *(not )?ok \d+ - (.*?)( # .*)?$`)

func TestClientInNode(t *testing.T) {
	node, err := exec.LookPath("node")
	if err != nil {
		t.Fatalf("Node is missing, Debian's package nodejs (18 or newer): %v", err)
	}
	cmd := exec.CommandContext(t.Context(), node, "--test", "--test-reporter=tap", "all.test.mjs")
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "NODE_") })
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("node --test: %v\n%s%s", err, out, stderr.Bytes())
	}
	ran := map[string][]string{} // by module
	for _, match := range tapResult.FindAllSubmatch(out, -1) {
		if strings.Contains(string(match[3]), "SKIP") || strings.Contains(string(match[3]), "TODO") {
			t.Errorf("%s was not run: %s", match[2], match[3])
		}
		if module, name, ok := strings.Cut(string(match[2]), ": "); ok {
			ran[module] = append(ran[module], name)
		}
	}
	names, err := behaviors.Names()
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(ran["behaviors"])
	if !slices.Equal(ran["behaviors"], names) {
		t.Errorf("behaviors: Node ran %q\nthe list has %q", ran["behaviors"], names)
	}
	checkGoldenNames(t, ran["golden"])
	for _, module := range []string{"returning", "keeping", "witness", "people", "fleet"} {
		if len(ran[module]) < 5 {
			t.Errorf("%s: %d tests ran: the module is not what it was", module, len(ran[module]))
		}
	}
}

// checkGoldenNames checks that each frame of the server was read.
func checkGoldenNames(t *testing.T, ran []string) {
	t.Helper()
	paths, err := filepath.Glob("../../internal/protocol/testdata/v1/server-*.json")
	if err != nil || len(paths) < 15 {
		t.Fatalf("%d golden frames, %v", len(paths), err)
	}
	for _, path := range paths {
		if name := "golden " + strings.TrimSuffix(filepath.Base(path), ".json"); !slices.Contains(ran, name) {
			t.Errorf("%s was not read", name)
		}
	}
}
