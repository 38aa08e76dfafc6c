package e2e

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"switchyard/internal/testkit"
)

// apiKey is the server calls' key in tests that need just one.
const apiKey = "a-long-random-secret"

// run runs the service's program to its end, and returns its exit code and what
// it printed.
func run(t *testing.T, env []string, args ...string) (int, string) {
	t.Helper()
	p, err := testkit.Start(testkit.Program{Path: testkit.BuildServer(t), Args: args, Env: env})
	if err != nil {
		t.Fatal(err)
	}
	err = p.Wait(testkit.Within(t, testkit.Timeout))
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, p.Output()
	case errors.As(err, &exit):
		return exit.ExitCode(), p.Output()
	}
	t.Fatalf("%v: %v\n%s", args, err, p.Output())
	return 0, ""
}

// call makes a request on a connection of its own, and returns the response with
// its body. An empty key sends no credential.
func call(t *testing.T, method, url, key, body string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true // leave no idle connection behind
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}

// get returns the body of a page, whatever its status.
func get(t *testing.T, url string) string {
	t.Helper()
	_, body := call(t, http.MethodGet, url, "", "")
	return body
}

// post makes a server call with apiKey.
func post(t *testing.T, s *testkit.Server, path, body string) (*http.Response, string) {
	t.Helper()
	return call(t, http.MethodPost, s.URL()+path, apiKey, body)
}

// readiness returns the status and the body of /readyz.
func readiness(t *testing.T, s *testkit.Server) (status int, body string) {
	t.Helper()
	res, body := call(t, http.MethodGet, s.URL()+"/readyz", "", "")
	return res.StatusCode, body
}

// metric returns the value of one series of a node, 0 when there is none.
func metric(t *testing.T, s *testkit.Server, series string) float64 {
	t.Helper()
	return parseMetric(get(t, s.URL()+"/metrics"), series)
}

// parseMetric finds a series on a page of metrics.
func parseMetric(page, series string) float64 {
	for line := range strings.Lines(page) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			f, _ := strconv.ParseFloat(strings.TrimSpace(value), 64)
			return f
		}
	}
	return 0
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
