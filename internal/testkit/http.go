package testkit

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

// Call makes a request on a connection of its own, which leaves no goroutine behind, and
// returns the response with its body. An empty key sends no credential.
func Call(tb testing.TB, method, url, key, body string) (*http.Response, string) {
	tb.Helper()
	req, err := http.NewRequestWithContext(tb.Context(), method, url, strings.NewReader(body))
	if err != nil {
		tb.Fatal(err)
	}
	req.Close = true
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		tb.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		tb.Fatal(err)
	}
	return res, string(b)
}

// Get returns the body of a page, whatever its status.
func Get(tb testing.TB, url string) string {
	tb.Helper()
	_, body := Call(tb, http.MethodGet, url, "", "")
	return body
}

// MetricOn returns the value of a series on a page of metrics, "" when it has none.
func MetricOn(page, series string) string {
	for line := range strings.Lines(page) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
