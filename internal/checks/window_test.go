package checks

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"switchyard/internal/stack"
	"switchyard/internal/testkit"
)

// A testSeries is a series of Prometheus that grew by a value.
type testSeries struct {
	name, label, value string
	increase           float64
	labels             string // further labels, as `code="503"`
}

var (
	selector = regexp.MustCompile(`increase\((\w+)(?:\{([^}]*)\})?\[30s\]\)`)
	matcher  = regexp.MustCompile(`(\w+)(=~|!~|=|!=)"([^"]*)"`)
)

// matches reports whether a selector of PromQL selects the series.
func (s testSeries) matches(name, matchers string) bool {
	if name != s.name {
		return false
	}
	for _, m := range matcher.FindAllStringSubmatch(matchers, -1) {
		value := ""
		if m[1] == s.label {
			value = s.value
		} else if _, after, ok := strings.Cut(s.labels, m[1]+`="`); ok {
			value, _, _ = strings.Cut(after, `"`)
		}
		pattern := m[3]
		if !strings.HasSuffix(m[2], "~") {
			pattern = regexp.QuoteMeta(pattern)
		}
		if regexp.MustCompile("^(?:"+pattern+")$").MatchString(value) == strings.HasPrefix(m[2], "!") {
			return false
		}
	}
	return true
}

// sumOf adds up the increase of all series that a query selects.
func sumOf(series []testSeries, query string) (sum float64) {
	for _, m := range selector.FindAllStringSubmatch(query, -1) {
		for _, s := range series {
			if s.matches(m[1], m[2]) {
				sum += s.increase
			}
		}
	}
	return sum
}

// Server errors are `internal` and `unavailable` answers, 5xx and refused
// handshakes (docs/deploy.md). A client's bad input never counts, nor do requests of
// health checks. Each series grows by another power of two, so that a sum names its
// parts.
func TestOnlyServerErrorsCountAsErrors(t *testing.T) {
	series := []testSeries{
		{name: "websocket_errors_total", label: "type", value: "internal", increase: 1},
		{name: "websocket_errors_total", label: "type", value: "unavailable", increase: 2},
		{name: "websocket_connections_total", label: "result", value: "refused", increase: 4},
		{name: "http_requests_total", label: "code", value: "500", labels: `route="/rooms"`, increase: 8},
		{name: "http_requests_total", label: "code", value: "503", labels: `route="/rooms"`, increase: 16},
		// Operations that succeed, or fail by the client's fault:
		{name: "websocket_errors_total", label: "type", value: "invalid", increase: 32},
		{name: "websocket_connections_total", label: "result", value: "accepted", increase: 64},
		{name: "http_requests_total", label: "code", value: "400", labels: `route="/rooms"`, increase: 128},
		{name: "websocket_messages_received_total", increase: 256},
		// No operations:
		{name: "websocket_connections_total", label: "result", value: "unauthorized", increase: 512},
		{name: "websocket_connections_total", label: "result", value: "origin", increase: 1024},
		{name: "http_requests_total", label: "code", value: "503", labels: `route="/readyz"`, increase: 2048},
		{name: "http_requests_total", label: "code", value: "500", labels: `route="/ws"`, increase: 4096},
	}
	answers := testkit.Transport(func(_, query string) (int, string) {
		return 200, fmt.Sprintf(`{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1795699506,"%v"]}]}}`, sumOf(series, query))
	})
	p := NewHostMetrics(&stack.Stack{PrometheusURL: "http://prometheus:9090", Client: &http.Client{Transport: answers}})
	w, err := p.Window(t.Context(), "blue-1", 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if w.Errors != 1+2+4+8+16 {
		t.Errorf("the sum of the errors is %v, want %v", w.Errors, 1+2+4+8+16)
	}
	if want := float64(4 + 8 + 16 + 64 + 128 + 256); w.Operations != want {
		t.Errorf("the sum of the operations is %v, want %v", w.Operations, want)
	}
}

func TestAMetricsWindowFromPrometheus(t *testing.T) {
	testkit.FakeDocker(t, nil)
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
	s.Client = &http.Client{Transport: testkit.Transport(func(string, string) (int, string) {
		return 422, `{"status":"error","errorType":"execution","error":"query processing would load too many samples"}`
	})}
	if _, err := NewHostMetrics(s).Window(t.Context(), "blue-1", time.Minute); err == nil || !strings.HasSuffix(err.Error(), "Prometheus at http://prometheus:9090: query processing would load too many samples") {
		t.Errorf("a query that Prometheus refuses to compute: %v", err)
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
