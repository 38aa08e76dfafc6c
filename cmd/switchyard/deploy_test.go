package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"switchyard/internal/deploy"
	"switchyard/internal/stack"
	"switchyard/internal/testkit"
)

// emptyStack makes a folder with the files of a stack that does not run, and
// returns the folder of the compose file.
func emptyStack(t *testing.T) string {
	root := t.TempDir()
	for path, text := range map[string]string{
		"compose/docker-compose.prod.yml": "services: {}\n",
		"compose/.env":                    "DOMAIN=chat.example.com\nIMAGE_BLUE=v1\n",
		"traefik/dynamic/active.yml":      "http: {routers: {ws: {service: app-blue}}}\n",
		"traefik/dynamic/services.yml":    "http: {services: {app-blue: {}, app-green: {}}}\n",
		"traefik/blue.yml":                "http: {routers: {ws: {service: app-blue}}}\n",
		"traefik/green.yml":               "http: {routers: {ws: {service: app-green}}}\n",
	} {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(root, "compose")
}

// Each missing requirement is reported in one line with what to do, and nothing is
// changed.
func TestADeployThatCanNotStartSaysWhy(t *testing.T) {
	dir := emptyStack(t)
	// The PATH has no docker.
	t.Setenv("PATH", t.TempDir())
	code, out, errs := switchyard(t.Context(), "deploy", "v2", "--dir", dir)
	if code != exitUsage || !strings.Contains(errs, "docker is not installed") || strings.Count(errs, "\n") != 1 {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
	if code, _, errs = switchyard(t.Context(), "status", "--dir", dir); code != exitUsage || !strings.Contains(errs, "docker is not installed") {
		t.Errorf("exit %d\n%s", code, errs)
	}
	for want, args := range map[string][]string{
		"--canary must be percentages such as 10%,50%, not \"half\"": {"--canary", "half"},
		"canary must be percentages of 1 to 99 that rise":            {"--canary", "50%,10%"},
		"--watch must be 0s to 24h0m0s, not -1s":                     {"--watch", "-1s"},
		"--replicas must be 0 to 100, not 101":                       {"--replicas", "101"},
	} {
		code, _, errs := switchyard(t.Context(), append([]string{"deploy", "v2", "--dir", dir}, args...)...)
		if code != exitUsage || !strings.Contains(errs, want) {
			t.Errorf("%v: exit %d, %s", args, code, errs)
		}
	}
	if err := os.Remove(filepath.Join(dir, ".env")); err != nil {
		t.Fatal(err)
	}
	if code, _, errs = switchyard(t.Context(), "deploy", "v2", "--dir", dir); code != exitUsage || !strings.Contains(errs, "run setup first") {
		t.Errorf("exit %d\n%s", code, errs)
	}
}

// A pipeline reads the outcome from the last line.
func TestJSONOutputEndsWithTheOutcome(t *testing.T) {
	dir := emptyStack(t)
	t.Setenv("PATH", t.TempDir())
	code, out, _ := switchyard(t.Context(), "deploy", "v2", "--dir", dir, "--json")
	var end struct {
		Kind, Error string
		Exit        int
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &end); err != nil || end.Kind != "end" || end.Exit != code || !strings.Contains(end.Error, "docker") {
		t.Errorf("%v: exit %d, %s", err, code, out)
	}
}

func TestASecondCommandIsRefusedWhileOneRuns(t *testing.T) {
	dir := emptyStack(t)
	s, err := stack.Open(dir, stack.DefaultFile, "switchyard")
	if err != nil {
		t.Fatal(err)
	}
	lock, err := s.Lock(t.Context(), "switchyard deploy", 0)
	if err != nil {
		t.Fatal(err)
	}
	code, _, errs := switchyard(t.Context(), "rollback", "--dir", dir)
	if code != exitLocked || !strings.Contains(errs, fmt.Sprint("process ", os.Getpid(), " (switchyard deploy) is at it")) {
		t.Errorf("exit %d\n%s", code, errs)
	}
	if err := lock.Release(); err != nil {
		t.Fatal(err)
	}
}

func TestHistoryIsShown(t *testing.T) {
	dir := emptyStack(t)
	if err := os.MkdirAll(filepath.Join(dir, "state"), 0o755); err != nil {
		t.Fatal(err)
	}
	older := `{"id":"d0","outcome":"live","color":"blue","image":{"ref":"v1"},"started":"2026-11-25T10:00:00Z","ended":"2026-11-25T10:02:00Z"}` + "\n"
	line := `{"id":"d1","outcome":"rolled back","color":"blue","image":{"ref":"v2"},"started":"2026-11-26T10:00:00Z","ended":"2026-11-26T10:02:00Z","reason":"why","steps":[{"step":"start","took_seconds":1.5}]}` + "\n"
	if err := os.WriteFile(filepath.Join(dir, "state", "deploys.jsonl"), []byte(older+line), 0o644); err != nil {
		t.Fatal(err)
	}
	code, out, errs := switchyard(t.Context(), "history", "--dir", dir)
	if code != 0 || !strings.Contains(out, "v1") || !strings.Contains(out, "v2 rolled back, blue is live (took 2m0s): why") || !strings.Contains(out, "start") {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
	code, out, errs = switchyard(t.Context(), "history", "--dir", dir, "--last", "1")
	if code != 0 || strings.Contains(out, "v1") || !strings.Contains(out, "v2 rolled back") {
		t.Errorf("the newest deploy alone: exit %d\n%s%s", code, out, errs)
	}
}

func TestExitCodes(t *testing.T) {
	for code, err := range map[int]error{
		exitOK: nil, exitFailed: &deploy.RolledBackError{}, exitUsage: &deploy.RefusedError{Err: errors.New("no")},
		exitUnfinished: &deploy.UnfinishedError{}, exitLocked: &stack.LockedError{}, exitStuck: &deploy.StuckError{},
	} {
		if got := exitCode(err); got != code {
			t.Errorf("%T: %d, not %d", err, got, code)
		}
	}
}

func TestSmokeChecksAService(t *testing.T) {
	t.Parallel()
	s := testkit.StartServer(t, nil)
	code, out, errs := switchyard(t.Context(), "smoke", s.SocketURL())
	if code != 0 || !strings.HasPrefix(out, "ok ") {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
	code, out, _ = switchyard(t.Context(), "smoke", "ws://127.0.0.1:1/ws")
	if code != exitFailed || !strings.HasPrefix(out, "fail  ws://127.0.0.1:1/ws: connect") {
		t.Errorf("exit %d\n%s", code, out)
	}
}
