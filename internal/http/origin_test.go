package http

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"
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

// A page of a listed origin reads a room over HTTP with its user's token: its browser asks
// first, and then shows the page the answer, a refusal too. Calls for backends stay closed
// to pages.
func TestAPageOfAListedOriginReadsHistoryWithAToken(t *testing.T) {
	n := startKeyedNode(t, "", func(c *Config) { c.AllowedOrigins = []string{"https://app.example", "null"} })
	n.call("POST", "/v1/rooms/a/messages", testKey, `{"data":1}`)
	const path = "/v1/rooms/a/messages"
	preflight := func(path, origin string) *http.Response {
		header := http.Header{"Access-Control-Request-Method": {"GET"}, "Access-Control-Request-Headers": {"authorization"}}
		if origin != "" {
			header.Set("Origin", origin)
		}
		res, _ := n.request("OPTIONS", path, header, http.NoBody)
		return res
	}
	token := tokenOf("ann", time.Hour, everyRoom)
	for origin, want := range map[string]int{"https://app.example": 204, "null": 204, "http://" + n.addr: 204, "": 204, "https://evil.example": 403} {
		res := preflight(path, origin)
		allowed := ""
		if want == 204 {
			allowed = origin
		}
		h := res.Header
		if res.StatusCode != want || h.Get("Access-Control-Allow-Origin") != allowed || h.Get("Vary") != "Origin" ||
			(h.Get("Access-Control-Allow-Methods") == "GET") != (want == 204) || (h.Get("Access-Control-Allow-Headers") == "Authorization") != (want == 204) {
			t.Errorf("the preflight of %q: %d %v, want %d", origin, res.StatusCode, h, want)
		}
		for credential, status := range map[string]int{token: 200, "nonsense": 401} {
			header := http.Header{"Authorization": {"Bearer " + credential}}
			if origin != "" {
				header.Set("Origin", origin)
			}
			res, body := n.request("GET", path, header, http.NoBody)
			if res.StatusCode != status || res.Header.Get("Access-Control-Allow-Origin") != allowed || res.Header.Get("Access-Control-Allow-Credentials") != "" {
				t.Errorf("%q reads: %d %v %s, want %d", origin, res.StatusCode, res.Header, body, status)
			}
		}
	}
	for _, closed := range []string{"/v1/messages", "/v1/rooms", "/v1/rooms/a/signals", "/v1/rooms/a/presence", "/v1/users/ann/disconnect", "/ws", "/metrics"} {
		if res := preflight(closed, "https://app.example"); res.StatusCode != http.StatusMethodNotAllowed || res.Header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("the preflight of %s: %d %v, want 405", closed, res.StatusCode, res.Header)
		}
	}
	res, _ := n.request("POST", path, http.Header{"Origin": {"https://app.example"}, "Authorization": {"Bearer " + testKey}}, strings.NewReader(`{"data":2}`))
	if res.StatusCode != http.StatusCreated || res.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("a page sees the answer of a call for backends: %d %v", res.StatusCode, res.Header)
	}
	if res, _ := n.request("DELETE", path, http.Header{}, http.NoBody); strings.Join(res.Header.Values("Allow"), " ") != "GET POST OPTIONS" {
		t.Errorf("Allow: %v", res.Header.Values("Allow"))
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
