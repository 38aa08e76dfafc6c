package http

import (
	"net/http"
	"testing"

	"nhooyr.io/websocket"
)

// Log lines have the client's address, not the proxy's.
func TestLogLinesHaveTheClientsAddress(t *testing.T) {
	n := startNode(t, func(c *Config) { c.TrustedProxies = prefixes(loopback) })
	b := n.dial(&websocket.DialOptions{HTTPHeader: http.Header{"X-Forwarded-For": {"198.51.100.9"}, "X-Real-Ip": {"9.9.9.9"}}})
	_ = b.ws.Close(websocket.StatusNormalClosure, "")
	line := n.logLine("connection ended")
	if line["remote"] != "198.51.100.9" {
		t.Errorf("line: %v", line)
	}
}
