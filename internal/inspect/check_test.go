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
)

func newRound(t *testing.T) *Round {
	return &Round{
		Stack: &stand{t: t, log: "\n", containers: []backup.Container{node("app_blue-1"), {Name: "app_green-1", Service: "app_green", Status: "exited with 0"}}},
		Prometheus: promised(t, map[string]string{
			"node_": sample("", 0.4), "node_timex": sample("", 0), "websocket_": sample("", 3), `type=~"internal`: sample("", 0), "certificate": "", "probe_ssl": sample("", 60),
			"pg_": sample("", 0.1), "redis_": sample("", 0.1), "broker_up": sample("", 0), "process_": sample("", 0), "up == 0": "", "ALERTS": "", "histogram_quantile": sample("", 0.004),
		}),
		Backups: vault(t, time.Hour, true), Night: 12 * time.Hour, MaxAge: 26 * time.Hour, MaxProof: 8 * 24 * time.Hour, MaxWAL: 10 * time.Minute,
	}
}

func TestAQuietMorning(t *testing.T) {
	page := newRound(t).Page(t.Context())
	if page.Worst() != Good {
		t.Errorf("%s", page)
	}
	expect(t, page.String(), "Services\n", "System\n", "Errors\n", "Backups\n", "newest backup", "is 60 min old", "0 bad, 0 to look at")
}

func TestABadMorning(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(r *Round)
		want  Mark
		says  string
	}{
		{"no Prometheus in the stack", func(r *Round) { r.Prometheus, r.Missing = nil, errors.New("prometheus does not run in the stack") }, Bad, "prometheus does not run in the stack"},
		{"a Prometheus that is away", func(r *Round) { r.Prometheus = gone(t) }, Bad, "Prometheus at http://127.0.0.1:1 does not answer"},
		{"a question that Prometheus refuses", func(r *Round) { r.Prometheus = promised(t, map[string]string{"node_load15": "error: parse"}) }, Bad, "error: parse"},
		{"nothing measures the host", func(r *Round) { r.Prometheus = promised(t, nil) }, Look, "nothing measures it"},
		{"an alert", func(r *Round) {
			r.Prometheus = promised(t, map[string]string{"ALERTS{alertstate=\"firing\"}": sample(`"alertname":"DiskSpaceLow","severity":"critical"`, 1)})
		}, Bad, "DiskSpaceLow fires (critical)"},
		{"a target that is down", func(r *Round) {
			r.Prometheus = promised(t, map[string]string{"up == 0": sample(`"job":"redis","instance":"redis:9121"`, 0)})
		}, Bad, "redis redis:9121 can't be scraped"},
		{"a full disk", func(r *Round) { r.Prometheus = promised(t, map[string]string{"node_filesystem": sample("", 0.95)}) }, Bad, "95.0 %"},
		{"a certificate that ends", func(r *Round) { r.Prometheus = promised(t, map[string]string{"probe_ssl": sample("", 3)}) }, Bad, "certificate is good for, days"},
		{"a container that was not checked yet", func(r *Round) { r.Stack.(*stand).containers[0].Health = "starting" }, Look, "was just started"},
		{"an unhealthy container", func(r *Round) { r.Stack.(*stand).containers[0].Health = "unhealthy" }, Bad, "runs and is unhealthy"},
		{"one that ended", func(r *Round) {
			r.Stack.(*stand).containers = append(r.Stack.(*stand).containers, backup.Container{Name: "redis-1", Service: "redis", Status: "exited with 1", ExitCode: 1})
		}, Bad, "does not run: exited with 1"},
		{"one that was restarted", func(r *Round) { r.Stack.(*stand).containers[0].Restarts = 2 }, Look, "was restarted 2 times"},
		{"no node", func(r *Round) { r.Stack.(*stand).containers = r.Stack.(*stand).containers[1:] }, Bad, "no node of the service runs"},
		{"errors in the log", func(r *Round) { r.Stack.(*stand).log = `{"level":"ERROR","msg":"no room on the disk"}` + "\n" }, Bad, "1 times: no room on the disk"},
		{"docker that is away", func(r *Round) { r.Stack.(*stand).broken = errors.New("docker is away") }, Bad, "docker is away"},
		{"an old backup", func(r *Round) { r.Backups = vault(t, 30*time.Hour, true) }, Bad, "is 30.0 h old; at most 26.0 h is fine"},
		{"a backup that was never verified", func(r *Round) { r.Backups = vault(t, time.Hour, false) }, Bad, "no backup was ever verified"},
		{"no backup", func(r *Round) { r.Backups = &backup.Vault{Dir: t.TempDir()} }, Bad, "there is none: switchyard backup"},
		{"a folder that is gone", func(r *Round) { r.Backups = &backup.Vault{Dir: "/none"} }, Bad, "BACKUP_DIR: stat /none"},
		{"a WAL archive that stands still", func(r *Round) {
			old := time.Now().Add(-time.Hour)
			if err := os.Chtimes(filepath.Join(r.Backups.Dir, "wal", "000000010000000000000001"), old, old); err != nil {
				t.Fatal(err)
			}
		}, Bad, "newest WAL segment"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRound(t)
			tt.spoil(r)
			page := r.Page(t.Context())
			found := false
			for _, s := range page.Sections {
				for _, l := range s.Lines {
					found = found || l.Mark == tt.want && (strings.Contains(l.Says, tt.says) || strings.Contains(l.What, tt.says))
				}
			}
			if !found || page.Worst() == Good {
				t.Errorf("no line %s that says %q:\n%s", tt.want, tt.says, page)
			}
		})
	}
}

func TestAReportHasItsPlots(t *testing.T) {
	history := filepath.Join(t.TempDir(), "deploys.jsonl")
	to := time.Unix(1_700_003_600, 0)
	write(t, history, `{"id":"d7","outcome":"rolled back","color":"blue","image":{"ref":"switchyard:2"},"started":"`+to.Add(-40*time.Minute).UTC().Format(time.RFC3339)+
		`","ended":"`+to.Add(-30*time.Minute).UTC().Format(time.RFC3339)+`","reason":"errors over 5 %"}`+"\n{half a line")
	p := promised(t, map[string]string{
		"sum by (color) (websocket_active": `{"metric":{"color":"blue"},"values":[[1700000000,"5"],[1700001800,"50"],[1700003600,"7"]]}`,
		"ALERTS":                           `{"metric":{"alertname":"HighErrorRate","severity":"critical"},"values":[[1700001000,"1"],[1700001600,"1"]]}`,
		"max_over_time":                    sample("", 50),
	})
	r := &Report{Title: "A slow morning", From: to.Add(-time.Hour), To: to, Class: "P1", History: history}
	dir := filepath.Join(t.TempDir(), "reports", "one")
	path, err := r.Write(t.Context(), &stand{t: t, log: "\n"}, p, dir)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, string(text), "# A slow morning", "Class: **P1**", "| most connections at once | 50 |", "| d7 | switchyard:2 | rolled back | blue |", "| HighErrorRate | critical |",
		"![Open connections, by color](connections.svg)", "Published a second: nothing in this span.", "## Why")
	svg, err := os.ReadFile(filepath.Join(dir, "connections.svg"))
	if err != nil {
		t.Fatal(err)
	}
	if err := xml.Unmarshal(svg, new(any)); err != nil {
		t.Errorf("no XML: %v", err)
	}
	expect(t, string(svg), "<polyline", "d7 rolled back", ">blue<", ">50<")
	// Without Prometheus it says so, and has the rest.
	path, err = r.Write(t.Context(), &stand{t: t, log: "\n"}, gone(t), dir)
	if err != nil {
		t.Fatal(err)
	}
	if text, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	expect(t, string(text), "not known: Prometheus at http://127.0.0.1:1 does not answer", "rolled back")
	if r.From = to; true {
		if _, err := r.Write(t.Context(), &stand{t: t}, p, dir); err == nil {
			t.Error("an empty span was taken")
		}
	}
}

func TestAddressesOfPrometheus(t *testing.T) {
	for _, bad := range []string{"", "localhost:9090", "ftp://x", "http://"} {
		if _, err := NewPrometheus(bad); err == nil || !strings.Contains(err.Error(), "--prometheus must be an address") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
