package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
)

// smugglingAttacks are requests that a proxy and the service may parse differently, and
// malformed ones.
func smugglingAttacks() (all []attack) {
	const (
		post = "POST /v1/messages HTTP/1.1\r\nHost: chat.example.com\r\nConnection: close\r\n"
		key  = "Authorization: Bearer " + shopKey + "\r\n"
		get  = "GET /v1/rooms HTTP/1.1\r\nHost: chat.example.com\r\nConnection: close\r\n"
	)
	for _, row := range []struct{ name, sends, want string }{
		{"two lengths differ", post + key + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n[]x", "400"},
		{"a length has a plus", post + key + "Content-Length: +2\r\n\r\n[]", "400"},
		{"a length is negative", post + key + "Content-Length: -1\r\n\r\n", "400"},
		{"a header has two lengths", post + key + "Content-Length: 2, 2\r\n\r\n[]", "400"},
		{"a transfer coding is unknown", post + key + "Transfer-Encoding: xchunked\r\n\r\n[]", "501"},
		{"there are two transfer codings", post + key + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", "501"},
		{"a transfer coding begins with a vertical tab, which proxies drop", post + key + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", "400"},
		{"a chunk's length overflows", post + key + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", "400 malformed"},
		{"a chunk's length is negative", post + key + "Transfer-Encoding: chunked\r\n\r\n-1\r\n", "400 malformed"},
		{"a header has a space before its colon", get + "Authorization : Bearer " + shopKey + "\r\n\r\n", "400"},
		{"a header has a NUL", get + "X-A: a\x00b\r\n\r\n", "400"},
		{"a header has no colon", get + "Authorization\r\n\r\n", "400"},
		{"a header has no name", get + ": x\r\n\r\n", "400"},
		{"a line is folded into the next header", get + "X-A: a\r\n Authorization: Bearer " + shopKey + "\r\n\r\n", "401 unauthorized"},
		{"a header ends with a bare CR", get + "X-A: a\rAuthorization: Bearer " + shopKey + "\r\n\r\n", "400"},
		{"there is no host", "GET / HTTP/1.1\r\nConnection: close\r\n\r\n", "400"},
		{"there are two hosts", get + "Host: evil.example\r\n\r\n", "400"},
		{"headers are longer than allowed", get + "X-A: " + strings.Repeat("a", 128<<10) + "\r\n\r\n", "431"},
		{"there are more headers than allowed", get + strings.Repeat("A: b\r\n", 16000) + "\r\n", "431"},
		{"a path is longer than allowed", "GET /" + strings.Repeat("a", 128<<10) + " HTTP/1.1\r\nHost: chat.example.com\r\n\r\n", "431"},
		{"a method has a space", "GE T / HTTP/1.1\r\nHost: chat.example.com\r\n\r\n", "400"},
		{"a version is unknown", "GET / HTTP/9.9\r\nHost: chat.example.com\r\n\r\n", "505"},
		{"HTTP/2 begins without an upgrade", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "405 method_not_allowed"},
		{"TLS begins on a port without it", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", "400"},
		{"a request is CONNECT to another address", "CONNECT 127.0.0.1:5432 HTTP/1.1\r\nHost: chat.example.com\r\nConnection: close\r\n\r\n", "405 method_not_allowed"},
		{"a request is TRACE", "TRACE / HTTP/1.1\r\nHost: chat.example.com\r\nConnection: close\r\n\r\n", "405 method_not_allowed"},
		{"a path leads up to a file", "GET /../../../../etc/passwd HTTP/1.1\r\nHost: chat.example.com\r\nConnection: close\r\n\r\n", "404 not_found"},
		{"an escaped path leads up to a file", "GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: chat.example.com\r\nConnection: close\r\n\r\n", "404 not_found"},
		{"two keys come", get + key + "Authorization: Bearer " + tillKey + "\r\n\r\n", "401 unauthorized"},
		{"a key lacks its last character", get + "Authorization: Bearer " + shopKey[:len(shopKey)-1] + "\r\n\r\n", "401 unauthorized"},
		{"a key's name comes as a user of Basic authentication", get + "Authorization: Basic c2hvcDo=\r\n\r\n", "401 unauthorized"},
		{"a method is overridden", get + key + "X-HTTP-Method-Override: POST\r\n\r\n", "200"},
	} {
		all = append(all, attack{row.name, row.want, func(a *attacker) string { return a.roundTrip(row.sends) }})
	}
	return append(all, smuggledRequest, responseSplitting, versionDisclosure)
}

// A proxy that reads by Content-Length sees one request, one that reads by chunks sees
// two. The request behind the chunks must not be answered on this connection.
var smuggledRequest = attack{"a request hides in the body of another", "one answer", func(a *attacker) string {
	c := a.dial()
	inner := "GET /v1/rooms HTTP/1.1\r\nHost: chat.example.com\r\nAuthorization: Bearer " + shopKey + "\r\n\r\n"
	body := "0\r\n\r\n" + inner
	_, _ = fmt.Fprintf(c, "POST /v1/messages HTTP/1.1\r\nHost: chat.example.com\r\nContent-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n%s", len(body), body)
	br := bufio.NewReader(c)
	if first := readStatus(br); first == "200" {
		return first
	}
	if second := readStatus(br); second != "cut" {
		return "two answers, the second " + second
	}
	return "one answer"
}}

// responseHead returns the head of a response, byte for byte.
func (a *attacker) responseHead(request string) string {
	c := a.dial()
	_, _ = io.WriteString(c, request)
	all, _ := io.ReadAll(c)
	head, _, _ := strings.Cut(string(all), "\r\n\r\n")
	return head
}

var responseSplitting = attack{"a path contains headers for the response", "none", func(a *attacker) string {
	head := a.responseHead(request("GET /x%0d%0aSet-Cookie:%20a=b", "", "X-Request-Id: a\x09Set-Cookie: b"))
	if strings.Contains(head, "Set-Cookie") {
		return head
	}
	return "none"
}}

// Responses to strangers do not reveal the software and its version.
var versionDisclosure = attack{"a stranger looks for the version in responses", "nothing", func(a *attacker) string {
	for _, path := range []string{"/", "/nowhere", "/healthz", "/readyz", "/ws", "/v1/rooms"} {
		c := a.dial()
		_, _ = io.WriteString(c, request("GET "+path, ""))
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return path + ": " + err.Error()
		}
		body, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		for _, name := range []string{"Server", "X-Powered-By", "Via"} {
			if res.Header.Get(name) != "" {
				return path + ": " + name
			}
		}
		if path != "/" && strings.Contains(string(body), `"version"`) {
			return path + ": " + string(body)
		}
		if path == "/" && (!strings.Contains(res.Header.Get("Content-Security-Policy"), "default-src 'none'") || res.Header.Get("X-Content-Type-Options") != "nosniff") {
			return fmt.Sprint(res.Header)
		}
	}
	return "nothing"
}}

// internalEndpointAttacks request endpoints that are for operators and backends only.
func internalEndpointAttacks() (all []attack) {
	admin := func(host, line string, lines ...string) func(a *attacker) string {
		return func(a *attacker) string {
			var d net.Dialer
			c, err := d.DialContext(a.ctx, "tcp", a.Admin)
			if err != nil {
				return "refused"
			}
			a.track(c)
			_, _ = io.WriteString(c, strings.Replace(request(line, "", lines...), "chat.example.com", host, 1))
			return readStatus(bufio.NewReader(c))
		}
	}
	for _, line := range []string{"POST /drain", "GET /debug/pprof/heap", "GET /debug/rooms", "PUT /log-level?level=debug", "GET /debug/pprof/cmdline"} {
		all = append(all, attack{line + " is requested at the public port", "404 not_found", func(a *attacker) string {
			return a.roundTrip(request(line, "", "Authorization: Bearer "+shopKey))
		}})
	}
	for _, line := range []string{"GET /v1/rooms", "GET /v1/rooms/news/presence", "POST /v1/messages", "POST /v1/rooms/news/messages", "POST /v1/rooms/news/signals", "POST /v1/users/ada/disconnect"} {
		all = append(all, attack{line + " is requested with a user's token", "401 unauthorized", func(a *attacker) string {
			return a.roundTrip(request(line, "", "Authorization: Bearer "+tokenOf(a.user, jsonObject{"rooms": jsonObject{"*": "rw"}})))
		}}, attack{line + " is requested without a credential", "401 unauthorized", func(a *attacker) string { return a.roundTrip(request(line, "")) }})
	}
	proxied := func(lines ...string) func(a *attacker) string {
		return func(a *attacker) string {
			c := a.dialFrom("127.0.0.1")
			_, _ = io.WriteString(c, request("GET /metrics", "", lines...))
			return readStatus(bufio.NewReader(c))
		}
	}
	return append(all,
		attack{"metrics are requested through the proxy", "404 not_found", proxied(forwardedFor("198.51.100.7"))},
		attack{"metrics are requested through the proxy, with a forged internal address", "404 not_found", proxied(forwardedFor("127.0.0.1, 198.51.100.7"))},
		attack{"metrics are requested through the proxy, from a private network", "404 not_found", proxied(forwardedFor("10.1.2.3"))},
		attack{"metrics are requested through an untrusted proxy", "404 not_found", func(a *attacker) string {
			return a.roundTrip(request("GET /metrics", "", "Forwarded: for=10.1.2.3"))
		}},
		attack{"metrics are requested from this machine", "200", proxied()},
		attack{"the admin port is dialed at another address", "refused", func(a *attacker) string {
			var d net.Dialer
			_, port, _ := net.SplitHostPort(a.Admin)
			if _, err := d.DialContext(a.ctx, "tcp", "127.0.0.2:"+port); err == nil {
				return "connected"
			}
			return "refused"
		}},
		attack{"a page makes its own name resolve to the admin port", "421 wrong_host", admin("evil.example", "GET /debug/pprof/heap")},
		attack{"a page posts to the admin port", "403 forbidden", admin("127.0.0.1", "POST /drain", "Origin: http://evil.example")},
		attack{"a cross-site page posts to the admin port", "403 forbidden", admin("127.0.0.1", "POST /drain", "Sec-Fetch-Site: cross-site")},
	)
}
