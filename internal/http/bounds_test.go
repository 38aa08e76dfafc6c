package http

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// Over the limit connections are still accepted, to be closed with a code that a
// browser can see. Far over it they are refused.
func TestConnectionsFarOverTheLimitAreRefused(t *testing.T) {
	n := startNode(t, func(c *Config) { c.MaxConnections, c.maxRejecting = 1, fewRejecting })
	for range 1 + fewRejecting {
		n.rawHandshake("") // reads nothing, so that its slot is kept while the close waits
	}
	res, body := n.request("GET", "/ws", upgradeHeader(), strings.NewReader(""))
	if res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") != "1" || !strings.Contains(body, `"code":"unavailable"`) {
		t.Errorf("%d %v %s, want 503", res.StatusCode, res.Header, body)
	}
	if got := n.metric(`websocket_connections_total{result="refused"}`); got != "1" {
		t.Errorf("counted %q as refused", got)
	}
}

// A client that sends Expect: 100-continue gets the refusal of a large body before
// it sends the body.
func TestABodyAnnouncedAsTooLargeIsRefusedUnread(t *testing.T) {
	n := startNode(t, nil)
	for path, bound := range map[string]string{"/v1/rooms/a/messages": "65536", "/v1/rooms/a/signals": "65536", "/v1/messages": "1048576"} {
		c, err := net.Dial("tcp", n.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 2000000\r\nExpect: 100-continue\r\n\r\n", path, testKey)
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != http.StatusRequestEntityTooLarge || !strings.Contains(string(body), bound) {
			t.Errorf("%s: %d %s, %v; want 413 about %s", path, res.StatusCode, body, err, bound)
		}
		_ = res.Body.Close()
	}
}

// A client that writes its whole body before it reads gets the refusal, and not a broken
// connection, even if it asks to close the connection after the answer.
func TestARefusalReachesAClientThatStillWrites(t *testing.T) {
	const ban = "/v1/users/ann/disconnect"
	for _, tt := range []struct {
		path, host, key, header string
		want                    int
	}{
		{ban, "", testKey, "X-None: 0", http.StatusRequestEntityTooLarge},
		{ban, "", "none", "X-None: 0", http.StatusUnauthorized},
		{ban, "", testKey, "Content-Encoding: gzip", http.StatusUnsupportedMediaType},
		{ban, "evil.example", testKey, "X-None: 0", http.StatusMisdirectedRequest},
		{"/v1/messages/none", "", testKey, "X-None: 0", http.StatusNotFound},
	} {
		inBubble(t, func(t *testing.T) { // a pipe has no buffer that would take the body
			n := startNode(t, func(c *Config) { c.AllowedHosts = []string{"127.0.0.1"} })
			c, err := n.dialRaw(n.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			const size = 100 << 10
			_, err = fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\n%s\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s",
				tt.path, cmp.Or(tt.host, n.addr), tt.key, tt.header, size, strings.Repeat("x", size))
			if err != nil {
				t.Fatalf("%s, want %d: the body can't be written: %v", tt.path, tt.want, err)
			}
			res, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil || res.StatusCode != tt.want {
				t.Errorf("%s: %v %v, want %d", tt.path, res, err, tt.want)
			}
		})
	}
}
