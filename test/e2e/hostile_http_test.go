package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
)

// smugglingAttacks are requests that two readers may come to read differently,
// or that are to make the service say what the attacker likes.
func smugglingAttacks() (all []attack) {
	const (
		post = "POST /v1/messages HTTP/1.1\r\nHost: chat.example.com\r\nConnection: close\r\n"
		key  = "Authorization: Bearer " + shopKey + "\r\n"
		get  = "GET /v1/rooms HTTP/1.1\r\nHost: chat.example.com\r\nConnection: close\r\n"
	)
	for _, row := range []struct{ name, sends, want string }{
		{"two lengths differ", post + key + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n[]x", "400"},
		{"a length has a plus", post + key + "Content-Length: +2\r\n\r\n[]", "400"},
		{"a length is less than nothing", post + key + "Content-Length: -1\r\n\r\n", "400"},
		{"a length is two in one line", post + key + "Content-Length: 2, 2\r\n\r\n[]", "400"},
		{"a coding is not known", post + key + "Transfer-Encoding: xchunked\r\n\r\n[]", "501"},
		{"two codings are said", post + key + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", "501"},
		{"a coding has a tab before it that proxies drop", post + key + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", "400"},
		{"a chunk is longer than any number", post + key + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", "400 malformed"},
		{"a chunk is less than nothing", post + key + "Transfer-Encoding: chunked\r\n\r\n-1\r\n", "400 malformed"},
		{"a header has a space before its colon", get + "Authorization : Bearer " + shopKey + "\r\n\r\n", "400"},
		{"a header has a NUL", get + "X-A: a\x00b\r\n\r\n", "400"},
		{"a header has no colon", get + "Authorization\r\n\r\n", "400"},
		{"a header has no name", get + ": x\r\n\r\n", "400"},
		{"a line is folded into the next header", get + "X-A: a\r\n Authorization: Bearer " + shopKey + "\r\n\r\n", "401 unauthorized"},
		{"a header ends with a bare return", get + "X-A: a\rAuthorization: Bearer " + shopKey + "\r\n\r\n", "400"},
		{"there is no host", "GET / HTTP/1.1\r\nConnection: close\r\n\r\n", "400"},
		{"there are two hosts", get + "Host: evil.example\r\n\r\n", "400"},
		{"headers are longer than they may be", get + "X-A: " + strings.Repeat("a", 32<<10) + "\r\n\r\n", "431"},
		{"headers are more than there may be", get + strings.Repeat("A: b\r\n", 8000) + "\r\n", "431"},
		{"a path is longer than it may be", "GET /" + strings.Repeat("a", 32<<10) + " HTTP/1.1\r\nHost: chat.example.com\r\n\r\n", "431"},
		{"a method is none", "GE T / HTTP/1.1\r\nHost: chat.example.com\r\n\r\n", "400"},
		{"a version is none", "GET / HTTP/9.9\r\nHost: chat.example.com\r\n\r\n", "505"},
		{"HTTP/2 begins without having been agreed", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "405 method_not_allowed"},
		{"TLS begins where there is none", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", "400"},
		{"somebody wants to be connected elsewhere", "CONNECT 127.0.0.1:5432 HTTP/1.1\r\nHost: chat.example.com\r\nConnection: close\r\n\r\n", "405 method_not_allowed"},
		{"somebody wants to see what others sent", "TRACE / HTTP/1.1\r\nHost: chat.example.com\r\nConnection: close\r\n\r\n", "405 method_not_allowed"},
		{"a file is asked for by a way up", "GET /../../../../etc/passwd HTTP/1.1\r\nHost: chat.example.com\r\nConnection: close\r\n\r\n", "404 not_found"},
		{"a file is asked for by an escaped way up", "GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: chat.example.com\r\nConnection: close\r\n\r\n", "404 not_found"},
		{"two keys come", get + key + "Authorization: Bearer " + tillKey + "\r\n\r\n", "401 unauthorized"},
		{"a key is almost right", get + "Authorization: Bearer " + shopKey[:len(shopKey)-1] + "\r\n\r\n", "401 unauthorized"},
		{"a key comes as the name of a user", get + "Authorization: Basic c2hvcDo=\r\n\r\n", "401 unauthorized"},
		{"a method is overridden", get + key + "X-HTTP-Method-Override: POST\r\n\r\n", "200"},
	} {
		all = append(all, attack{row.name, row.want, func(a *attacker) string { return a.roundTrip(row.sends) }})
	}
	return append(all, smuggledRequest, responseSplitting, versionDisclosure)
}

// A front that goes by the length sees one request, one that goes by the chunks
// two. Whatever is behind the chunks must not be answered on this connection.
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

// responseHead is the head of an answer as it came.
func (a *attacker) responseHead(request string) string {
	c := a.dial()
	_, _ = io.WriteString(c, request)
	all, _ := io.ReadAll(c)
	head, _, _ := strings.Cut(string(all), "\r\n\r\n")
	return head
}

var responseSplitting = attack{"a path would write headers of the answer", "none", func(a *attacker) string {
	head := a.responseHead(request("GET /x%0d%0aSet-Cookie:%20a=b", "", "X-Request-Id: a\x09Set-Cookie: b"))
	if strings.Contains(head, "Set-Cookie") {
		return head
	}
	return "none"
}}

// What strangers learn of the service from an answer: nothing of what it is.
var versionDisclosure = attack{"a stranger reads which version this is", "nothing", func(a *attacker) string {
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

// internalEndpointAttacks reach for what is the house's.
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
		all = append(all, attack{line + " is asked of the public port", "404 not_found", func(a *attacker) string {
			return a.roundTrip(request(line, "", "Authorization: Bearer "+shopKey))
		}})
	}
	for _, line := range []string{"GET /v1/rooms", "GET /v1/rooms/news/presence", "POST /v1/messages", "POST /v1/rooms/news/messages", "POST /v1/rooms/news/signals", "POST /v1/users/ada/disconnect"} {
		all = append(all, attack{line + " is asked for with a user's token", "401 unauthorized", func(a *attacker) string {
			return a.roundTrip(request(line, "", "Authorization: Bearer "+tokenOf(a.user, jsonObject{"rooms": jsonObject{"*": "rw"}})))
		}}, attack{line + " is asked for with nothing", "401 unauthorized", func(a *attacker) string { return a.roundTrip(request(line, "")) }})
	}
	proxied := func(lines ...string) func(a *attacker) string {
		return func(a *attacker) string {
			c := a.dialFrom("127.0.0.1")
			_, _ = io.WriteString(c, request("GET /metrics", "", lines...))
			return readStatus(bufio.NewReader(c))
		}
	}
	return append(all,
		attack{"metrics are asked for through the proxy", "404 not_found", proxied(forwardedFor("198.51.100.7"))},
		attack{"metrics are asked for through the proxy, by who says to be the house", "404 not_found", proxied(forwardedFor("127.0.0.1, 198.51.100.7"))},
		attack{"metrics are asked for through the proxy, from a private network", "404 not_found", proxied(forwardedFor("10.1.2.3"))},
		attack{"metrics are asked for through a proxy that nobody named", "404 not_found", func(a *attacker) string {
			return a.roundTrip(request("GET /metrics", "", "Forwarded: for=10.1.2.3"))
		}},
		attack{"metrics are asked for by the house", "200", proxied()},
		attack{"the admin port is looked for at another address", "refused", func(a *attacker) string {
			var d net.Dialer
			_, port, _ := net.SplitHostPort(a.Admin)
			if _, err := d.DialContext(a.ctx, "tcp", "127.0.0.2:"+port); err == nil {
				return "connected"
			}
			return "refused"
		}},
		attack{"a page has its own name resolve to the admin port", "421 wrong_host", admin("evil.example", "GET /debug/pprof/heap")},
		attack{"a page posts to the admin port", "403 forbidden", admin("127.0.0.1", "POST /drain", "Origin: http://evil.example")},
		attack{"a page on this machine's own name posts to the admin port", "403 forbidden", admin("127.0.0.1", "POST /drain", "Sec-Fetch-Site: cross-site")},
	)
}
