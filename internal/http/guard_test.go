package http

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// rawGet gets a path with the given header lines, byte for byte.
func (n *node) rawGet(path, lines string) (int, string) {
	n.t.Helper()
	c, err := net.Dial("tcp", n.addr)
	if err != nil {
		n.t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\n%sConnection: close\r\n\r\n", path, lines)
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		n.t.Fatalf("%s %q: %v", path, lines, err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		n.t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

// internal/ingress has the cases of hosts.
func TestARequestForAnotherHostIsRefused(t *testing.T) {
	n := startNode(t, func(c *Config) {
		c.AllowedHosts = []string{"Chat.example", "*.rooms.example"}
	})
	for _, tt := range []struct {
		host string
		want int
	}{
		{"chat.example", 200},
		{"a.rooms.example:8443", 200},
		{"evil.example", 421},
		{"127.0.0.1", 421},
		{"chat.example@evil.example", 400},
		{"evil@chat.example", 400},
		{"", 421},
	} {
		for _, path := range []string{"/", "/client.js", "/ws", "/v1/rooms"} {
			want := tt.want
			if want == 200 {
				want = map[string]int{"/": 200, "/client.js": 200, "/ws": 426, "/v1/rooms": 401}[path]
			}
			got, body := n.rawGet(path, "Host: "+tt.host+"\r\n")
			if got != want {
				t.Errorf("%s of %q: %d %s, want %d", path, tt.host, got, body, want)
			}
			var p problem
			if got == 421 && (json.Unmarshal([]byte(body), &p) != nil || p.Code != "wrong_host" || !strings.Contains(p.Detail, "ALLOWED_HOSTS")) {
				t.Errorf("%s: %s", path, body)
			}
		}
	}
	for name, lines := range map[string]string{
		"two Hosts":              "Host: chat.example\r\nHost: evil.example\r\n",
		"a Host on two lines":    "Host: chat.example\r\n evil.example\r\n",
		"no Host":                "",
		"a Host with a space":    "Host: chat.example evil.example\r\n",
		"a space before a colon": "Host : chat.example\r\n",
	} {
		if got, body := n.rawGet("/", lines); got != 400 && got != 421 {
			t.Errorf("%s: %d %.80s", name, got, body)
		}
	}
	// RFC 9112 §3.2.2: the host of an absolute target counts, not that of the
	// header.
	if got, _ := n.rawGet("http://evil.example/", "Host: chat.example\r\n"); got != 421 {
		t.Errorf("an absolute target of another host: %d", got)
	}
	if got, _ := n.rawGet("/", "Host: evil.example\r\nX-Forwarded-Host: chat.example\r\nX-Host: chat.example\r\n"); got != 421 {
		t.Errorf("X-Forwarded-Host of an untrusted peer: %d", got)
	}
}

func TestProbesMayUseAnAddressOrALocalName(t *testing.T) {
	n := startNode(t, func(c *Config) { c.AllowedHosts = []string{"chat.example"} })
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		for host, want := range map[string]int{
			"127.0.0.1:8000": 200, "localhost": 200, "[::1]:8000": 200, "10.0.0.7": 200, "switchyard-blue-1:8000": 200, "chat.example": 200,
			"evil.example": 421, "127.0.0.1.evil.example": 421, "localhost.": 421, "127.0.0.1@evil.example": 400,
		} {
			if got, body := n.rawGet(path, "Host: "+host+"\r\n"); got != want {
				t.Errorf("%s of %s: %d %.100s, want %d", path, host, got, body, want)
			}
		}
	}
}

// Without ALLOWED_HOSTS a page can make a name of its own resolve to this service. It must
// not read metrics by it.
func TestMetricsAreReadByAnAddressOrALocalNameOnly(t *testing.T) {
	n := startNode(t, nil)
	for lines, want := range map[string]int{
		"Host: 127.0.0.1:8000\r\n": 200, "Host: switchyard-blue-1:8000\r\n": 200, "Host: [::1]\r\n": 200,
		"Host: evil.example\r\n": 421, "Host: localhost.\r\n": 421,
		"Host: 127.0.0.1\r\nVia: 1.1 proxy\r\n": 404, "Host: 127.0.0.1\r\nX-Forwarded-Port:\r\n": 404,
	} {
		if got, body := n.rawGet("/metrics", lines); got != want {
			t.Errorf("%q: %d %.100s, want %d", lines, got, body, want)
		}
	}
	if got, _ := n.rawGet("/healthz", "Host: evil.example\r\n"); got != 200 {
		t.Errorf("a probe by any name: %d", got)
	}
}

// A page in a browser on the operator's machine can reach loopback, too.
func TestTheAdminListenerRefusesBrowserPages(t *testing.T) {
	n := startNode(t, trustLoopback)
	n.addr = n.admin
	for _, tt := range []struct {
		name, lines string
		want        int
	}{
		{"curl on the host", "Host: 127.0.0.1:8001\r\n", 200},
		{"curl in the container", "Host: localhost:8001\r\n", 200},
		{"typed into a browser", "Host: localhost:8001\r\nSec-Fetch-Site: none\r\n", 200},
		{"a link in a profile", "Host: localhost:8001\r\nSec-Fetch-Site: same-origin\r\n", 200},
		{"a form of a page", "Host: 127.0.0.1:8001\r\nOrigin: https://evil.example\r\n", 403},
		{"a page without an origin", "Host: 127.0.0.1:8001\r\nOrigin: null\r\n", 403},
		{"an image of a page", "Host: 127.0.0.1:8001\r\nSec-Fetch-Site: cross-site\r\n", 403},
		{"a page of another port", "Host: 127.0.0.1:8001\r\nSec-Fetch-Site: same-site\r\n", 403},
		{"a page whose name resolves to loopback", "Host: evil.example:8001\r\nOrigin: http://evil.example:8001\r\n", 421},
		{"the same without an origin", "Host: evil.example\r\n", 421},
		{"the same through a trusted proxy's header", "Host: evil.example\r\nX-Forwarded-Host: 127.0.0.1\r\n", 421},
		{"the same with Forwarded", "Host: evil.example\r\nForwarded: host=127.0.0.1\r\n", 421},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n.t = t
			for _, path := range []string{"/log-level", "/debug/rooms", "/debug/pprof/cmdline"} {
				if got, body := n.rawGet(path, tt.lines); got != tt.want {
					t.Errorf("%s: %d %.100s, want %d", path, got, body, tt.want)
				}
			}
		})
	}
}
