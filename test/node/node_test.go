// Package node runs the tests of client.js in Node's test runner. test/browser runs
// the same modules in Chromium.
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

// tapResult is the result of a test in TAP, the Test Anything Protocol, version 13.
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
			t.Errorf("%s did not run: %s", match[2], match[3])
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
		t.Errorf("Node ran the behaviors %q\nthe list has %q", ran["behaviors"], names)
	}
	checkGoldenNames(t, ran["golden"])
	for _, module := range []string{"reconnecting", "requests", "arguments", "alive", "reachable", "kept_session", "listeners", "unhandled", "observer", "presence_list", "move_model"} {
		if len(ran[module]) < 5 {
			t.Errorf("%s: %d tests ran, want 5 or more", module, len(ran[module]))
		}
	}
}

// checkGoldenNames checks that a test ran for each golden frame of the server.
func checkGoldenNames(t *testing.T, ran []string) {
	t.Helper()
	paths, err := filepath.Glob("../../internal/protocol/testdata/v1/server-*.json")
	if err != nil || len(paths) < 15 {
		t.Fatalf("%d golden frames, %v", len(paths), err)
	}
	for _, path := range paths {
		if name := "golden " + strings.TrimSuffix(filepath.Base(path), ".json"); !slices.Contains(ran, name) {
			t.Errorf("%s did not run", name)
		}
	}
}
