package monitoring

import (
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/common/model"

	"switchyard/internal/backup"
	"switchyard/internal/testkit"
	"switchyard/internal/testkit/metrictest"
)

// exported has the labels of each metric: those of a running server, those recorded
// from each exporter in the version that the stack runs, and those that rules record.
type exported map[string]map[string]bool

func (e exported) add(metric string, labels ...string) {
	if e[metric] == nil {
		e[metric] = map[string]bool{}
	}
	for _, l := range labels {
		e[metric][l] = true
	}
}

// scrape adds the metrics of a running server.
func (e exported) scrape(t *testing.T, s *testkit.Server) {
	t.Helper()
	res, page := testkit.Call(t, http.MethodGet, s.URL()+"/metrics", "", "")
	if res.StatusCode != http.StatusOK {
		t.Fatalf("/metrics: %s", res.Status)
	}
	e.read(t, page)
}

// read adds the metrics of a page.
func (e exported) read(t *testing.T, page string) {
	t.Helper()
	for _, s := range metrictest.Parse(t, page).Samples {
		name := string(s.Metric[model.MetricNameLabel])
		e.add(name)
		for label := range s.Metric {
			if label != model.MetricNameLabel {
				e.add(name, string(label))
			}
		}
	}
}

func allExported(t *testing.T) exported {
	t.Helper()
	all := exported{}
	issuer := httptest.NewServer(http.NotFoundHandler()) // metrics about its keys exist even so
	defer issuer.Close()
	s := testkit.StartServer(t, map[string]string{
		"DATABASE_URL": testkit.Postgres(t).URL(), "REDIS_URL": testkit.Redis(t).URL(),
		"COLOR": "blue", "DEPLOYMENT": "blue-1", "API_KEYS": "shop:a-key-of-the-tests-only",
		"AUTH_JWKS_URL": issuer.URL, "AUTH_ANONYMOUS": "*:rw",
	})
	exerciseServer(t, s)
	all.scrape(t, s)
	for _, path := range glob(t, "testdata/*-v*.txt") {
		for line := range strings.Lines(read(t, path)) {
			words := strings.Fields(line)
			all.add(words[0], words[1:]...)
		}
	}
	for _, r := range rules(t) {
		if r.Record == "" {
			continue
		}
		all.add(r.Record)
		for l := range r.Labels {
			all.add(r.Record, l)
		}
		for _, by := range regexp.MustCompile(`by \(([^)]*)\)`).FindAllStringSubmatch(r.Expr, -1) {
			all.add(r.Record, strings.Split(strings.ReplaceAll(by[1], " ", ""), ",")...)
		}
		if !strings.Contains(r.Expr, "sum") { // the record keeps the labels of its expression
			all.add(r.Record, "color")
		}
	}
	// The queries that postgres_exporter is given; TestTheExportersQueriesReturnTheirColumns
	// runs them.
	var queries map[string]struct{ Metrics []map[string]any }
	decode(t, root+"/monitoring/postgres_exporter/queries.yml", &queries)
	for name, q := range queries {
		for _, m := range q.Metrics {
			for column := range m {
				all.add(name+"_"+column, "server")
			}
		}
	}
	// Exported only in a container with a limit: internal/app tests it.
	all.add("switchyard_memory_limit_bytes")
	// The backup writes these for node_exporter.
	repository := backup.Repository{Dir: t.TempDir()}
	if err := repository.WriteMetrics(); err != nil {
		t.Fatal(err)
	}
	all.read(t, read(t, glob(t, repository.Dir+"/metrics/*.prom")[0]))
	// Prometheus itself makes these.
	all.add("ALERTS", "alertname", "alertstate", "severity")
	all.add("up")
	return all
}

// targetLabels has the labels that prometheus.yml gives to targets.
var targetLabels = map[string]bool{"job": true, "instance": true, "color": true}

// assertExported checks that an expression uses only metrics and labels that exist.
func (e exported) assertExported(t *testing.T, where, expr string) {
	t.Helper()
	found := selectors(expr)
	if len(found) == 0 && expr != "vector(1)" {
		t.Errorf("%s names no metric: %s", where, expr)
	}
	for _, s := range found {
		labels, there := e[s.metric]
		if !there {
			t.Errorf("%s names %s, which no program exports", where, s.metric)
			continue
		}
		for _, l := range s.labels {
			if !labels[l] && !targetLabels[l] {
				t.Errorf("%s selects %s by %s, a label that it does not have", where, s.metric, l)
			}
		}
	}
}

// A rule or a panel with a metric that no program exports stays silent, unnoticed.
func TestRulesAndPanelsUseExportedMetrics(t *testing.T) {
	t.Parallel()
	all := allExported(t)
	for _, r := range rules(t) {
		all.assertExported(t, r.file+": "+r.Alert+r.Record, r.Expr)
	}
	for _, d := range dashboards(t) {
		for _, p := range d.Panels {
			for _, target := range p.Targets {
				all.assertExported(t, d.file+": "+p.Title, target.Expr)
			}
		}
		for _, a := range d.Annotations.List {
			all.assertExported(t, d.file+": annotation "+a.Name, a.Expr)
		}
	}
}

// The metrics of each exporter were recorded from the version that the stack runs.
func TestRecordedExportersMatchTheStack(t *testing.T) {
	t.Parallel()
	compose := read(t, root+"/deploy/compose/docker-compose.prod.yml")
	for _, path := range glob(t, "testdata/*-v*.txt") {
		program, version, _ := strings.Cut(strings.TrimSuffix(filepath.Base(path), ".txt"), "-v")
		if image := program + ":v" + version; !strings.Contains(compose, image+"\n") {
			t.Errorf("%s: the stack does not run %s; record it again (test/stack, -record)", path, image)
		}
	}
}
