package http

import (
	"encoding/json"
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
		{[]string{"Origin: https://chat.example:8443", "X-Forwarded-Host: chat.example, chat.example", "X-Forwarded-Proto: https, https", "X-Forwarded-Port: 8443"}, accepted},
	} {
		if got := n.handshakeStatus(tt.lines...); got != tt.want {
			t.Errorf("%q: %d, want %d", tt.lines, got, tt.want)
		}
	}
	if got := n.metric(`websocket_connections_total{result="origin"}`); got != "3" {
		t.Errorf("refused origins counted %q times, want 3", got)
	}
}

// The answer names what was compared, so that a wrong header of a proxy shows.
func TestARefusedOriginIsComparedInTheAnswer(t *testing.T) {
	n := startNode(t, func(c *Config) { c.TrustedProxies = prefixes(loopback) })
	status, body := n.rawGet("/ws", "Host: backend:8000\r\nOrigin: https://chat.example\r\nX-Forwarded-Host: chat.example\r\nX-Forwarded-Proto: https, http\r\n")
	var p problem
	const want = "this origin may not connect; see ALLOWED_ORIGINS: this service is at http://chat.example, the page at https://chat.example"
	if err := json.Unmarshal([]byte(body), &p); err != nil || status != http.StatusForbidden || p.Code != "forbidden" || p.Detail != want {
		t.Errorf("%d %s, want 403 and %q", status, body, want)
	}
}
