package http

import (
	"net/http"
	"strings"
	"testing"
)

// Over the bound connections are still accepted, to be told by a close code
// that a browser can see; far over it they are refused.
func TestFarTooManyConnections(t *testing.T) {
	n := startNode(t, func(c *Config) { c.MaxConnections = 1 })
	for range 1 + overLimit {
		n.raw("") // reads nothing, so its place is kept while the close waits
	}
	res, body := n.request("GET", "/ws", upgradeHeader(), strings.NewReader(""))
	if res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") != "1" || !strings.Contains(body, `"code":"unavailable"`) {
		t.Errorf("%d %v %s, want 503", res.StatusCode, res.Header, body)
	}
	if got := n.metric(`websocket_connections_total{result="refused"}`); got != "1" {
		t.Errorf("counted %q as refused", got)
	}
}
