package testkit

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// runDeps runs scripts/deps without root and with a PATH that has only the given
// programs: names and shell scripts.
func runDeps(t *testing.T, programs map[string]string) (code int, output string) {
	t.Helper()
	bin := t.TempDir()
	for _, name := range []string{"sh", "sed", "dirname", "mktemp"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	programs["id"] = "echo 1000"
	for name, script := range programs {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "sh"), "../../scripts/deps")
	cmd.Env = []string{"PATH=" + bin}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// alternativePrograms returns the programs that the tests need, with the names
// that systems other than Debian give them.
func alternativePrograms() map[string]string {
	programs := map[string]string{
		"go": "", "cc": "", "node": "echo v18.20.4", "nginx": "", "promtool": "", "google-chrome": "", "firefox": "", "WebKitWebDriver": "", "Xvfb": "",
		"pgbouncer": "", "valkey-server": "", "valkey-cli": "", "alertmanager": "", "blackbox_exporter": "",
	}
	for _, name := range []string{"initdb", "pg_ctl", "pg_controldata", "pg_verifybackup", "psql", "pg_basebackup", "pg_dump", "pg_restore"} {
		programs[name] = ""
	}
	programs["postgres"] = "echo 'postgres (PostgreSQL) 16.3'"
	return programs
}

func TestAllMissingProgramsAreListedAtOnce(t *testing.T) {
	t.Parallel()
	code, output := runDeps(t, map[string]string{})
	if code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	for _, want := range []string{
		"Go 1.", "cc and the C library's headers", "redis-server or valkey-server", "redis-cli or valkey-cli",
		"chromium, chromium-browser or google-chrome", "firefox-esr or firefox", "WebKitWebDriver", "Xvfb", "Node 18 or newer", "promtool",
		"prometheus-alertmanager or alertmanager", "prometheus-blackbox-exporter or blackbox_exporter",
		"apt-get install --no-install-recommends gcc libc6-dev",
	} {
		if !strings.Contains(output, want) {
			t.Errorf("%q is not in:\n%s", want, output)
		}
	}
}

func TestAlternativeProgramNamesAreAccepted(t *testing.T) {
	t.Parallel()
	if code, output := runDeps(t, alternativePrograms()); code != 0 || output != "" {
		t.Errorf("exit code %d:\n%s", code, output)
	}
}

func TestAnOldNodeJSIsRefused(t *testing.T) {
	programs := alternativePrograms()
	programs["node"] = "echo v16.20.2"
	code, output := runDeps(t, programs)
	if code != 1 || !strings.Contains(output, "Node 18 or newer") || strings.Count(output, "\n") != 3 {
		t.Errorf("exit code %d:\n%s", code, output)
	}
}
