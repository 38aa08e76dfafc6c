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

// request returns a handshake with the given header lines, from a peer on loopback.
func request(t *testing.T, lines ...string) *http.Request {
	t.Helper()
	if !strings.Contains(strings.ToLower("\n"+strings.Join(lines, "\n")), "\nhost:") {
		lines = append(lines, "Host: "+serviceHost)
	}
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader("GET /ws HTTP/1.1\r\n" + strings.Join(lines, "\r\n") + "\r\n\r\n")))
	if err != nil {
		t.Fatalf("%q: %v", lines, err)
	}
	r.RemoteAddr = "127.0.0.1:5555"
	return r
}

// isAllowed reports whether a request with the given header lines may come in.
func isAllowed(t *testing.T, p Proxies, o *Origins, lines ...string) bool {
	t.Helper()
	r := request(t, lines...)
	from := p.Sender(r)
	return o.Allow(r, &from)
}

// A star alone is every origin, but not null, and nothing that is no origin.
func TestAStarIsEveryOriginButNull(t *testing.T) {
	star, both := NewOrigins([]string{"https://app.example", "*"}), NewOrigins([]string{"*", "null"})
	for origin, want := range map[string]bool{
		"https://anywhere.example": accepted, "http://192.0.2.1:3000": accepted, "capacitor://localhost": accepted, "chrome-extension://abcdef": accepted,
		"file://": accepted, "app://.": accepted, "wss://anywhere.example": accepted,
		"null": refused, "": refused, "://": refused, "https://": refused, "https://.": refused, "file:///path": refused, "https://a.example/path": refused, "https://u@a.example": refused, "*": refused, "anywhere.example": refused,
	} {
		if got := isAllowed(t, nil, &star, "Origin: "+origin); got != want {
			t.Errorf("%q: %t, want %t", origin, got, want)
		}
	}
	if isAllowed(t, nil, &star, "Origin: https://a.example", "Origin: https://b.example") {
		t.Error("two origins are accepted")
	}
	if !isAllowed(t, nil, &both, "Origin: null") {
		t.Error("null is refused although it is listed")
	}
}

func TestOrigins(t *testing.T) {
	origins := NewOrigins([]string{
		"https://app.example", "https://*.pages.example", "https://*.odd.example:8443", "HTTP://Mixed.Example:80",
		"capacitor://localhost", "http://[::1]:8000", "https://dotted.example.", "wss://sockets.example", "ws://sockets.example:8000",
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
		{"the scheme of a WebSocket", "wss://app.example", accepted},
		{"the scheme of a WebSocket, with its default port", "wss://app.example:443", accepted},
		{"the scheme of a WebSocket without TLS", "ws://app.example", refused},
		{"the scheme of a WebSocket, a pattern", "wss://pr-12.pages.example", accepted},
		{"its own, the scheme of a WebSocket", "ws://" + serviceHost, accepted},
		{"its own, the scheme of a WebSocket, behind TLS", "wss://" + serviceHost, accepted},
		{"its own, the scheme of a WebSocket, another port", "wss://127.0.0.1:1", refused},
		{"listed with the scheme of a WebSocket", "https://sockets.example", accepted},
		{"listed with the scheme of a WebSocket, and sent so", "wss://sockets.example", accepted},
		{"listed with the scheme of a WebSocket and a port", "http://sockets.example:8000", accepted},
		{"the files of an app, not listed", "file://", refused},
		{"an app without a host, not listed", "app://.", refused},
		{"an extension, not listed", "moz-extension://0b6a1f2e-8f3c-4c55-9d0f-3a7a1c1d2e3f", refused},
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

// Apps and extensions show their pages under schemes of their own. Some have no host,
// and those of Firefox have a random one in each browser.
func TestTheOriginsOfAppsAndExtensions(t *testing.T) {
	listed := NewOrigins([]string{"file://", "app://.", "capacitor://", "moz-extension://*", "chrome-extension://abcdefghijklmnopabcdefghijklmnop"})
	for origin, want := range map[string]bool{
		"file://": accepted, "FILE://": accepted, "app://.": accepted, "capacitor://": accepted,
		"moz-extension://0b6a1f2e-8f3c-4c55-9d0f-3a7a1c1d2e3f": accepted, "Moz-Extension://0B6A1F2E": accepted,
		"chrome-extension://abcdefghijklmnopabcdefghijklmnop": accepted,
		"null": refused, "file://host": refused, "file:///": refused, "file:///index.html": refused, "app://": refused, "app://..": refused, "app://x": refused,
		"moz-extension://": refused, "moz-extension://a.b": refused, "moz-extension://a:1": refused, "moz-extension://a/b": refused, "moz-extension://*": refused,
		"chrome-extension://ponmlkjihgfedcbaponmlkjihgfedcba": refused, "xmoz-extension://a": refused, "https://a": refused,
	} {
		if got := isAllowed(t, nil, &listed, "Origin: "+origin); got != want {
			t.Errorf("%q: %t, want %t", origin, got, want)
		}
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
	const page, plainPage, portPage = "Origin: https://chat.example", "Origin: http://chat.example", "Origin: https://chat.example:8443"
	const host, backend, twoProxies = "Host: chat.example", "Host: backend:8000", "X-Forwarded-For: 198.51.100.1, 127.0.0.7"
	for _, tt := range []struct {
		name           string
		lines          []string
		trusted, alone bool
	}{
		{"the host is kept", []string{page, host, "X-Forwarded-Proto: https"}, accepted, accepted},
		{"with Traefik's scheme for a WebSocket", []string{page, host, "X-Forwarded-Proto: wss"}, accepted, accepted},
		{"a page without TLS, a socket with it", []string{plainPage, host, "X-Forwarded-Proto: https"}, refused, accepted},
		{"a page with TLS, a socket without", []string{page, host, "X-Forwarded-Proto: http"}, refused, accepted},
		{"no scheme is given", []string{page, host}, accepted, accepted},
		{"an empty scheme", []string{page, host, "X-Forwarded-Proto:"}, accepted, accepted},
		{"an unknown scheme", []string{page, host, "X-Forwarded-Proto: gopher"}, refused, accepted},
		{"a scheme in capitals", []string{page, host, "X-Forwarded-Proto:  HTTPS "}, accepted, accepted},

		{"one scheme twice", []string{page, host, "X-Forwarded-Proto: https, https"}, accepted, accepted},
		{"one scheme by two names", []string{page, host, "X-Forwarded-Proto: https,WSS"}, accepted, accepted},
		{"one scheme on two lines", []string{page, host, "X-Forwarded-Proto: https", "X-Forwarded-Proto: https"}, accepted, accepted},
		{"one scheme twice, a page without TLS", []string{plainPage, host, "X-Forwarded-Proto: https, https"}, refused, accepted},
		{"one scheme and nothing", []string{page, host, "X-Forwarded-Proto: https, "}, accepted, accepted},
		{"one scheme and nothing, a page without TLS", []string{plainPage, host, "X-Forwarded-Proto: https, "}, refused, accepted},
		{"two schemes, a page of the first", []string{page, host, "X-Forwarded-Proto: https, http"}, refused, accepted},
		{"two schemes, a page of the nearest proxy's", []string{plainPage, host, "X-Forwarded-Proto: https,http"}, accepted, accepted},
		{"two lines of schemes, a page of the first", []string{page, host, "X-Forwarded-Proto: https", "X-Forwarded-Proto: http"}, refused, accepted},
		{"TLS ends at the first of two proxies", []string{page, host, twoProxies, "X-Forwarded-Proto: https,http"}, accepted, accepted},
		{"TLS ends at the first of two proxies, a page without", []string{plainPage, host, twoProxies, "X-Forwarded-Proto: https,http"}, refused, accepted},
		{"TLS ends at the first of two proxies, the client invents one", []string{page, host, twoProxies, "X-Forwarded-Proto: http, https, http"}, accepted, accepted},
		{"TLS ends at a proxy that is not trusted", []string{page, host, "X-Forwarded-For: 127.0.0.7, 198.51.100.1", "X-Forwarded-Proto: https,http"}, refused, accepted},

		{"the host is rewritten", []string{page, backend, "X-Forwarded-Host: chat.example"}, accepted, refused},
		{"the host is rewritten, with its port", []string{page, backend, "X-Forwarded-Host: chat.example:443"}, accepted, refused},
		{"the host is rewritten, in capitals", []string{page, backend, "X-Forwarded-Host:  CHAT.Example "}, accepted, refused},
		{"one host twice", []string{page, backend, "X-Forwarded-Host: chat.example, chat.example"}, accepted, refused},
		{"one host on two lines", []string{page, backend, "X-Forwarded-Host: chat.example", "X-Forwarded-Host: Chat.example"}, accepted, refused},
		{"two hosts, a page of the first", []string{page, backend, "X-Forwarded-Host: chat.example, evil.example"}, refused, refused},
		{"two hosts, a page of the nearest proxy's", []string{page, backend, "X-Forwarded-Host: evil.example, chat.example"}, accepted, refused},
		{"two proxies rewrite the host", []string{page, backend, twoProxies, "X-Forwarded-Host: chat.example, inner.example"}, accepted, refused},
		{"a forwarded host that differs", []string{page, host, "X-Forwarded-Host: evil.example"}, refused, accepted},
		{"an empty forwarded host", []string{page, host, "X-Forwarded-Host: "}, accepted, accepted},
		{"an empty forwarded host and another one", []string{page, backend, "X-Forwarded-Host: , chat.example"}, accepted, refused},
		{"a forwarded host and an empty one", []string{page, backend, "X-Forwarded-Host: chat.example, "}, accepted, refused},
		{"a forwarded host that is none", []string{page, host, "X-Forwarded-Host: chat.example/x"}, refused, accepted},

		{"the port is in a header of its own", []string{portPage, host, "X-Forwarded-Port: 8443"}, accepted, refused},
		{"the port is in a header of its own, twice", []string{portPage, host, "X-Forwarded-Port: 8443, 8443"}, accepted, refused},
		{"the port is in a header of its own, beside a forwarded host", []string{portPage, backend, "X-Forwarded-Host: chat.example", "X-Forwarded-Port: 8443"}, accepted, refused},
		{"another port is in the header", []string{portPage, host, "X-Forwarded-Port: 8444"}, refused, refused},
		{"the header has the port inside a container", []string{page, host, "X-Forwarded-Port: 8080", "X-Forwarded-Proto: https"}, accepted, accepted},
		{"the host has a port, the header another", []string{page, "Host: chat.example:8443", "X-Forwarded-Port: 443"}, refused, refused},
		{"a port that is none", []string{portPage, host, "X-Forwarded-Port: 8443x"}, refused, refused},
		{"a port with another host in it", []string{"Origin: https://evil.example", host, "X-Forwarded-Port: 80@evil.example"}, refused, refused},
		{"only the kept host has the port", []string{portPage, "Host: chat.example:8443", "X-Forwarded-Host: chat.example"}, accepted, accepted},
		{"only another host has the port", []string{portPage, "Host: backend:8443", "X-Forwarded-Host: chat.example"}, refused, refused},
		{"an IPv6 address with a port", []string{"Origin: https://[2001:db8::7]:8443", backend, "X-Forwarded-Host: [2001:DB8:0::7]:8443"}, accepted, refused},
		{"an IPv6 address, the port in a header of its own", []string{"Origin: https://[2001:db8::7]:8443", "Host: [2001:db8::7]", "X-Forwarded-Port: 8443"}, accepted, refused},

		{"Forwarded", []string{page, backend, "Forwarded: for=198.51.100.1;host=chat.example;proto=https"}, accepted, refused},
		{"Forwarded, a page without TLS", []string{plainPage, backend, "Forwarded: host=chat.example;proto=https"}, refused, refused},
		{"Forwarded in capitals, with spaces", []string{portPage, backend, `forwarded: For="[2001:db8::7]:4711" ; HOST="Chat.Example:8443" ; Proto=HTTPS`}, accepted, refused},
		{"Forwarded with escapes", []string{page, backend, `Forwarded: host="chat\.example"`}, accepted, refused},
		{"Forwarded of an IPv6 address", []string{"Origin: https://[2001:db8::7]", backend, `Forwarded: host="[2001:db8::7]"`}, accepted, refused},
		{"Forwarded of two proxies", []string{page, backend, "Forwarded: for=198.51.100.1;host=chat.example;proto=https, for=127.0.0.7;host=inner;proto=http"}, accepted, refused},
		{"Forwarded of two proxies, two lines", []string{page, backend, "Forwarded: for=198.51.100.1;host=chat.example;proto=https", "Forwarded: for=127.0.0.7;host=inner;proto=http"}, accepted, refused},
		{"Forwarded of a client and a proxy", []string{page, backend, "Forwarded: host=chat.example, for=198.51.100.1;host=evil.example"}, refused, refused},
		{"Forwarded that names no host", []string{page, host, "Forwarded: for=198.51.100.1;proto=https"}, accepted, accepted},
		{"Forwarded beside a header of the proxy", []string{page, backend, "X-Forwarded-Proto: https", "Forwarded: host=chat.example"}, refused, refused},
		{"Forwarded beside an empty header of the proxy", []string{page, backend, "X-Forwarded-Host:", "Forwarded: host=chat.example"}, refused, refused},
		{"Forwarded with an open quote", []string{page, backend, `Forwarded: host=chat.example;proto="https`}, refused, refused},
		{"Forwarded with a comma in quotes", []string{page, backend, `Forwarded: host="evil, chat.example"`}, refused, refused},
		{"headers that are not read", []string{page, backend, "X-Host: chat.example", "X-Forwarded-Server: chat.example"}, refused, refused},
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

// A refusal names both origins that were compared, as the browser and the proxy wrote
// them, and nothing that a terminal would interpret.
func TestARefusalSaysWhatWasCompared(t *testing.T) {
	for _, tt := range []struct {
		name  string
		lines []string
		want  string
	}{
		{"a page of another host", []string{"Host: chat.example", "Origin: https://evil.example"},
			"this service is at http://chat.example or https://chat.example, the page at https://evil.example"},
		{"a program that names the wrong scheme", []string{"Host: chat.example", "X-Forwarded-Proto: https", "Origin: http://chat.example"},
			"this service is at https://chat.example, the page at http://chat.example"},
		{"another scheme", []string{"Host: chat.example", "X-Forwarded-Proto: http", "Origin: https://chat.example"},
			"this service is at http://chat.example, the page at https://chat.example"},
		{"another port", []string{"Host: chat.example", "X-Forwarded-Proto: https", "X-Forwarded-Port: 8443", "Origin: https://chat.example:9443"},
			"this service is at https://chat.example or https://chat.example:8443, the page at https://chat.example:9443"},
		{"an unknown scheme", []string{"Host: chat.example", "X-Forwarded-Proto: gopher", "Origin: https://chat.example"},
			"this service is at unknown://chat.example, the page at https://chat.example"},
		{"no host", []string{"Host: a b", "Origin: null"}, "this service is at a b, the page at null"},
		{"an empty origin", []string{"Host: chat.example", "X-Forwarded-Proto: https", "Origin:"}, `this service is at https://chat.example, the page at ""`},
		{"two origins", []string{"Host: chat.example", "X-Forwarded-Proto: https", "Origin: https://a", "Origin: https://b"},
			"this service is at https://chat.example, the page at https://a, https://b"},
		{"letters that look like ours", []string{"Host: chat.example", "X-Forwarded-Proto: https", "Origin: https://ch\u0430t.example"},
			`this service is at https://chat.example, the page at "https://ch\u0430t.example"`},
		{"very long", []string{"Host: chat.example", "X-Forwarded-Proto: https", "Origin: " + strings.Repeat("x", 8000)},
			"this service is at https://chat.example, the page at " + strings.Repeat("x", 100) + "..."},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := request(t, tt.lines...)
			from := Proxies(prefixes("127.0.0.0/8")).Sender(r)
			if got := Compared(r, &from); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}
