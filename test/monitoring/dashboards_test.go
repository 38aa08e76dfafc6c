package monitoring

import (
	"encoding/json"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// A dashboard is one of Grafana's, with the fields that these tests check.
type dashboard struct {
	file        string
	UID         string
	Title       string
	Description string
	Annotations struct {
		List []struct{ Name, Expr string }
	}
	Editable   bool
	Templating struct {
		List []struct {
			Name, Label, Type, Query string
			Refresh                  int
			Current                  struct{ Value string }
		}
	}
	Panels []panel
}

type panel struct {
	ID          int
	Type        string
	Title       string
	Description string
	Datasource  struct{ UID string }
	GridPos     struct{ X, Y, W, H int }
	FieldConfig struct {
		Defaults struct{ Unit string }
	}
	Targets []struct {
		RefID, Expr, LegendFormat string
		Datasource                struct{ UID string }
	}
}

func dashboards(t *testing.T) (all []dashboard) {
	t.Helper()
	for _, path := range glob(t, root+"/monitoring/grafana/dashboards/*.json") {
		d := dashboard{file: filepath.Base(path)}
		if err := json.Unmarshal([]byte(read(t, path)), &d); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		all = append(all, d)
	}
	return all
}

func TestDashboards(t *testing.T) {
	t.Parallel()
	var source struct{ Datasources []struct{ UID, URL string } }
	decode(t, root+"/monitoring/grafana/provisioning/datasources/prometheus.yml", &source)
	uid := source.Datasources[0].UID
	var titles []string
	uids := map[string]bool{}
	for _, d := range dashboards(t) {
		titles = append(titles, d.Title)
		d.assertVariables(t, uid)
		if d.UID == "" || uids[d.UID] || d.Description == "" {
			t.Errorf("%s: uid %q is empty or used twice, or there is no description", d.file, d.UID)
		}
		uids[d.UID] = true
		ids := map[int]bool{}
		for _, p := range d.Panels {
			where := d.file + ": " + p.Title
			if ids[p.ID] || p.ID == 0 || p.Title == "" {
				t.Errorf("%s: id %d is 0 or used twice, or there is no title", where, p.ID)
			}
			ids[p.ID] = true
			if p.Type != "row" {
				p.assertComplete(t, where)
			}
		}
		assertNoOverlap(t, d)
	}
	slices.Sort(titles)
	if want := []string{"Application Performance", "Infrastructure Health", "WebSocket Overview"}; !slices.Equal(titles, want) {
		t.Errorf("dashboards %q, want %q", titles, want)
	}
}

// The rules of github.com/grafana/dashboard-linter that apply are held here. These do not:
// variables named job and instance (the variable is the color, and each query names its
// job), and a unit for tables, whose columns have units of their own.
var (
	panelTypes = []string{"row", "timeseries", "stat", "table"} // graph and singlestat are gone
	units      = []string{"s", "d", "ops", "short", "percentunit", "Bps", "reqps", "bytes", "cps", "pps"}
)

const templatedSource = "${datasource}"

// assertVariables checks that the data source can be chosen, that it is Prometheus unless
// another one is, and that nobody edits what the next start overwrites.
func (d *dashboard) assertVariables(t *testing.T, source string) {
	t.Helper()
	chosen := false
	for _, v := range d.Templating.List {
		chosen = chosen || v.Type == "datasource" && v.Name == "datasource" && v.Label == "Data source" && v.Query == "prometheus" && v.Current.Value == source
		if v.Type == "query" && v.Refresh != 2 {
			t.Errorf("%s: the variable %s is not read anew when the time range changes", d.file, v.Name)
		}
	}
	if !chosen || d.Editable {
		t.Errorf("%s: the data source is no variable, or the dashboard is editable: %+v", d.file, d.Templating)
	}
}

// rawCounter matches a counter that is not in a range; wrongRange a range of a rate that
// does not follow the scrape interval.
var (
	rawCounter = regexp.MustCompile(`_total(\{[^}]*\})?(\s|\)|$)`)
	wrongRange = regexp.MustCompile(`\b(?:rate|irate)\([^\[]*\[(?:[^$]|\$__[^r])`)
)

func (p *panel) assertComplete(t *testing.T, where string) {
	t.Helper()
	source := templatedSource
	if !slices.Contains(panelTypes, p.Type) || !slices.Contains(units, p.FieldConfig.Defaults.Unit) {
		t.Errorf("%s: type %q, unit %q", where, p.Type, p.FieldConfig.Defaults.Unit)
	}
	for _, q := range p.Targets {
		if rawCounter.MatchString(q.Expr) || wrongRange.MatchString(q.Expr) {
			t.Errorf("%s: a counter without rate or increase, or a rate over another range than $__rate_interval: %s", where, q.Expr)
		}
	}
	if p.Description == "" || p.FieldConfig.Defaults.Unit == "" || len(p.Targets) == 0 || p.Datasource.UID != source {
		t.Errorf("%s lacks a description, a unit, a query or its source: %+v", where, p)
	}
	refs := map[string]bool{}
	for _, q := range p.Targets {
		if q.Expr == "" || q.RefID == "" || refs[q.RefID] || q.Datasource.UID != source {
			t.Errorf("%s: query %+v", where, q)
		}
		refs[q.RefID] = true
	}
}

// assertNoOverlap checks that no two panels overlap, and that all lie within the grid.
func assertNoOverlap(t *testing.T, d dashboard) {
	t.Helper()
	for i, p := range d.Panels {
		a := p.GridPos
		if a.W == 0 || a.H == 0 || a.X+a.W > 24 {
			t.Errorf("%s: %s lies at %+v", d.file, p.Title, a)
		}
		for _, other := range d.Panels[:i] {
			b := other.GridPos
			if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
				t.Errorf("%s: %s overlaps %s", d.file, p.Title, other.Title)
			}
		}
	}
}

// Traefik counts a WebSocket when it ends, with its lifetime as duration and 0 as code:
// rules and panels about latency exclude WebSockets.
func TestTraefiksLatencyLeavesWebSocketsOut(t *testing.T) {
	t.Parallel()
	duration := regexp.MustCompile(`traefik_\w+_duration_seconds\w*(\{[^}]*\})?`)
	found := 0
	check := func(where, expr string) {
		for _, m := range duration.FindAllStringSubmatch(expr, -1) {
			found++
			if !strings.Contains(m[1], `protocol!="websocket"`) {
				t.Errorf("%s includes WebSockets: %s", where, m[0])
			}
		}
	}
	for _, r := range rules(t) {
		check(r.file+": "+r.Alert+r.Record, r.Expr)
	}
	for _, d := range dashboards(t) {
		for _, p := range d.Panels {
			for _, q := range p.Targets {
				check(d.file+": "+p.Title, q.Expr)
			}
		}
	}
	if found == 0 {
		t.Error("no rule and no panel uses Traefik's latency")
	}
}
