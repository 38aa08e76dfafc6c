package http

import (
	"bufio"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"switchyard/internal/testkit"
)

// handshakeStatus sends a WebSocket handshake with the given header lines, and
// returns the status of the answer.
func (n *node) handshakeStatus(lines ...string) int {
	n.t.Helper()
	c, err := n.dialRaw(n.addr)
	if err != nil {
		n.t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(testkit.Timeout))
	all := []string{"Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="}
	all = append(all, lines...)
	if !strings.Contains(strings.ToLower(strings.Join(all, "\n")), "\nhost:") {
		all = append(all, "Host: "+n.addr)
	}
	fmt.Fprintf(c, "GET /ws HTTP/1.1\r\n%s\r\n\r\n", strings.Join(all, "\r\n"))
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		n.t.Fatalf("%q: %v", lines, err)
	}
	return res.StatusCode
}

const loopback = "127.0.0.0/8"

func prefixes(list ...string) (all []netip.Prefix) {
	for _, p := range list {
		all = append(all, netip.MustParsePrefix(p))
	}
	return all
}

const accepted, refused = http.StatusSwitchingProtocols, http.StatusForbidden

func TestOrigins(t *testing.T) {
	n := startNode(t, func(c *Config) {
		c.AllowedOrigins = []string{
			"https://app.example", "https://*.pages.example", "https://*.odd.example:8443", "HTTP://Mixed.Example:80",
			"capacitor://localhost", "http://[::1]:8000", "https://dotted.example.",
		}
	})
	for _, tt := range []struct {
		name   string
		origin string
		want   int
	}{
		{"its own", "http://" + n.addr, accepted},
		{"its own, behind TLS", "https://" + n.addr, accepted},
		{"its own, another port", "http://127.0.0.1:1", refused},
		{"its own, no port", "http://127.0.0.1", refused},
		{"its own, another scheme", "capacitor://" + n.addr, refused},
		{"listed", "https://app.example", accepted},
		{"listed, with the default port of https", "https://app.example:443", accepted},
		{"another scheme", "http://app.example", refused},
		{"the scheme of a WebSocket", "wss://app.example", refused},
		{"another port", "https://app.example:444", refused},
		{"the other scheme's port", "https://app.example:80", refused},
		{"in capitals", "HTTPS://APP.example", accepted},
		{"listed in capitals, with its port", "http://mixed.example", accepted},
		{"a dot at the end", "https://app.example.", refused},
		{"listed with the dot", "https://dotted.example.", accepted},
		{"without the listed dot", "https://dotted.example", refused},
		{"a listed name with a suffix", "https://app.example.evil", refused},
		{"a listed name with a prefix", "https://evilapp.example", refused},
		{"below a listed name", "https://x.app.example", refused},
		{"a pattern", "https://pr-12.pages.example", accepted},
		{"a pattern's bare name", "https://pages.example", refused},
		{"a pattern's empty label", "https://.pages.example", refused},
		{"a pattern, two labels", "https://a.b.pages.example", refused},
		{"a pattern, another scheme", "http://a.pages.example", refused},
		{"a pattern, another port", "https://a.pages.example:8443", refused},
		{"a pattern with a suffix", "https://a.pages.example.evil", refused},
		{"a pattern without its dot", "https://evilpages.example", refused},
		{"a pattern with a port", "https://a.odd.example:8443", accepted},
		{"a pattern with a port, without it", "https://a.odd.example", refused},
		{"a star itself", "https://*.pages.example", refused},
		{"an app's scheme", "capacitor://localhost", accepted},
		{"an IPv6 address", "http://[::1]:8000", accepted},
		{"an IPv6 address, written at length", "http://[0:0:0:0:0:0:0:1]:8000", accepted},
		{"an IPv6 address with a zone", "http://[::1%25eth0]:8000", refused},
		{"an IPv6 address without its bracket", "http://[::1:8000", refused},
		{"null", "null", refused},
		{"nothing", "", refused},
		{"a user", "https://app.example@evil.example", refused},
		{"a user before the listed name", "https://evil@app.example", refused},
		{"a user with a password", "https://evil.example:x@app.example", refused},
		{"a path", "https://app.example/", refused},
		{"a query", "https://app.example?x", refused},
		{"a fragment", "https://evil.example#.pages.example", refused},
		{"a backslash", `https://evil.example\.pages.example`, refused},
		{"an escape", "https://app%2eexample", refused},
		{"an international name in Unicode", "https://\u0430pp.example", refused},
		{"a tab", "https://app\t.example", refused},
		{"two in one line", "https://app.example https://evil.example", refused},
		{"two with a comma", "https://app.example, https://evil.example", refused},
		{"no scheme", "app.example", refused},
		{"an empty scheme", "://app.example", refused},
		{"no host", "https://", refused},
		{"an empty port", "https://app.example:", refused},
		{"port 0", "https://app.example:0", refused},
		{"a port with a leading zero", "https://app.example:0443", refused},
		{"a port out of range", "https://app.example:65979", refused}, // 443 + 65536
		{"a sign before the port", "https://app.example:+443", refused},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n.t = t
			if got := n.handshakeStatus("Origin: " + tt.origin); got != tt.want {
				t.Errorf("%q: %d, want %d", tt.origin, got, tt.want)
			}
		})
	}
	n.t = t
	if got := n.handshakeStatus(); got != accepted {
		t.Errorf("without an origin: %d", got)
	}
	if got := n.handshakeStatus("Origin: https://app.example", "Origin: https://app.example"); got != refused {
		t.Errorf("two lines: %d", got)
	}
	if got := n.handshakeStatus("Origin: https://app.example", "origin: https://evil.example"); got != refused {
		t.Errorf("two lines, the second one evil: %d", got)
	}
	if got := n.metric(`websocket_connections_total{result="origin"}`); got == "" || got == "0" {
		t.Errorf("refused origins counted %q times", got)
	}
}

func TestTheNullOriginMustBeListed(t *testing.T) {
	n := startNode(t, func(c *Config) { c.AllowedOrigins = []string{"null"} })
	if got := n.handshakeStatus("Origin: null"); got != accepted {
		t.Errorf("listed: %d", got)
	}
	for _, origin := range []string{"NULL", "null://", "https://null"} {
		if got := n.handshakeStatus("Origin: " + origin); got != refused {
			t.Errorf("%s: %d", origin, got)
		}
	}
}

// Behind a proxy that ends TLS, the service's own origin is the one that the
// browser sees. Only a trusted proxy may name it.
func TestTheServicesOwnOriginBehindAProxy(t *testing.T) {
	trusted := startNode(t, func(c *Config) { c.TrustedProxies = prefixes(loopback) })
	stranger := startNode(t, nil)
	const page = "Origin: https://chat.example"
	for _, tt := range []struct {
		name           string
		lines          []string
		trusted, alone int
	}{
		{"the host is kept", []string{page, "Host: chat.example", "X-Forwarded-Proto: https"}, accepted, accepted},
		{"with Traefik's scheme for a WebSocket", []string{page, "Host: chat.example", "X-Forwarded-Proto: wss"}, accepted, accepted},
		{"a page without TLS, a socket with it", []string{"Origin: http://chat.example", "Host: chat.example", "X-Forwarded-Proto: https"}, refused, accepted},
		{"a page with TLS, a socket without", []string{page, "Host: chat.example", "X-Forwarded-Proto: http"}, refused, accepted},
		{"no scheme is given", []string{page, "Host: chat.example"}, accepted, accepted},
		{"an unknown scheme", []string{page, "Host: chat.example", "X-Forwarded-Proto: gopher"}, refused, accepted},
		{"two schemes", []string{page, "Host: chat.example", "X-Forwarded-Proto: https, http"}, refused, accepted},
		{"two lines of schemes", []string{page, "Host: chat.example", "X-Forwarded-Proto: https", "X-Forwarded-Proto: https"}, refused, accepted},
		{"the host is rewritten", []string{page, "Host: backend:8000", "X-Forwarded-Host: chat.example"}, accepted, refused},
		{"the host is rewritten, with its port", []string{page, "Host: backend:8000", "X-Forwarded-Host: chat.example:443"}, accepted, refused},
		{"the host is rewritten, twice", []string{page, "Host: backend:8000", "X-Forwarded-Host: chat.example, evil.example"}, refused, refused},
		{"a forwarded host that differs", []string{page, "Host: chat.example", "X-Forwarded-Host: evil.example"}, refused, accepted},
		{"an empty forwarded host", []string{page, "Host: chat.example", "X-Forwarded-Host: "}, refused, accepted},
		{"headers that are not read", []string{page, "Host: backend", "Forwarded: host=chat.example;proto=https", "X-Host: chat.example"}, refused, refused},
	} {
		t.Run(tt.name, func(t *testing.T) {
			trusted.t, stranger.t = t, t
			if got := trusted.handshakeStatus(tt.lines...); got != tt.trusted {
				t.Errorf("from a trusted proxy: %d, want %d", got, tt.trusted)
			}
			if got := stranger.handshakeStatus(tt.lines...); got != tt.alone {
				t.Errorf("from anybody: %d, want %d", got, tt.alone)
			}
		})
	}
}
