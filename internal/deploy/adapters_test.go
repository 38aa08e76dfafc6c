package deploy

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"switchyard/internal/stack"
	"switchyard/internal/testkit"
)

func TestTheOverviewShowsTheStatusOfEachColor(t *testing.T) {
	at := func(phases ...string) (all []stack.Replica) {
		for i, phase := range phases {
			all = append(all, stack.Replica{Name: fmt.Sprintf("app-%d", i+1), Running: true, Health: stack.Health{Reachable: true, Ready: phase == "", Drain: phase}})
		}
		return all
	}
	for says, replicas := range map[string][]stack.Replica{
		"blue     serving, 3 of 3 replicas":  at("", "", ""),
		"         app-2: drained":            at("", "drained", ""),
		"blue     draining, 0 of 2 replicas": at("moving", "drained"),
		"blue     drained, 0 of 2 replicas":  at("drained", "drained"),
		"blue     stopped":                   nil,
	} {
		o := &Overview{Route: &stack.Route{Live: stack.Blue}, Traefik: &stack.BalancerStatus{Route: stack.Route{Live: stack.Blue}}, Replicas: map[stack.Color][]stack.Replica{stack.Blue: replicas}}
		if text := o.String(); !strings.Contains(text, says+"\n") && !strings.Contains(text, says+" ready") {
			t.Errorf("the overview does not say %q:\n%s", says, text)
		}
	}
}

// A migration ends at migrate_limit, and at no other bound.
func TestAMigrationEndsAtItsLimit(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "docker"), []byte("#!/bin/sh\nexec sleep infinity\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	d := newModelEnv(t).deployer(stateFolder(t))
	d.Deps.Images, d.Settings.MigrateLimit = stack.Images{Stack: &stack.Stack{Dir: dir}}, 50*time.Millisecond
	migrate := d.steps(new(Journal), nil)[0]
	if _, err := migrate.do(ctx); migrate.name != "migrate" || err == nil || !strings.Contains(err.Error(), "no end within 50ms") {
		t.Errorf("%s: %v", migrate.name, err)
	}
}

func TestAMetricsWindowFromPrometheus(t *testing.T) {
	var asked []string
	s := &stack.Stack{PrometheusURL: "http://prometheus:9090", Client: &http.Client{Transport: testkit.Transport(func(url, query string) (int, string) {
		asked = append(asked, query)
		return testkit.RecordedTransport(t)(url, query)
	})}}
	w, err := NewHostMetrics(s).Window(t.Context(), "blue-1", 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if w.Operations != 1741 || w.Errors != 0 || w.Publishes != 799.2 || w.P95.Round(time.Millisecond) != 172*time.Millisecond ||
		w.CanaryP95.Round(time.Millisecond) != 168*time.Millisecond || w.Replicas != 3 || w.MemoryBytes < .032*(1<<30) || w.MemoryBytes > .033*(1<<30) {
		t.Errorf("%+v", w)
	}
	for _, q := range asked {
		if !strings.Contains(q, `switchyard_build_info{deployment="blue-1"}`) || !strings.Contains(q, "[30s]") && !strings.HasPrefix(q, "process_") {
			t.Errorf("Prometheus was queried for %s", q)
		}
	}
	if alerts, err := s.Prometheus().Alerts(t.Context()); err != nil || len(alerts) != 1 || alerts[0].Name != "Watchdog" || alerts[0].Severity != "info" {
		t.Errorf("%+v, %v", alerts, err)
	}
	for status, says := range map[int]string{0: "connection refused", 503: "Prometheus at http://prometheus:9090 does not answer"} {
		s.Client = &http.Client{Transport: testkit.Transport(func(string, string) (int, string) {
			return status, `{"status":"error","errorType":"unavailable","error":"starting"}`
		})}
		if _, err := NewHostMetrics(s).Window(t.Context(), "blue-1", time.Minute); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("status %d: %v", status, err)
		}
	}
}

// Prometheus' address is found again after a window that failed: a container that was
// created again has another one.
func TestPrometheusIsFoundAgainIfItDoesNotAnswer(t *testing.T) {
	down, found := false, 0
	recorded := testkit.RecordedTransport(t)
	h := NewHostMetrics(&stack.Stack{Client: &http.Client{Transport: testkit.Transport(func(url, query string) (int, string) {
		if down {
			return 0, ""
		}
		return recorded(url, query)
	})}})
	h.FindURL = func(context.Context) (string, error) { found++; return "http://prometheus:9090", nil }
	for i, want := range []struct {
		down  bool
		found int
	}{{false, 1}, {false, 1}, {true, 1}, {false, 2}} {
		down = want.down
		if _, err := h.Window(t.Context(), "blue-1", time.Minute); (err != nil) != want.down || found != want.found {
			t.Errorf("window %d: %v; found %d times, want %d", i, err, found, want.found)
		}
	}
}

// withReplaced replaces a text in all answers.
func withReplaced(old, with string) func(testkit.Transport) testkit.Transport {
	return func(w testkit.Transport) testkit.Transport {
		return func(url, query string) (int, string) {
			status, text := w(url, query)
			return status, strings.ReplaceAll(text, old, with)
		}
	}
}

// withoutPort refuses connections to a port.
func withoutPort(port string) func(testkit.Transport) testkit.Transport {
	return func(w testkit.Transport) testkit.Transport {
		return func(url, query string) (int, string) {
			if strings.Contains(url, ":"+port+"/") {
				return 0, ""
			}
			return w(url, query)
		}
	}
}
