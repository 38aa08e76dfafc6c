package deploy

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"switchyard/internal/checks"
	"switchyard/internal/stack"
	"switchyard/internal/testkit"
)

func TestTheJournalIsReadAsItWasWritten(t *testing.T) {
	s := StateDir{Dir: t.TempDir()}
	if j, err := s.Current(); j != nil || err != nil {
		t.Fatal(j, err)
	}
	j := &Journal{ID: "d1", Image: stack.Image{Ref: "v1", ID: "id"}, From: stack.Blue, To: stack.Green, Replicas: 3, Baseline: &checks.MetricsWindow{P95: time.Millisecond}}
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
	old := stack.ColorSpec{Color: stack.Blue, Image: stack.Image{Ref: "v1", ID: "id1"}, Deployment: "d0", Replicas: 3}
	for want, value := range map[string]any{
		`{"id":"d1","image":{"ref":"v2","id":"id2"},"from":"blue","to":"green","old":{"color":"blue","image":{"ref":"v1","id":"id1"},"deployment":"d0","replicas":3},` +
			`"replicas":3,"started":"2026-11-26T10:00:00Z","done":[{"step":"start","at":"2026-11-26T10:00:00Z","took_seconds":1,"note":"n"}],"canary":10,` +
			`"baseline":{"operations":1,"errors":2,"publishes":3,"p95":4,"store_failed":5,"canary_p95":6,"memory":7,"seen":8},"clients":9,"rolling_back":true,` +
			`"trigger":"slow","reason":"r","failed_at":"watch","triggered":"2026-11-26T10:00:00Z","back":"2026-11-26T10:00:00Z","evidence":"dir","held":["note"],"notes":["note"]}`: Journal{
			ID: "d1", Image: stack.Image{Ref: "v2", ID: "id2"}, From: stack.Blue, To: stack.Green, Old: old, Replicas: 3, Started: now, CompletedSteps: steps, SharePercent: 10,
			Baseline: &checks.MetricsWindow{Operations: 1, Errors: 2, Publishes: 3, P95: 4, StoreFailed: 5, CanaryP95: 6, Memory: 7, Replicas: 8}, ClientsBeforeMove: 9, RollingBack: true, Trigger: TriggerSlow, Reason: "r", FailedAt: "watch",
			TriggeredAt: now, OldServingAt: now, DiagnosticsDir: "dir", SuppressedTriggers: notes, Notes: notes,
		},
		`{"id":"d1","outcome":"rolled back","color":"blue","image":{"ref":"v2","id":"id2"},"from":"blue",` +
			`"old":{"color":"blue","image":{"ref":"v1","id":"id1"},"deployment":"d0","replicas":3},"started":"2026-11-26T10:00:00Z","ended":"2026-11-26T10:00:00Z",` +
			`"trigger":"slow","reason":"r","failed_at":"watch","back_after_seconds":2.5,"evidence":"dir","held":["note"],"notes":["note"],` +
			`"steps":[{"step":"start","at":"2026-11-26T10:00:00Z","took_seconds":1,"note":"n"}]}`: HistoryEntry{
			ID: "d1", Outcome: RolledBack, Color: stack.Blue, Image: stack.Image{Ref: "v2", ID: "id2"}, From: stack.Blue, Old: &old, Started: now, Ended: now, Trigger: TriggerSlow, Reason: "r",
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
		"windows: [{from: \"17:00\", to: \"17:00\"}]": "two times",
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
	// 2026-11-22 is a Sunday.
	day := TimeWindow{Days: []string{"mon", "tue"}, From: "09:00", To: "16:30"}
	night := TimeWindow{Days: []string{"sun", "tue"}, From: "22:00", To: "02:30"}
	always := TimeWindow{From: "23:00", To: "01:00"}
	for _, tt := range []struct {
		window TimeWindow
		at     string
		want   bool
	}{
		{day, "2026-11-23 09:00", true}, {day, "2026-11-23 16:29", true}, {day, "2026-11-23 16:30", false},
		{day, "2026-11-24 12:00", true}, {day, "2026-11-23 08:59", false}, {day, "2026-11-25 12:00", false},
		// Over midnight: the days are those on which the window begins.
		{night, "2026-11-22 21:59", false}, {night, "2026-11-22 22:00", true}, {night, "2026-11-23 00:00", true},
		{night, "2026-11-23 02:29", true}, {night, "2026-11-23 02:30", false}, {night, "2026-11-23 22:00", false},
		{night, "2026-11-22 01:00", false}, {night, "2026-11-24 23:59", true}, {night, "2026-11-25 01:00", true},
		{always, "2026-11-25 00:59", true}, {always, "2026-11-25 01:00", false}, {always, "2026-11-25 23:00", true},
	} {
		when, err := time.Parse("2006-01-02 15:04", tt.at)
		if err != nil || tt.window.contains(when) != tt.want {
			t.Errorf("%v at %s: %v, %v", tt.window, tt.at, !tt.want, err)
		}
	}
	for _, w := range []TimeWindow{{From: "09:00", To: "09:00"}, {From: "9", To: "10:00"}, {From: "09:00", To: "24:00"}} {
		if w.validate() == nil {
			t.Errorf("%v is accepted", w)
		}
	}
	if err := night.validate(); err != nil {
		t.Error(err)
	}
}
