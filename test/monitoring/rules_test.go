package monitoring

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const promPackage = "prometheus" // Debian's, for promtool

// Prometheus accepts the files as the stack mounts them, with the targets that setup
// writes.
func TestPrometheusAcceptsItsConfiguration(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(prometheus)); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "prometheus.yml")
	text := strings.ReplaceAll(read(t, config), "/etc/prometheus-targets", dir+"/targets")
	if err := os.Mkdir(filepath.Join(dir, "targets"), 0o700); err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{config: text, dir + "/targets/domain.json": `[{"targets": ["chat.example.com"]}]`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := runTool(t, promPackage, "promtool", "check", "config", "--lint-fatal", config); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// promTests is a file of promtool's tests of rules.
type promTests struct {
	RuleFiles []string `yaml:"rule_files"`
	Tests     []struct {
		Name   string
		Alerts []struct {
			Alertname string
			Exp       []struct {
				Labels      map[string]string `yaml:"exp_labels"`
				Annotations map[string]string `yaml:"exp_annotations"`
			} `yaml:"exp_alerts"`
		} `yaml:"alert_rule_test"`
		Exprs []struct{ Expr string } `yaml:"promql_expr_test"`
	}
}

func TestRulesDoWhatTheirTestsSay(t *testing.T) {
	t.Parallel()
	for _, path := range glob(t, prometheus+"/tests/*.yml") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			if out, err := runTool(t, promPackage, "promtool", "test", "rules", path); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// Each alert fires in some test, in each of its severities, and is silent in another.
// Each recording rule is queried in some test.
func TestEveryRuleIsTested(t *testing.T) {
	t.Parallel()
	fires, silent, queried := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, path := range glob(t, prometheus+"/tests/*.yml") {
		var file promTests
		decode(t, path, &file)
		for _, test := range file.Tests {
			for _, a := range test.Alerts {
				silent[a.Alertname] = silent[a.Alertname] || len(a.Exp) == 0
				for _, exp := range a.Exp {
					fires[a.Alertname+" "+exp.Labels["severity"]] = true
				}
			}
			for _, e := range test.Exprs {
				for _, s := range selectors(e.Expr) {
					queried[s.metric] = true
				}
			}
		}
	}
	for _, r := range rules(t) {
		switch {
		case r.Record != "" && !queried[r.Record]:
			t.Errorf("%s: no test queries %s", r.file, r.Record)
		case r.Alert != "" && !fires[r.Alert+" "+r.Labels["severity"]]:
			t.Errorf("%s: %s (%s) fires in no test", r.file, r.Alert, r.Labels["severity"])
		case r.Alert != "" && r.Alert != "Watchdog" && !silent[r.Alert]:
			t.Errorf("%s: %s is silent in no test", r.file, r.Alert)
		}
	}
}

// The alerts that the operations guide documents have its thresholds and durations.
func TestDocumentedAlertThresholds(t *testing.T) {
	t.Parallel()
	known := map[string][4]string{
		"HighErrorRate":       {"> 0.1", "2m", "critical"},
		"HighConnectionCount": {"websocket_active_connections > 8000", "5m", "warning"},
		"HighMemoryUsage":     {"/ node_memory_MemTotal_bytes > 0.9", "5m", "warning"},
		"ServiceDown":         {"up == 0", "1m", "critical"},
	}
	for _, r := range rules(t) {
		if want, there := known[r.Alert]; there {
			delete(known, r.Alert)
			if !strings.HasSuffix(r.Expr, want[0]) || r.For != want[1] || r.Labels["severity"] != want[2] {
				t.Errorf("%s: %s for %s, %s; want %v", r.Alert, r.Expr, r.For, r.Labels["severity"], want)
			}
		}
	}
	for name := range known {
		t.Errorf("there is no alert %s", name)
	}
}

// Operators' saved queries select the jobs by the names that the operations guide gave
// them.
func TestDocumentedJobs(t *testing.T) {
	t.Parallel()
	var file struct {
		Jobs []struct {
			Name string `yaml:"job_name"`
		} `yaml:"scrape_configs"`
	}
	decode(t, prometheus+"/prometheus.yml", &file)
	scraped := map[string]bool{}
	for _, job := range file.Jobs {
		scraped[job.Name] = true
	}
	for _, name := range []string{"websocket-app", "redis", "postgres", "traefik"} {
		if !scraped[name] {
			t.Errorf("there is no job %s", name)
		}
	}
	// A job that rules, inhibitions or panels select is one of prometheus.yml.
	selected := regexp.MustCompile(`job=~?\\?"([^"\\]+)`)
	for _, path := range slices.Concat(glob(t, prometheus+"/rules/*.yml"), glob(t, root+"/monitoring/grafana/dashboards/*.json"), []string{alertmanagerDir + "/alertmanager.yml"}) {
		for _, found := range selected.FindAllStringSubmatch(read(t, path), -1) {
			for name := range strings.SplitSeq(found[1], "|") {
				if !scraped[name] {
					t.Errorf("%s selects job %s, which is not scraped", path, name)
				}
			}
		}
	}
}

var (
	heading = regexp.MustCompile(`(?m)^#{1,6} +(.+?)\s*$`)
	noSlug  = regexp.MustCompile("[^a-z0-9 _-]")
)

// anchors returns the anchors of a page's headings, as GitHub makes them.
func anchors(t *testing.T, path string) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(read(t, path), -1) {
		slug := noSlug.ReplaceAllString(strings.ToLower(m[1]), "")
		all[strings.ReplaceAll(slug, " ", "-")] = true
	}
	return all
}

// Each alert says what is wrong and where, and links to what to do.
func TestEveryAlertSaysWhatToDo(t *testing.T) {
	t.Parallel()
	const page = "docs/runbook.md"
	there := anchors(t, root+"/"+page)
	named := map[string]bool{}
	for _, r := range rules(t) {
		if r.Alert == "" {
			continue
		}
		named[strings.ToLower(r.Alert)] = true
		where := r.file + ": " + r.Alert
		if !slices.Contains([]string{"critical", "warning", "info"}, r.Labels["severity"]) {
			t.Errorf("%s has severity %q", where, r.Labels["severity"])
		}
		if s := r.Annotations["summary"]; s == "" || strings.Contains(s, "{{") {
			t.Errorf("%s: the summary must be the same for all alerts of one notification: %q", where, s)
		}
		if len(r.Annotations["description"]) < 20 {
			t.Errorf("%s: description %q", where, r.Annotations["description"])
		}
		file, anchor, _ := strings.Cut(r.Annotations["runbook_url"], "#")
		if file != page || anchor != strings.ToLower(r.Alert) || !there[anchor] {
			t.Errorf("%s: there is no runbook at %q", where, r.Annotations["runbook_url"])
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^## (\w+)$`).FindAllStringSubmatch(read(t, root+"/"+page), -1) {
		if !named[strings.ToLower(m[1])] {
			t.Errorf("%s has a runbook for %s, and there is no such alert", page, m[1])
		}
	}
}
