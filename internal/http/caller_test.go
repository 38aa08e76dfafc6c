package http

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"nhooyr.io/websocket"

	"switchyard/internal/testkit"
)

// Log lines have the client's address, not the proxy's.
func TestLogLinesHaveTheClientsAddress(t *testing.T) {
	n := startNode(t, func(c *Config) { c.TrustedProxies = prefixes(loopback) })
	b := n.dial(&websocket.DialOptions{HTTPHeader: http.Header{"X-Forwarded-For": {"198.51.100.9"}, "X-Real-Ip": {"9.9.9.9"}}})
	_ = b.ws.Close(websocket.StatusNormalClosure, "")
	var line map[string]any
	testkit.Eventually(t, "the log line", func() bool {
		for l := range strings.Lines(n.logs.String()) {
			if strings.Contains(l, "connection ended") {
				return json.Unmarshal([]byte(l), &line) == nil
			}
		}
		return false
	})
	if line["remote"] != "198.51.100.9" {
		t.Errorf("line: %v", line)
	}
}
