//go:build stack

package stack

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"nhooyr.io/websocket"

	"switchyard/internal/load"
)

var record = flag.Bool("record", false, "record the metrics of the stack's exporters for test/monitoring")

// A series is one element of Prometheus' answer to a query.
type series struct {
	Metric map[string]string
	Value  [2]any // a time, and a number as text
}

// queryPrometheus queries the stack's Prometheus for the present.
func queryPrometheus(t *testing.T, expr string) []series {
	t.Helper()
	var answer struct{ Data struct{ Result []series } }
	getLocal(t, sharedStack.prometheus, "/api/v1/query?"+url.Values{"query": {expr}}.Encode(), &answer)
	return answer.Data.Result
}

// A query is one of a panel, with Grafana's variables filled in.
type query struct{ where, expr string }

func panelQueries(t *testing.T) (all []query) {
	t.Helper()
	paths, err := filepath.Glob(root + "/monitoring/grafana/dashboards/*.json")
	if err != nil || len(paths) != 3 {
		t.Fatalf("dashboards %v, %v", paths, err)
	}
	fill := strings.NewReplacer("$__rate_interval", "1m", "$color", "blue|green")
	for _, path := range paths {
		var d struct {
			Title  string
			Panels []struct {
				Title   string
				Targets []struct{ Expr string }
			}
		}
		if err := json.Unmarshal([]byte(read(t, path)), &d); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		for _, p := range d.Panels {
			for _, target := range p.Targets {
				all = append(all, query{d.Title + ": " + p.Title, fill.Replace(target.Expr)})
			}
		}
	}
	return all
}

// Under load, every query of every panel returns a number.
func TestEveryPanelHasData(t *testing.T) {
	sharedStack.trustForwardedFor(t)
	run := sharedStack.startRun(t, load.Plan{Clients: 50, Rooms: 5, Rate: 50}, 50)
	defer stopAndAssertClean(t, run)
	sharedStack.generateActivity(t)
	// A replica of the idle color, which has no clients, is drained and undrained.
	_, idle := sharedStack.liveColor(t)
	out, err := sharedStack.compose("exec", "-T", "--index", "1", "app_"+idle, "/server", "drain")
	must(t, out, err)
	out, err = sharedStack.compose("exec", "-T", "--index", "1", "app_"+idle, "/server", "undrain")
	must(t, out, err)

	queries := panelQueries(t)
	eventuallyWithin(t, 4*time.Minute, "data for every panel", func() error {
		sharedStack.generateActivity(t) // a rate needs activity between two scrapes
		var empty []string
		for _, q := range queries {
			if !slices.ContainsFunc(queryPrometheus(t, q.expr), func(s series) bool { return s.Value[1] != "NaN" }) {
				empty = append(empty, q.where+": "+q.expr)
			}
		}
		if len(empty) > 0 {
			return fmt.Errorf("%d of %d queries have no data:\n%s", len(empty), len(queries), strings.Join(empty, "\n"))
		}
		return nil
	})
	t.Logf("%d queries of panels have data", len(queries))
}

// generateActivity has a client make a mistake, resume and close, and requests a page and
// an API route.
func (s *stack) generateActivity(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ws, _, err := websocket.Dial(ctx, "wss://"+domain+"/ws", &websocket.DialOptions{
		HTTPClient: s.client(), HTTPHeader: http.Header{"Authorization": {"Bearer " + s.token("visitor")}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	for _, frame := range []string{`{"type":"join","room":"no such name"}`, `{"type":"join","room":"monitoring","after":0}`} {
		if err := ws.Write(ctx, websocket.MessageText, []byte(frame)); err != nil {
			t.Fatal(err)
		}
	}
	for joined := false; !joined; {
		_, frame, err := ws.Read(ctx)
		if err != nil {
			t.Fatal(err)
		}
		joined = strings.Contains(string(frame), `"type":"joined"`)
	}
	_ = ws.Close(websocket.StatusNormalClosure, "")
	for _, path := range []string{"/", "/v1/rooms"} {
		s.get(t, "https://"+domain+path)
	}
}

// No rule fails: two series where a rule expects one show only with real data.
func TestEveryRuleIsEvaluated(t *testing.T) { assertRulesEvaluate(t, 2*time.Minute, 50) }

// test/monitoring checks rules and panels against recorded metrics of the stack's
// exporters. They still export every recorded metric that is used.
func TestExportersExportWhatWasRecorded(t *testing.T) {
	const testdata = root + "/test/monitoring/testdata/"
	files := map[string]string{
		"node-exporter-v1.12.1.txt": "node", "redis_exporter-v1.86.0.txt": "redis", "postgres-exporter-v0.19.1.txt": "postgres",
		"blackbox-exporter-v0.28.0.txt": "blackbox|readyz|site|wss|certificate", "alertmanager-v0.35.0.txt": "alertmanager",
		"prometheus-v3.16.0.txt": "prometheus", "traefik-v3.7.13.txt": "traefik",
	}
	var used strings.Builder
	for _, q := range panelQueries(t) {
		used.WriteString(q.expr + "\n")
	}
	rules, err := filepath.Glob(root + "/monitoring/prometheus/rules/*.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range rules {
		used.WriteString(read(t, path))
	}
	for file, jobs := range files {
		live := exportedBy(t, jobs)
		if *record {
			var text strings.Builder
			for _, metric := range slices.Sorted(maps.Keys(live)) {
				text.WriteString(strings.Join(append([]string{metric}, slices.Sorted(maps.Keys(live[metric]))...), " ") + "\n")
			}
			if err := os.WriteFile(testdata+file, []byte(text.String()), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		for line := range strings.Lines(read(t, testdata+file)) {
			metric, _, _ := strings.Cut(strings.TrimSpace(line), " ")
			if live[metric] == nil && strings.Contains(used.String(), metric) {
				t.Errorf("%s: %s is used, and no target of %s exports it", file, metric, jobs)
			}
		}
	}
}

// exportedBy returns the labels of each metric that Prometheus has from these jobs.
func exportedBy(t *testing.T, jobs string) map[string]map[string]bool {
	t.Helper()
	var answer struct{ Data []map[string]string }
	getLocal(t, sharedStack.prometheus, "/api/v1/series?"+url.Values{"match[]": {`{job=~"` + jobs + `"}`}}.Encode(), &answer)
	all := map[string]map[string]bool{}
	for _, s := range answer.Data {
		metric := s["__name__"]
		if metric == "up" || strings.HasPrefix(metric, "scrape_") || strings.HasPrefix(metric, "ALERTS") || strings.Contains(metric, ":") { // of Prometheus itself
			continue
		}
		if all[metric] == nil {
			all[metric] = map[string]bool{}
		}
		for label := range s {
			if label != "__name__" && label != "job" && label != "instance" {
				all[metric][label] = true
			}
		}
	}
	return all
}
