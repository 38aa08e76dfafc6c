package ingress

import (
	"bufio"
	"net/http"
	"net/netip"
	"strings"
	"testing"
)

const accepted, refused = true, false

// serviceHost is the host of a request that names no other.
const serviceHost = "127.0.0.1:8000"

func prefixes(list ...string) (all []netip.Prefix) {
	for _, p := range list {
		all = append(all, netip.MustParsePrefix(p))
	}
	return all
}

// isAllowed reports whether a request with the given header lines may come in, from a
// peer on loopback.
func isAllowed(t *testing.T, p Proxies, o *Origins, lines ...string) bool {
	t.Helper()
	if !strings.Contains(strings.ToLower("\n"+strings.Join(lines, "\n")), "\nhost:") {
		lines = append(lines, "Host: "+serviceHost)
	}
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader("GET /ws HTTP/1.1\r\n" + strings.Join(lines, "\r\n") + "\r\n\r\n")))
	if err != nil {
		t.Fatalf("%q: %v", lines, err)
	}
	r.RemoteAddr = "127.0.0.1:5555"
	from := p.Sender(r)
	return o.Allow(r, &from)
}

func TestOrigins(t *testing.T) {
	origins := NewOrigins([]string{
		"https://app.example", "https://*.pages.example", "https://*.odd.example:8443", "HTTP://Mixed.Example:80",
		"capacitor://localhost", "http://[::1]:8000", "https://dotted.example.",
	})
	allow := func(lines ...string) bool { return isAllowed(t, nil, &origins, lines...) }
	for _, tt := range []struct {
		name   string
		origin string
		want   bool
	}{
		{"its own", "http://" + serviceHost, accepted},
		{"its own, behind TLS", "https://" + serviceHost, accepted},
		{"its own, another port", "http://127.0.0.1:1", refused},
		{"its own, no port", "http://127.0.0.1", refused},
		{"its own, another scheme", "capacitor://" + serviceHost, refused},
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
			if got := allow("Origin: " + tt.origin); got != tt.want {
				t.Errorf("%q is allowed: %v, want %v", tt.origin, got, tt.want)
			}
		})
	}
	if !allow() {
		t.Error("a request without an origin is refused")
	}
	if allow("Origin: https://app.example", "Origin: https://app.example") {
		t.Error("two lines are allowed")
	}
	if allow("Origin: https://app.example", "origin: https://evil.example") {
		t.Error("two lines are allowed, the second one evil")
	}
}

func TestTheNullOriginMustBeListed(t *testing.T) {
	origins := NewOrigins([]string{"null"})
	if !isAllowed(t, nil, &origins, "Origin: null") {
		t.Error("null is refused, though it is listed")
	}
	for _, origin := range []string{"NULL", "null://", "https://null"} {
		if isAllowed(t, nil, &origins, "Origin: "+origin) {
			t.Errorf("%s is allowed", origin)
		}
	}
}

// Behind a proxy that ends TLS, the service's own origin is the one that the
// browser sees. Only a trusted proxy may name it.
func TestTheServicesOwnOriginBehindAProxy(t *testing.T) {
	origins := NewOrigins(nil)
	const page = "Origin: https://chat.example"
	for _, tt := range []struct {
		name           string
		lines          []string
		trusted, alone bool
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
			if got := isAllowed(t, prefixes("127.0.0.0/8"), &origins, tt.lines...); got != tt.trusted {
				t.Errorf("from a trusted proxy: %v, want %v", got, tt.trusted)
			}
			if got := isAllowed(t, nil, &origins, tt.lines...); got != tt.alone {
				t.Errorf("from anybody: %v, want %v", got, tt.alone)
			}
		})
	}
}
