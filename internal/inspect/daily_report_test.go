package inspect

import (
	"encoding/xml"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"switchyard/internal/backup"
	"switchyard/internal/checks"
	"switchyard/internal/stack"
	"switchyard/internal/testkit"
)

func newDailyReport(t *testing.T) *DailyReport {
	return &DailyReport{
		Stack: &fakeStack{t: t, log: "\n", containers: []stack.Container{nodeContainer("app_blue-1"), {Name: "app_green-1", Service: "app_green", Status: "exited with 0"}}},
		Facts: checks.Facts{
			Prometheus: fakePrometheus(t, map[string]string{
				"node_": seriesJSON("", 0.4), "node_timex": seriesJSON("", 0), "websocket_": seriesJSON("", 3), `type=~"internal`: seriesJSON("", 0), "certificate": "", "probe_ssl": seriesJSON("", 60),
				"pg_": seriesJSON("", 0.1), "redis_": seriesJSON("", 0.1), "broker_up": seriesJSON("", 0), "process_": seriesJSON("", 0), "up == 0": "", "ALERTS": "", "histogram_quantile": seriesJSON("", 0.004),
			}),
			Backups: backupRepository(t, time.Hour, true), Lookback: 12 * time.Hour, MaxBackupAge: 26 * time.Hour, MaxProofAge: 8 * 24 * time.Hour, MaxWALAge: 10 * time.Minute,
		},
	}
}

func TestAHealthyStackIsReportedAsOK(t *testing.T) {
	page := newDailyReport(t).Run(t.Context())
	if page.Worst() != StatusOK {
		t.Errorf("%s", page)
	}
	expectContains(t, page.String(), "Services\n", "System\n", "Errors\n", "Backups\n", "newest backup", "is 60 min old", "0 bad, 0 to look at")
}

func TestEachProblemIsInTheDailyReport(t *testing.T) {
	for _, tt := range []struct {
		name     string
		change   func(r *DailyReport)
		want     Status
		wantText string
	}{
		{"no Prometheus in the stack", func(r *DailyReport) {
			r.Prometheus, r.PrometheusErr = nil, errors.New("prometheus does not run in the stack")
		}, StatusFail, "prometheus does not run in the stack"},
		{"a Prometheus that does not answer", func(r *DailyReport) { r.Prometheus = unreachablePrometheus(t) }, StatusFail, "Prometheus at http://127.0.0.1:1 does not answer"},
		{"a query that Prometheus refuses", func(r *DailyReport) {
			r.Prometheus = fakePrometheus(t, map[string]string{"node_load15": "error: parse"})
		}, StatusFail, "error: parse"},
		{"nothing measures the host", func(r *DailyReport) { r.Prometheus = fakePrometheus(t, nil) }, StatusWarn, "no data"},
		{"an alert", func(r *DailyReport) {
			r.Prometheus = fakePrometheus(t, map[string]string{"ALERTS{alertstate=\"firing\"}": seriesJSON(`"alertname":"DiskSpaceLow","severity":"critical"`, 1)})
		}, StatusFail, "DiskSpaceLow fires (critical)"},
		{"an alert that pages", func(r *DailyReport) {
			r.Prometheus = fakePrometheus(t, map[string]string{"ALERTS{alertstate=\"firing\"}": seriesJSON(`"alertname":"NoLiveNode","severity":"page"`, 1)})
		}, StatusFail, "NoLiveNode fires (page)"},
		{"an alert that is a warning", func(r *DailyReport) {
			r.Prometheus = fakePrometheus(t, map[string]string{"ALERTS{alertstate=\"firing\"}": seriesJSON(`"alertname":"SlowClients","severity":"warning"`, 1)})
		}, StatusWarn, "SlowClients fires (warning)"},
		{"a target that is down", func(r *DailyReport) {
			r.Prometheus = fakePrometheus(t, map[string]string{"up == 0": seriesJSON(`"job":"redis","instance":"redis:9121"`, 0)})
		}, StatusFail, "redis redis:9121 can't be scraped"},
		{"a full disk", func(r *DailyReport) {
			r.Prometheus = fakePrometheus(t, map[string]string{"node_filesystem": seriesJSON("", 0.96)})
		}, StatusFail, "96.0%"},
		{"a certificate that expires soon", func(r *DailyReport) {
			r.Prometheus = fakePrometheus(t, map[string]string{"probe_ssl": seriesJSON("", 2)})
		}, StatusFail, "certificate expires in, days"},
		{"a container that was not checked yet", func(r *DailyReport) { r.Stack.(*fakeStack).containers[0].Health = "starting" }, StatusWarn, "was just started"},
		{"an unhealthy container", func(r *DailyReport) { r.Stack.(*fakeStack).containers[0].Health = "unhealthy" }, StatusFail, "running, but unhealthy"},
		{"a container that ended", func(r *DailyReport) {
			r.Stack.(*fakeStack).containers = append(r.Stack.(*fakeStack).containers, stack.Container{Name: "redis-1", Service: "redis", Status: "exited with 1", ExitCode: 1})
		}, StatusFail, "does not run: exited with 1"},
		{"a container that was restarted", func(r *DailyReport) { r.Stack.(*fakeStack).containers[0].Restarts = 1 }, StatusWarn, "was restarted 1 times"},
		{"no node", func(r *DailyReport) { r.Stack.(*fakeStack).containers = r.Stack.(*fakeStack).containers[1:] }, StatusFail, "no node of the service runs"},
		{"errors in the log", func(r *DailyReport) {
			r.Stack.(*fakeStack).log = `{"level":"ERROR","msg":"no room on the disk"}` + "\n"
		}, StatusFail, "1 times: no room on the disk"},
		{"a Docker that does not answer", func(r *DailyReport) { r.Stack.(*fakeStack).err = errors.New("docker is away") }, StatusFail, "docker is away"},
		{"an old backup", func(r *DailyReport) { r.Backups = backupRepository(t, 30*time.Hour, true) }, StatusFail, "is 30.0 h old, over the limit of 26.0 h"},
		{"a backup that was never verified", func(r *DailyReport) { r.Backups = backupRepository(t, time.Hour, false) }, StatusFail, "no backup has been verified yet"},
		{"no backup", func(r *DailyReport) { r.Backups = &backup.Repository{Dir: t.TempDir()} }, StatusFail, "there is none: run switchyard backup"},
		{"a folder that is gone", func(r *DailyReport) { r.Backups = &backup.Repository{Dir: "/none"} }, StatusFail, "BACKUP_DIR: stat /none"},
		{"a WAL archive that stands still", func(r *DailyReport) {
			old := time.Now().Add(-time.Hour)
			if err := os.Chtimes(filepath.Join(r.Backups.Dir, "wal", "000000010000000000000001"), old, old); err != nil {
				t.Fatal(err)
			}
		}, StatusFail, "newest WAL segment"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newDailyReport(t)
			tt.change(r)
			page := r.Run(t.Context())
			found := false
			for _, s := range page.Sections {
				for _, l := range s.Results {
					found = found || l.Status == tt.want && (strings.Contains(l.Detail, tt.wantText) || strings.Contains(l.Name, tt.wantText))
				}
			}
			if !found || page.Worst() == StatusOK {
				t.Errorf("no line with status %s has %q:\n%s", tt.want, tt.wantText, page)
			}
		})
	}
}

// The exit code of check depends on the worst line, whatever comes after it.
func TestTheWorstStatusOfAPage(t *testing.T) {
	for want, all := range map[Status][]Status{
		StatusOK: {StatusOK, StatusOK}, StatusWarn: {StatusOK, StatusWarn, StatusOK}, StatusFail: {StatusWarn, StatusFail, StatusWarn, StatusOK},
	} {
		p := new(DailyResult)
		for _, status := range all {
			s := Section{}
			s.add(status, "a", "b")
			p.Sections = append(p.Sections, s)
		}
		if got := p.Worst(); got != want {
			t.Errorf("the worst of %v is %s", all, got)
		}
	}
}

func TestAReportHasItsPlots(t *testing.T) {
	history := filepath.Join(t.TempDir(), "deploys.jsonl")
	to := time.Unix(1_700_003_600, 0)
	write(t, history, `{"id":"d7","outcome":"rolled back","color":"blue","image":{"ref":"switchyard:2"},"started":"`+to.Add(-40*time.Minute).UTC().Format(time.RFC3339)+
		`","ended":"`+to.Add(-30*time.Minute).UTC().Format(time.RFC3339)+`","reason":"errors over 5%"}`+"\n"+
		`{"id":"d6","outcome":"live","started":"`+to.Add(-3*time.Hour).UTC().Format(time.RFC3339)+`","ended":"`+to.Add(-2*time.Hour).UTC().Format(time.RFC3339)+`"}`+"\n{half a line")
	p := fakePrometheus(t, map[string]string{
		"sum by (color) (websocket_active": `{"metric":{"color":"blue"},"values":[[1700000000,"5"],[1700001800,"50"],[1700003600,"7"]]}`,
		"ALERTS":                           `{"metric":{"alertname":"HighErrorRate","severity":"critical"},"values":[[1700001000,"1"],[1700001600,"1"]]}`,
		"max_over_time":                    seriesJSON("", 50),
	})
	r := &Report{Title: "A slow morning", From: to.Add(-time.Hour), To: to, Class: "P1", HistoryFile: history}
	dir := filepath.Join(t.TempDir(), "reports", "one")
	path, err := r.Write(t.Context(), &fakeStack{t: t, log: "\n"}, p, dir)
	if err != nil {
		t.Fatal(err)
	}
	text := testkit.ReadFile(t, path)
	expectContains(t, string(text), "# A slow morning", "Class: **P1**", "| most connections at once | 50 |", "| d7 | switchyard:2 | rolled back | blue |", "| HighErrorRate | critical |",
		"![Open connections, by color](connections.svg)", "Messages published per second: nothing in this span.", "## Why")
	if strings.Contains(string(text), "d6") {
		t.Errorf("a deploy before the span is in the report:\n%s", text)
	}
	svg := testkit.ReadFile(t, filepath.Join(dir, "connections.svg"))
	if err := xml.Unmarshal(svg, new(any)); err != nil {
		t.Errorf("no XML: %v", err)
	}
	expectContains(t, string(svg), "<polyline", "d7 rolled back", ">blue<", ">50<")
	// Without Prometheus the report says so, and has everything else.
	path, err = r.Write(t.Context(), &fakeStack{t: t, log: "\n"}, unreachablePrometheus(t), dir)
	if err != nil {
		t.Fatal(err)
	}
	if text, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	expectContains(t, string(text), "unknown: Prometheus at http://127.0.0.1:1 does not answer", "rolled back")
	r.From = to
	if _, err := r.Write(t.Context(), &fakeStack{t: t}, p, dir); err == nil {
		t.Error("an empty span was accepted")
	}
}

// Errors after --to are of another incident, also those of a kind that occurred
// before it.
func TestAReportLeavesOutErrorsAfterItsSpan(t *testing.T) {
	to := time.Date(2026, 11, 26, 2, 0, 0, 0, time.UTC)
	log := `{"time":"2026-11-26T01:30:00Z","level":"ERROR","msg":"disk full","error":"during"}
{"time":"2026-11-26T02:30:00Z","level":"ERROR","msg":"disk full","error":"after"}
{"time":"2026-11-26T02:30:00Z","level":"ERROR","msg":"another error"}
`
	r := &Report{Title: "One hour", From: to.Add(-time.Hour), To: to}
	path, err := r.Write(t.Context(), &fakeStack{t: t, log: log}, fakePrometheus(t, nil), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	text := testkit.ReadFile(t, path)
	expectContains(t, string(text), "| ERROR | 1 | 2026-11-26T01:30:00Z | 2026-11-26T01:30:00Z | disk full | during |")
	if strings.Contains(string(text), "another error") {
		t.Errorf("an error after the span is in the report:\n%s", text)
	}
}
