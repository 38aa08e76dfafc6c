package deploy

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"switchyard/internal/testkit"
)

func TestTheJournalIsReadAsItWasWritten(t *testing.T) {
	s := StateDir{Dir: t.TempDir()}
	if j, err := s.Current(); j != nil || err != nil {
		t.Fatal(j, err)
	}
	j := &Journal{ID: "d1", Image: Image{"v1", "id"}, From: Blue, To: Green, Replicas: 3, Baseline: &MetricsWindow{P95: time.Millisecond}}
	if err := s.saveJournal(j); err != nil {
		t.Fatal(err)
	}
	got, err := s.Current()
	if err != nil || got.ID != "d1" || got.Baseline.P95 != time.Millisecond {
		t.Fatal(got, err)
	}
	if err := s.finish(HistoryEntry{ID: "d1", Outcome: Deployed}); err != nil {
		t.Fatal(err)
	}
	if j, err = s.Current(); j != nil || err != nil {
		t.Fatal(j, err)
	}
	for _, text := range []string{"", "{", `{"id":"x"}`, "[]"} {
		if err := os.WriteFile(filepath.Join(s.Dir, "current.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Current(); err == nil || !strings.Contains(err.Error(), "current.json") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// Journals and histories outlive the version that wrote them: the keys must stay.
func TestTheKeysOfTheStateFiles(t *testing.T) {
	now := time.Date(2026, 11, 26, 10, 0, 0, 0, time.UTC)
	steps, notes := []CompletedStep{{Step: "start", At: now, TookSeconds: 1, Note: "n"}}, []string{"note"}
	old := ColorSpec{Color: Blue, Image: Image{"v1", "id1"}, Deployment: "d0", Replicas: 3}
	for want, value := range map[string]any{
		`{"id":"d1","image":{"ref":"v2","id":"id2"},"from":"blue","to":"green","old":{"color":"blue","image":{"ref":"v1","id":"id1"},"deployment":"d0","replicas":3},` +
			`"replicas":3,"started":"2026-11-26T10:00:00Z","done":[{"step":"start","at":"2026-11-26T10:00:00Z","took_seconds":1,"note":"n"}],"canary":10,` +
			`"baseline":{"operations":1,"errors":2,"publishes":3,"p95":4,"store_failed":5,"canary_p95":6,"memory":7,"seen":8},"clients":9,"rolling_back":true,` +
			`"trigger":"slow","reason":"r","failed_at":"watch","triggered":"2026-11-26T10:00:00Z","back":"2026-11-26T10:00:00Z","evidence":"dir","held":["note"],"notes":["note"]}`: Journal{
			ID: "d1", Image: Image{"v2", "id2"}, From: Blue, To: Green, Old: old, Replicas: 3, Started: now, CompletedSteps: steps, SharePercent: 10,
			Baseline: &MetricsWindow{1, 2, 3, 4, 5, 6, 7, 8}, ClientsBeforeMove: 9, RollingBack: true, Trigger: TriggerSlow, Reason: "r", FailedAt: "watch",
			TriggeredAt: now, OldServingAt: now, DiagnosticsDir: "dir", SuppressedTriggers: notes, Notes: notes,
		},
		`{"id":"d1","outcome":"rolled back","color":"blue","image":{"ref":"v2","id":"id2"},"from":"blue",` +
			`"old":{"color":"blue","image":{"ref":"v1","id":"id1"},"deployment":"d0","replicas":3},"started":"2026-11-26T10:00:00Z","ended":"2026-11-26T10:00:00Z",` +
			`"trigger":"slow","reason":"r","failed_at":"watch","back_after_seconds":2.5,"evidence":"dir","held":["note"],"notes":["note"],` +
			`"steps":[{"step":"start","at":"2026-11-26T10:00:00Z","took_seconds":1,"note":"n"}]}`: HistoryEntry{
			ID: "d1", Outcome: RolledBack, Color: Blue, Image: Image{"v2", "id2"}, From: Blue, Old: &old, Started: now, Ended: now, Trigger: TriggerSlow, Reason: "r",
			FailedAt: "watch", RecoverySeconds: 2.5, DiagnosticsDir: "dir", SuppressedTriggers: notes, Notes: notes, Steps: steps,
		},
	} {
		if got, err := json.Marshal(value); err != nil || string(got) != want {
			t.Errorf("%s\nwant\n%s, %v", got, want, err)
		}
	}
}

// A line that a crash truncated is lost, and no other line.
func TestTheHistorySurvivesATruncatedLine(t *testing.T) {
	s := StateDir{Dir: t.TempDir()}
	for _, e := range []HistoryEntry{{ID: "a"}, {ID: "b", Reason: "killed before the journal was removed"}, {ID: "b", Reason: "written again"}, {ID: "b", Outcome: RolledBack}} {
		if err := s.appendHistory(e); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(s.Dir, "deploys.jsonl")
	text := testkit.ReadFile(t, path)
	if err := os.WriteFile(path, append(text, `{"id":"c","outc`...), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.appendHistory(HistoryEntry{ID: "d"}); err != nil {
		t.Fatal(err)
	}
	got, err := s.History()
	if err != nil || len(got) != 4 || got[1].Reason != "written again" || got[2].Outcome != RolledBack || got[3].ID != "d" {
		t.Error(got, err)
	}
}

func TestAFullDiskIsReportedAndKeepsTheOldFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, ".env")
	if err := os.WriteFile(path, []byte("IMAGE_BLUE=v1\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/full", path+".new"); err != nil {
		t.Fatal(err)
	}
	err := writeColorEnv(dir, ColorSpec{Color: Blue, Image: Image{Ref: "v2"}, Deployment: "d", Replicas: 2})
	if err == nil || !strings.Contains(err.Error(), "no space left on device") || !strings.Contains(err.Error(), ".env") {
		t.Error(err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "IMAGE_BLUE=v1\n" {
		t.Errorf("%q, %v", text, err)
	}
}

// Only the color's lines of .env change, and the file keeps its mode.
func TestOnlyTheColorsLinesOfEnvChange(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, ".env")
	text := "# IMAGE_GREEN=old\nDOMAIN=x.test\nIMAGE_BLUE=v1\nexport IMAGE_GREEN = 'v0'\nREPLICAS_GREEN=0\n\nLAST=\"a=b\""
	// The umask of whoever runs the tests may take the group's right away.
	if err := errors.Join(os.WriteFile(path, []byte(text), 0o640), os.Chmod(path, 0o640)); err != nil {
		t.Fatal(err)
	}
	if err := writeColorEnv(dir, ColorSpec{Color: Green, Image: Image{Ref: "v2"}, Deployment: "d2", Replicas: 3}); err != nil {
		t.Fatal(err)
	}
	got := testkit.ReadFile(t, path)
	want := "# IMAGE_GREEN=old\nDOMAIN=x.test\nIMAGE_BLUE=v1\nIMAGE_GREEN=v2\nREPLICAS_GREEN=3\n\nLAST=\"a=b\"\nDEPLOYMENT_GREEN=d2\n"
	if string(got) != want {
		t.Errorf("%q", got)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 {
		t.Error(info.Mode(), err)
	}
	env, err := readEnv(path)
	if err != nil || env["LAST"] != "a=b" || env["IMAGE_GREEN"] != "v2" {
		t.Error(env, err)
	}
	// A stopped color keeps its image, so that an operator can start it by hand.
	if err := writeColorEnv(dir, ColorSpec{Color: Green}); err != nil {
		t.Fatal(err)
	}
	if env, err = readEnv(path); err != nil || env["IMAGE_GREEN"] != "v2" || env["REPLICAS_GREEN"] != "0" {
		t.Error(env, err)
	}
}

func TestTwoCommandsCannotRunAtOnce(t *testing.T) {
	s := StateDir{Dir: t.TempDir()}
	first, err := s.Lock(t.Context(), "switchyard deploy", time.Second)
	if err != nil || first.DeadHolder != nil {
		t.Fatal(first, err)
	}
	_, err = s.Lock(t.Context(), "switchyard deploy", time.Minute) // fails at once, since the holder lives
	var locked *LockedError
	if !errors.As(err, &locked) || locked.Holder.PID != os.Getpid() || !strings.Contains(err.Error(), "switchyard deploy") {
		t.Fatal(err)
	}
	if err := first.Release(); err != nil {
		t.Fatal(err)
	}
	second, err := s.Lock(t.Context(), "switchyard status", time.Second)
	if err != nil || second.DeadHolder != nil {
		t.Fatal(second, err)
	}
	if err := second.Release(); err != nil {
		t.Fatal(err)
	}
}

// The lock of a dead command is taken over once the programs that it started have
// ended.
func TestADeadCommandsLockIsTakenOver(t *testing.T) {
	s := StateDir{Dir: t.TempDir()}
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	lock, err := s.Lock(t.Context(), "switchyard deploy", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	// A program that the command started still holds the lock after its death.
	child := exec.Command("cat")
	child.ExtraFiles = []*os.File{lock.file}
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(LockHolder{PID: dead.Process.Pid, Boot: bootID(), Command: "switchyard deploy v2"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.path("lock"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	_ = lock.file.Close()
	if _, err := s.Lock(t.Context(), "switchyard deploy", 200*time.Millisecond); err == nil || !strings.Contains(err.Error(), "still running") {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		taken, err := s.Lock(context.Background(), "switchyard deploy", time.Minute)
		if err == nil && (taken.DeadHolder == nil || taken.DeadHolder.PID != dead.Process.Pid) {
			err = errors.New("the lock does not name its dead holder")
		}
		if err == nil {
			err = taken.Release()
		}
		done <- err
	}()
	_ = in.Close()
	_ = child.Wait()
	if err := <-done; err != nil {
		t.Error(err)
	}
	// A process id from before a reboot means nothing.
	if (LockHolder{PID: os.Getpid(), Boot: "another"}).alive() {
		t.Error("a holder from before a reboot counts as alive")
	}
}

func TestACommandHasATimeout(t *testing.T) {
	_, err := command{}.run(t.Context(), 100*time.Millisecond, "", nil, "sleep", "infinity")
	if err == nil || !strings.Contains(err.Error(), "no end within 100ms") {
		t.Error(err)
	}
	if _, err = (command{}).run(t.Context(), time.Minute, "", nil, "no-such-program"); err == nil || !strings.Contains(err.Error(), "not installed") {
		t.Error(err)
	}
	_, err = command{}.run(t.Context(), time.Minute, "", nil, "sh", "-c", "echo first; echo why >&2; exit 3")
	if err == nil || !strings.Contains(err.Error(), "exit status 3: why") {
		t.Error(err)
	}
}

// A color's variables in the shell must not override .env.
func TestColorVariablesOfTheShellAreNotPassedOn(t *testing.T) {
	t.Setenv("IMAGE_BLUE", "of-the-shell")
	t.Setenv("IMAGE_OTHER", "kept")
	out, err := command{}.run(t.Context(), time.Minute, "", []string{"IMAGE_MIGRATE=v2"}, "sh", "-c", `echo "$IMAGE_BLUE,$IMAGE_OTHER,$IMAGE_MIGRATE"`)
	if err != nil || string(out) != ",kept,v2\n" {
		t.Errorf("%q, %v", out, err)
	}
	if err := syscall.Kill(os.Getpid(), 0); err != nil {
		t.Error(err)
	}
}

func TestSettings(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deploy.yml")
	s, err := ReadSettings(path)
	if err != nil || s.Watch != 5*time.Minute || s.Triggers.ErrorPercent != 5 {
		t.Fatal(s, err)
	}
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("watch: 90s\ncanary: [10, 50]\ntriggers: {off: [slow], error_percent: 2.5}\nwindows: [{days: [mon], from: \"09:00\", to: \"16:30\"}]\n")
	if s, err = ReadSettings(path); err != nil || s.Watch != 90*time.Second || len(s.SharePercents) != 2 || s.Triggers.HealthFailures != 3 {
		t.Fatal(s, err)
	}
	for text, says := range map[string]string{
		"watch: -1s":                                  "watch must be 0s to 24h0m0s, not -1s",
		"wotch: 1s":                                   "field wotch not found",
		"canary: [50, 10]":                            "canary must be percentages of 1 to 99 that rise",
		"canary: [100]":                               "canary must be",
		"triggers: {off: [all]}":                      "triggers.off may name",
		"triggers: {error_percent: .nan}":             "triggers.error_percent must be 0 to 100",
		"probe_every: 1ms":                            "probe_every must be 100ms to 1m0s",
		"windows: [{days: [x], from: a, to: b}":       "did not find expected",
		"windows: [{from: \"17:00\", to: \"09:00\"}]": "the earlier first",
		"windows: [{days: [monday]}]":                 "a day is one of",
		"keep: 1":                                     "keep must be 2 to 100",
	} {
		write(text)
		if _, err := ReadSettings(path); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestDeployWindows(t *testing.T) {
	w := TimeWindow{Days: []string{"mon", "tue"}, From: "09:00", To: "16:30"}
	for at, want := range map[string]bool{
		"2026-11-23 09:00": true, "2026-11-23 16:29": true, "2026-11-23 16:30": false, "2026-11-24 12:00": true,
		"2026-11-23 08:59": false, "2026-11-25 12:00": false,
	} {
		when, err := time.Parse("2006-01-02 15:04", at)
		if err != nil || w.contains(when) != want {
			t.Errorf("%s: %v, %v", at, !want, err)
		}
	}
}
