package http

import (
	"net/http"
	"testing"
)

// internal/ingress has the cases of origins. A handshake of a page that may not connect
// is refused and counted, and the sender behind a trusted proxy is the one that counts.
func TestAPageOfAnotherOriginIsRefused(t *testing.T) {
	const accepted, refused = http.StatusSwitchingProtocols, http.StatusForbidden
	n := startNode(t, func(c *Config) {
		c.AllowedOrigins, c.TrustedProxies = []string{"https://app.example"}, prefixes(loopback)
	})
	for _, tt := range []struct {
		lines []string
		want  int
	}{
		{nil, accepted},
		{[]string{"Origin: http://" + n.addr}, accepted},
		{[]string{"Origin: https://app.example"}, accepted},
		{[]string{"Origin: https://evil.example"}, refused},
		{[]string{"Origin: https://app.example", "Origin: https://app.example"}, refused},
		{[]string{"Origin: https://chat.example", "X-Forwarded-Host: chat.example"}, accepted},
		{[]string{"Origin: https://chat.example", "X-Forwarded-Host: chat.example", "X-Forwarded-Proto: http"}, refused},
	} {
		if got := n.handshakeStatus(tt.lines...); got != tt.want {
			t.Errorf("%q: %d, want %d", tt.lines, got, tt.want)
		}
	}
	if got := n.metric(`websocket_connections_total{result="origin"}`); got != "3" {
		t.Errorf("refused origins counted %q times, want 3", got)
	}
}
