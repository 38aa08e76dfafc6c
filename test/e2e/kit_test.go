package e2e

import (
	"context"
	"net/http"
	"testing"
	"time"

	"switchyard/internal/testkit"
	"switchyard/internal/testkit/metrictest"
)

// apiKey is the server calls' key in tests that need just one.
const apiKey = "a-key-of-the-tests-only"

// run runs the service's program to its end, and returns its exit code and what
// it printed.
func run(t *testing.T, env []string, args ...string) (int, string) {
	t.Helper()
	p, err := testkit.Start(testkit.Program{Path: testkit.BuildServer(t), Args: args, Env: env})
	if err != nil {
		t.Fatal(err)
	}
	code := p.ExitCode(t, testkit.Timeout)
	return code, p.Output()
}

// post makes a server call with apiKey.
func post(t *testing.T, s *testkit.Server, path, body string) (*http.Response, string) {
	t.Helper()
	return testkit.Call(t, http.MethodPost, s.URL()+path, apiKey, body)
}

// readiness returns the status and the body of /readyz.
func readiness(t *testing.T, s *testkit.Server) (status int, body string) {
	t.Helper()
	res, body := testkit.Call(t, http.MethodGet, s.URL()+"/readyz", "", "")
	return res.StatusCode, body
}

// metric returns the value of one series of a node, 0 when there is none.
func metric(t *testing.T, s *testkit.Server, series string) float64 {
	t.Helper()
	value, _ := scrape(t, s).Value(t, series)
	return value
}

// scrape reads the metrics of a node.
func scrape(t *testing.T, s *testkit.Server) metrictest.Page {
	t.Helper()
	return metrictest.Parse(t, testkit.Get(t, s.URL()+"/metrics"))
}

// pagePollInterval is how often pollPage reads a page.
const pagePollInterval = 50 * time.Millisecond

// pollPage is testkit.Eventually for a condition that reads a page of a node, such
// as /metrics. It reads less often: a page costs a server with the race detector
// some milliseconds, which would delay what the test waits for.
func pollPage(t *testing.T, what string, ok func() bool) {
	t.Helper()
	testkit.Eventually(t, what, func() bool {
		if ok() {
			return true
		}
		<-time.After(pagePollInterval)
		return false
	})
}

// waitFor is testkit.Eventually with a limit of its own, for scenarios whose long
// form takes more than a minute.
func waitFor(ctx context.Context, t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(pagePollInterval)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited for %s: %v", what, ctx.Err())
		}
	}
}
