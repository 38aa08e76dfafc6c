package main

import (
	"context"
	"flag"
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"switchyard/internal/testkit"
)

var update = flag.Bool("update", false, "rewrite testdata/help.golden")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server runs the command and returns its output.
func server(ctx context.Context, args ...string) (stdout string, err error) {
	var out, errs strings.Builder
	err = run(ctx, args, &out, &errs)
	return out.String(), err
}

// The help is in testdata/help.golden, so that a change of a command or a flag is
// seen where it is reviewed.
func TestTheHelpIsUpToDate(t *testing.T) {
	got, err := server(t.Context(), "--help")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"help", "-h"} {
		if other, err := server(t.Context(), name); err != nil || other != got {
			t.Errorf("%s: %v, and it differs from --help:\n%s", name, err, other)
		}
	}
	const golden = "testdata/help.golden"
	got = "$ server --help\n" + got
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want := testkit.ReadFile(t, golden)
	if got != string(want) {
		t.Errorf("%s differs from the command: run go test ./cmd/server -run %s -update", golden, t.Name())
	}
}

// Each mistake is an error with the usage, before the settings are read.
func TestWrongUsage(t *testing.T) {
	t.Setenv("MAX_FRAME", "no number") // reading the settings would fail
	for want, args := range map[string][]string{
		`unknown command "deploi"`: {"deploi"},
		"serve takes no arguments": {"serve", "now"},
		"healthcheck takes no arg": {"healthcheck", "-v"},
		"version takes no argumen": {"version", "-v"},
	} {
		out, err := server(t.Context(), args...)
		if err == nil || !strings.HasPrefix(err.Error(), want) || !strings.Contains(err.Error(), usage) || out != "" {
			t.Errorf("%q: printed %q, error %v; want %q and the usage", args, out, err, want)
		}
	}
	if out, err := server(t.Context(), "version"); err != nil || out != version+"\n" {
		t.Errorf("version: %q, %v", out, err)
	}
}

// A wrong setting or flag is an error that names it.
func TestMistakesOfSettingsAndFlagsAreNamed(t *testing.T) {
	t.Setenv("DATABASE_URL", "sqlite:"+t.TempDir()+"/log.db")
	for want, args := range map[string][]string{
		"migrate: flag provided but not defined: -x": {"migrate", "-x"},
		`migrate: "now" is not one of its flags`:     {"migrate", "now"},
		`drain: "now" is not one of its flags`:       {"drain", "now"},
		`undrain: flag provided but not defined: -w`: {"undrain", "-w"},
		"profile takes one of heap, goroutine":       {"profile", "cpu"},
		"look takes one of rooms, heap, goroutines":  {"look", "around"},
	} {
		if _, err := server(t.Context(), args...); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v, want %q", args, err, want)
		}
	}
	t.Setenv("MAX_FRAME", "no number")
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // a service that starts stops at once
	for _, name := range []string{"serve", "migrate", "healthcheck", "drain", "undrain", "profile", "look"} {
		if _, err := server(ctx, name); err == nil || !strings.Contains(err.Error(), "MAX_FRAME") {
			t.Errorf("%s: %v, want the mistake in MAX_FRAME", name, err)
		}
	}
}
