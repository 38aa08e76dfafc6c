package main

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"switchyard/internal/testkit"
)

var update = flag.Bool("update", false, "rewrite testdata/help.golden")

// The help of every command is in testdata/help.golden, so that a change of a
// command, a flag or a default is seen where it is reviewed.
func TestTheHelpOfEveryCommandIsUpToDate(t *testing.T) {
	var all strings.Builder
	var add func(c *cobra.Command)
	add = func(c *cobra.Command) {
		args := slices.Concat(strings.Fields(c.CommandPath())[1:], []string{"--help"})
		code, out, errs := switchyard(t.Context(), args...)
		if code != exitOK || errs != "" {
			t.Errorf("%q: exit %d\n%s", args, code, errs)
		}
		fmt.Fprintf(&all, "$ switchyard %s\n%s\n", strings.Join(args, " "), out)
		for _, sub := range c.Commands() {
			add(sub)
		}
	}
	add(rootCommand())
	const golden = "testdata/help.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(all.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want := testkit.ReadFile(t, golden)
	if all.String() != string(want) {
		t.Errorf("%s differs from the commands: run go test ./cmd/switchyard -run %s -update", golden, t.Name())
	}
}
