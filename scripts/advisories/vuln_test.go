package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// writeScript writes a program of the shell.
func writeScript(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

// scripts/vuln runs all three searches whatever they find, passes the database on, and
// exits with the worst code: a finding counts more than what could not be asked.
func TestVulnExitsWithTheWorstCode(t *testing.T) {
	script, err := os.ReadFile("../vuln")
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`(?m)^version=(.*)$`).FindSubmatch(script)
	if version == nil {
		t.Fatal("scripts/vuln names no version of govulncheck")
	}
	for _, tt := range []struct{ govulncheck, modules, images, want int }{
		{0, 0, 0, 0},
		{3, 0, 0, 3}, {0, 3, 0, 3}, {0, 0, 3, 3},
		{1, 0, 0, 4}, {0, 4, 0, 4}, {1, 4, 0, 4},
		{1, 4, 3, 3}, {3, 4, 0, 3}, {1, 3, 0, 3},
		{0, 1, 0, 1}, {1, 4, 1, 1}, {0, 1, 3, 3}, {3, 1, 1, 3},
	} {
		dir := t.TempDir()
		// Its failure is one of the network, which the script tells by its words.
		writeScript(t, filepath.Join(dir, "switchyard/tools/govulncheck@"+string(version[1])),
			fmt.Sprintf(`echo "govulncheck $*"; [ %[1]d != 1 ] || echo "fetching vulnerabilities: no"; exit %[1]d`, tt.govulncheck))
		writeScript(t, filepath.Join(dir, "steps"), fmt.Sprintf(`echo "advisories $*"; case $1 in modules) exit %d ;; images) exit %d ;; esac`, tt.modules, tt.images))
		writeScript(t, filepath.Join(dir, "bin/go"), `[ "$1 $2 $4" = "build -o ./scripts/advisories" ] && cp `+filepath.Join(dir, "steps")+` "$3"`)
		cmd := exec.CommandContext(t.Context(), "scripts/vuln")
		cmd.Dir = "../.."
		cmd.Env = append(os.Environ(), "XDG_CACHE_HOME="+dir, "PATH="+filepath.Join(dir, "bin")+":"+os.Getenv("PATH"), "GOVULNDB=file:///db")
		out, err := cmd.CombinedOutput()
		code := 0
		if exit := new(exec.ExitError); errors.As(err, &exit) {
			code = exit.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		if code != tt.want {
			t.Errorf("%+v: exit %d\n%s", tt, code, out)
		}
		for _, want := range []string{"govulncheck -db file:///db ./...\n", "advisories modules -db file:///db\n", "advisories images\n"} {
			if !strings.Contains(string(out), want) {
				t.Errorf("%+v: %q did not run:\n%s", tt, want, out)
			}
		}
	}
}
