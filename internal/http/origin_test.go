package http

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// ask sends a WebSocket handshake, each header line as it stands, and returns
// the status of the answer.
func (n *node) ask(lines ...string) int {
	n.t.Helper()
	c, err := net.Dial("tcp", n.addr)
	if err != nil {
		n.t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
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

const in, out = http.StatusSwitchingProtocols, http.StatusForbidden

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
		{"its own", "http://" + n.addr, in},
		{"its own, behind TLS", "https://" + n.addr, in},
		{"its own, another port", "http://127.0.0.1:1", out},
		{"its own, no port", "http://127.0.0.1", out},
		{"its own, another scheme", "capacitor://" + n.addr, out},
		{"listed", "https://app.example", in},
		{"listed, the port that https has anyway", "https://app.example:443", in},
		{"another scheme", "http://app.example", out},
		{"the socket's scheme", "wss://app.example", out},
		{"another port", "https://app.example:444", out},
		{"the other scheme's port", "https://app.example:80", out},
		{"in capitals", "HTTPS://APP.example", in},
		{"listed in capitals, with its port", "http://mixed.example", in},
		{"a dot at the end is another name", "https://app.example.", out},
		{"and listed with it, only so", "https://dotted.example.", in},
		{"without the listed dot", "https://dotted.example", out},
		{"a name that goes on", "https://app.example.evil", out},
		{"a name that begins earlier", "https://evilapp.example", out},
		{"below a listed name", "https://x.app.example", out},
		{"a pattern", "https://pr-12.pages.example", in},
		{"a pattern's bare name", "https://pages.example", out},
		{"a pattern's empty label", "https://.pages.example", out},
		{"a pattern, two labels", "https://a.b.pages.example", out},
		{"a pattern, another scheme", "http://a.pages.example", out},
		{"a pattern, another port", "https://a.pages.example:8443", out},
		{"a pattern goes on", "https://a.pages.example.evil", out},
		{"a pattern without its dot", "https://evilpages.example", out},
		{"a pattern with a port", "https://a.odd.example:8443", in},
		{"a pattern with a port, without it", "https://a.odd.example", out},
		{"a star itself", "https://*.pages.example", out},
		{"an app's scheme", "capacitor://localhost", in},
		{"an IPv6 address", "http://[::1]:8000", in},
		{"an IPv6 address, written at length", "http://[0:0:0:0:0:0:0:1]:8000", in},
		{"an IPv6 address with a zone", "http://[::1%25eth0]:8000", out},
		{"an IPv6 address left open", "http://[::1:8000", out},
		{"null", "null", out},
		{"nothing", "", out},
		{"a user", "https://app.example@evil.example", out},
		{"a user before the listed name", "https://evil@app.example", out},
		{"a user with a password", "https://evil.example:x@app.example", out},
		{"a path", "https://app.example/", out},
		{"a query", "https://app.example?x", out},
		{"a fragment", "https://evil.example#.pages.example", out},
		{"a backslash", `https://evil.example\.pages.example`, out},
		{"an escape", "https://app%2eexample", out},
		{"an international name as it is read", "https://\u0430pp.example", out},
		{"a tab", "https://app\t.example", out},
		{"two in one line", "https://app.example https://evil.example", out},
		{"two with a comma", "https://app.example, https://evil.example", out},
		{"no scheme", "app.example", out},
		{"an empty scheme", "://app.example", out},
		{"no host", "https://", out},
		{"an empty port", "https://app.example:", out},
		{"port 0", "https://app.example:0", out},
		{"a port with a zero in front", "https://app.example:0443", out},
		{"a port out of range", "https://app.example:65979", out}, // 443 + 65536
		{"a sign before the port", "https://app.example:+443", out},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n.t = t
			if got := n.ask("Origin: " + tt.origin); got != tt.want {
				t.Errorf("%q: %d, want %d", tt.origin, got, tt.want)
			}
		})
	}
	n.t = t
	if got := n.ask(); got != in {
		t.Errorf("without an origin: %d", got)
	}
	if got := n.ask("Origin: https://app.example", "Origin: https://app.example"); got != out {
		t.Errorf("two lines: %d", got)
	}
	if got := n.ask("Origin: https://app.example", "origin: https://evil.example"); got != out {
		t.Errorf("two lines, the second one evil: %d", got)
	}
	if got := n.metric(`websocket_connections_total{result="origin"}`); got == "" || got == "0" {
		t.Errorf("refused origins counted %q times", got)
	}
}

func TestNullIsAnOriginOnlyWhereItIsListed(t *testing.T) {
	n := startNode(t, func(c *Config) { c.AllowedOrigins = []string{"null"} })
	if got := n.ask("Origin: null"); got != in {
		t.Errorf("listed: %d", got)
	}
	for _, origin := range []string{"NULL", "null://", "https://null"} {
		if got := n.ask("Origin: " + origin); got != out {
			t.Errorf("%s: %d", origin, got)
		}
	}
}

// Behind a proxy that ends TLS, the service's own origin is the one that the
// browser sees; only a trusted proxy may say what that is.
func TestTheServicesOwnOriginBehindAProxy(t *testing.T) {
	trusted := startNode(t, func(c *Config) { c.TrustedProxies = prefixes(loopback) })
	stranger := startNode(t, nil)
	const page = "Origin: https://chat.example"
	for _, tt := range []struct {
		name           string
		lines          []string
		trusted, alone int
	}{
		{"the host is passed on", []string{page, "Host: chat.example", "X-Forwarded-Proto: https"}, in, in},
		{"as Traefik says it of a WebSocket", []string{page, "Host: chat.example", "X-Forwarded-Proto: wss"}, in, in},
		{"a page that came without TLS", []string{"Origin: http://chat.example", "Host: chat.example", "X-Forwarded-Proto: https"}, out, in},
		{"a page with TLS, a socket without", []string{page, "Host: chat.example", "X-Forwarded-Proto: http"}, out, in},
		{"nobody told the scheme", []string{page, "Host: chat.example"}, in, in},
		{"no scheme that we know", []string{page, "Host: chat.example", "X-Forwarded-Proto: gopher"}, out, in},
		{"two schemes", []string{page, "Host: chat.example", "X-Forwarded-Proto: https, http"}, out, in},
		{"two lines of schemes", []string{page, "Host: chat.example", "X-Forwarded-Proto: https", "X-Forwarded-Proto: https"}, out, in},
		{"the host is rewritten", []string{page, "Host: backend:8000", "X-Forwarded-Host: chat.example"}, in, out},
		{"the host is rewritten, with its port", []string{page, "Host: backend:8000", "X-Forwarded-Host: chat.example:443"}, in, out},
		{"the host is rewritten, twice", []string{page, "Host: backend:8000", "X-Forwarded-Host: chat.example, evil.example"}, out, out},
		{"a forwarded host that differs", []string{page, "Host: chat.example", "X-Forwarded-Host: evil.example"}, out, in},
		{"an empty forwarded host", []string{page, "Host: chat.example", "X-Forwarded-Host: "}, out, in},
		{"headers that nobody reads", []string{page, "Host: backend", "Forwarded: host=chat.example;proto=https", "X-Host: chat.example"}, out, out},
	} {
		t.Run(tt.name, func(t *testing.T) {
			trusted.t, stranger.t = t, t
			if got := trusted.ask(tt.lines...); got != tt.trusted {
				t.Errorf("from a trusted proxy: %d, want %d", got, tt.trusted)
			}
			if got := stranger.ask(tt.lines...); got != tt.alone {
				t.Errorf("from anybody: %d, want %d", got, tt.alone)
			}
		})
	}
}
