package http

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"switchyard/internal/testkit"
)

func TestMetricsAreServedInternallyOnly(t *testing.T) {
	n := startNode(t, func(c *Config) { c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")} })
	for _, tt := range []struct {
		name, peer string
		header     http.Header
		want       int
	}{
		{"loopback", "127.0.0.1:1", nil, 200},
		{"a network of containers", "172.18.0.5:1", nil, 200},
		{"a VPN's shared addresses", "100.64.3.4:1", nil, 200},
		{"an internal IPv6 address", "[fd00::5]:1", nil, 200},
		{"a public address", "198.51.100.7:1", nil, 404},
		{"a public IPv6 address", "[2001:db8::7]:1", nil, 404},
		{"a public address that claims to be internal", "198.51.100.7:1", http.Header{"X-Forwarded-For": {"10.0.0.1"}}, 404},
		{"through our proxy", "192.0.2.3:1", http.Header{"X-Forwarded-For": {"198.51.100.7"}}, 404},
		{"through our proxy, from an internal network", "192.0.2.3:1", http.Header{"X-Forwarded-For": {"10.0.0.1"}}, 404},
		{"through a proxy that is not configured", "172.18.0.5:1", http.Header{"X-Forwarded-For": {"198.51.100.7"}}, 404},
		{"through a proxy that adds a line of its own", "172.18.0.5:1", http.Header{"X-Forwarded-For": {"", "198.51.100.7"}}, 404},
		{"through a proxy that writes Forwarded", "172.18.0.5:1", http.Header{"Forwarded": {"for=198.51.100.7"}}, 404},
		{"through a proxy that writes X-Real-Ip", "172.18.0.5:1", http.Header{"X-Real-Ip": {"198.51.100.7"}}, 404},
	} {
		r, w := newRecordedRequest("/metrics", tt.peer, tt.header)
		n.Handler().ServeHTTP(w, r)
		if w.Code != tt.want || (tt.want == http.StatusOK) != strings.Contains(w.Body.String(), "websocket_active_connections") {
			t.Errorf("%s: %d, want %d", tt.name, w.Code, tt.want)
		}
	}
	r, w := newRecordedRequest("/readyz", "198.51.100.7:1", nil)
	if n.Handler().ServeHTTP(w, r); w.Code != http.StatusOK {
		t.Errorf("readyz from a public address: %d", w.Code)
	}
}

// newRecordedRequest returns a request as if from a peer, and a recorder for the
// answer.
func newRecordedRequest(path, peer string, header http.Header) (*http.Request, *httptest.ResponseRecorder) {
	r := httptest.NewRequest(http.MethodGet, path, nil)
	r.RemoteAddr, r.Host = peer, "10.0.0.9:8000"
	for name, values := range header {
		r.Header[name] = values
	}
	return r, httptest.NewRecorder()
}

// A client that sends a request's header byte by byte keeps its connection for no
// longer than docs/limits.md says.
func TestAnEndlessRequestIsClosed(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n := startNode(t, nil)
		c, err := n.dialRaw(n.addr)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		var sending sync.WaitGroup
		defer sending.Wait()
		defer c.Close()
		sending.Go(func() {
			fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
			for err := error(nil); err == nil; _, err = c.Write([]byte("x")) {
				time.Sleep(100 * time.Millisecond)
			}
		})
		if answer, err := io.ReadAll(c); err != nil || len(answer) > 0 {
			t.Errorf("%q, %v", answer, err)
		}
		if took := time.Since(began); took != 5*time.Second {
			t.Errorf("closed after %v, want 5s", took)
		}
	})
}

// A proxy that goes by the length takes what follows the chunks for the body.
func TestTheConnectionClosesAfterAChunkedRequest(t *testing.T) {
	n := startNode(t, nil)
	c, err := net.Dial("tcp", n.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	hidden := "0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"
	fmt.Fprintf(c, "POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n%s", len(hidden), hidden)
	all, _ := io.ReadAll(c) // a reset is an end, too
	if got := bytes.Count(all, []byte("HTTP/1.1 ")); got != 1 || !bytes.Contains(all, []byte("Connection: close")) {
		t.Errorf("%d answers, want one and a close:\n%s", got, all)
	}
}

// %2541 in a path is the name %41, and not A.
func TestPathsAreDecodedOnce(t *testing.T) {
	n := startNode(t, nil)
	for user, path := range map[string]string{"%41": "%2541", "A": "%41", "a/b": "a%2Fb", "%2F": "%252F", "50% of them": "50%25%20of%20them"} {
		res, body := n.call(http.MethodPost, "/v1/users/"+path+"/disconnect", testKey, "")
		if _, banned := n.cfg.Bans.Banned(user); !banned {
			t.Errorf("%s did not ban %q: %d %s", path, user, res.StatusCode, body)
		}
	}
	if res, body := n.call(http.MethodGet, "/v1/rooms/%2561/messages", testKey, ""); res.StatusCode != http.StatusBadRequest {
		t.Errorf("%%2561 was read as a: %d %s", res.StatusCode, body)
	}
	if res, body := n.call(http.MethodGet, "/v1/rooms/%61/messages", testKey, ""); res.StatusCode != http.StatusOK {
		t.Errorf("%%61 was not read as a: %d %s", res.StatusCode, body)
	}
}

// Bytes and pings show that a client is alive. A frame that never ends is closed all
// the same, because it holds a buffer.
func TestAFrameThatNeverEndsIsClosed(t *testing.T) {
	for name, tt := range map[string]struct{ first, repeated string }{
		"a byte at a time":             {testkit.MaskedFrame(frameText, strings.Repeat(" ", 60000))[:8], " "},
		"fragments and pings":          {testkit.MaskedFrame(fragmentFirst, "{"), testkit.MaskedFrame(fragmentNext, " ") + testkit.MaskedFrame(framePing, "p")},
		"within a fragment, and pings": {testkit.MaskedFrame(fragmentFirst, "{") + testkit.MaskedFrame(framePing, "p"), testkit.MaskedFrame(framePing, "p")},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				n := startNode(t, func(c *Config) { c.Heartbeat = 200 * time.Millisecond })
				c, br := n.rawHandshake(tt.first)
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				go func() {
					for ctx.Err() == nil {
						_, _ = io.WriteString(c, tt.repeated)
						select {
						case <-time.After(20 * time.Millisecond):
						case <-ctx.Done():
						}
					}
				}()
				if code, _ := readOutcome(t, br); code != 4209 {
					t.Errorf("closed with %d, want 4209", code)
				}
			})
		})
	}
}

// reportMove sends reports of a move that took ten minutes, and waits until they are
// handled.
func (b *browser) reportMove(reports int) {
	b.t.Helper()
	for range reports {
		b.send(`{"type":"moved","from":"n","handshake_ms":600000}`)
	}
	b.send(`{"type":"leave","ref":"x","room":"a"}`)
	b.until("error")
}

// A client reports once how long its move took. Repeated reports would slow the
// drain of another node. The latency of a node is that of ten clients.
func TestAConnectionReportsItsMoveOnce(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n := startNode(t, nil)
		for range 9 {
			n.dial(nil).reportMove(50)
		}
		if got := n.Status().HandshakeP95; got != 0 {
			t.Errorf("nine connections count for more than nine: the latency is %v", got)
		}
		n.dial(nil).reportMove(1)
		if got := n.Status().HandshakeP95; got != 10*time.Minute {
			t.Errorf("the latency of ten connections is %v", got)
		}
	})
}

// A report counts only from a client that was on another node.
func TestANewSessionReportsNoMove(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n, _ := startSessionNode(t, nil)
		for range 10 {
			b, _ := n.connect("", "")
			b.reportMove(1)
		}
		if got := n.Status().HandshakeP95; got != 0 {
			t.Errorf("the latency of ten new sessions is %v, want none", got)
		}
	})
}

// Handshakes over the rate or the limits write no line of the log, and few of the
// audit log, because a stranger may send any number of them.
func TestAFloodOfHandshakesDoesNotFloodTheLog(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n := startNode(t, func(c *Config) { c.MaxHandshakeRate = 1 })
		refused := 0
		for range 50 {
			if res, _ := n.request(http.MethodGet, "/ws", http.Header{}, http.NoBody); res.StatusCode == http.StatusServiceUnavailable {
				refused++
			}
		}
		if said := strings.Count(n.logs.String(), "request refused"); refused < 10 || said > 0 {
			t.Errorf("%d handshakes refused with %d lines in the log, want none", refused, said)
		}
	})
}

// Some libraries write a slash too many in the address of the socket, and a browser hides
// the refusal.
func TestASlashTooManyLeadsToTheSocket(t *testing.T) {
	n := startKeyedNode(t, "*:rw", func(c *Config) { c.AuthQueryToken = true })
	token := tokenOf("ann", time.Hour, everyRoom)
	for _, path := range []string{"/ws/", "//ws", "///ws//", "/ws/?access_token=" + token, "//ws?access_token=" + token} {
		b, res := n.openAt(path, nil)
		if got := b.read(); got["type"] != "welcome" || (got["user"] == "ann") != strings.Contains(path, "token") {
			t.Errorf("%s: %d, then %v", path, res.StatusCode, got)
		}
	}
	for path, want := range map[string]int{"/ws/x": 404, "/ws//x": 404, "/wss": 404, "/x/ws": 404, "/%2Fws": 404, "//metrics": 404, "/metrics/": 404, "//v1/rooms": 404} {
		if status, body := n.rawGet(path, "Host: "+n.addr+"\r\n"); status != want {
			t.Errorf("%s: %d %.200s, want %d", path, status, body, want)
		}
	}
	if res, _ := n.call("POST", "//ws/", "", ""); res.StatusCode != http.StatusMethodNotAllowed || res.Header.Get("Allow") != "GET" {
		t.Errorf("POST //ws/: %d %v", res.StatusCode, res.Header)
	}
	if got := n.metric(`websocket_connections_total{result="ok"}`); got != "5" {
		t.Errorf("%q handshakes are counted, want 5", got)
	}
}

// The cookies of a site come with each handshake, though they are not read. A header as
// large as load balancers pass on is accepted.
func TestAHandshakeWithTheCookiesOfALargeSite(t *testing.T) {
	n := startKeyedNode(t, "*:rw", nil)
	cookies := func(bytes int) []string {
		lines := []string{"Authorization: Bearer " + tokenOf("ann", time.Hour, `{"`+strings.Repeat("x", 100)+`":"rw"}`)}
		for ; bytes > 0; bytes -= 4 << 10 {
			lines = append(lines, "Cookie: a="+strings.Repeat("x", 4<<10-len("Cookie: a=\r\n")))
		}
		return lines
	}
	for bytes, want := range map[int]int{16 << 10: 101, 60 << 10: 101, 72 << 10: http.StatusRequestHeaderFieldsTooLarge} {
		if got := n.handshakeStatus(cookies(bytes)...); got != want {
			t.Errorf("%d KiB of cookies: %d, want %d", bytes>>10, got, want)
		}
	}
}

// A proxy sends a request on a connection that it has kept idle as long as it keeps any.
// The service must not be closing it at that moment, since a POST is not sent again.
func TestAnIdleConnectionIsKeptLongerThanByProxies(t *testing.T) {
	for setting, want := range map[time.Duration]time.Duration{0: 150 * time.Second, 5 * time.Second: 5 * time.Second} {
		inBubble(t, func(t *testing.T) {
			n := startNode(t, func(c *Config) { c.IdleTimeout = setting })
			c, err := n.dialRaw(n.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			br := bufio.NewReader(c)
			publish := func() {
				fmt.Fprintf(c, "POST /v1/rooms/a/messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 10\r\n\r\n{\"data\":1}", testKey)
				res, err := http.ReadResponse(br, nil)
				if err != nil || res.StatusCode != http.StatusCreated {
					t.Fatalf("%v %v", res, err)
				}
				_, _ = io.Copy(io.Discard, res.Body)
			}
			publish()
			time.Sleep(want - time.Millisecond)
			publish()
			idleSince := time.Now()
			if _, err := br.ReadByte(); err != io.EOF {
				t.Errorf("the end of an idle connection: %v", err)
			}
			if kept := time.Since(idleSince); kept != want {
				t.Errorf("kept for %v, want %v", kept, want)
			}
		})
	}
}

// A slowReader reads 4 KB a second.
type slowReader struct{ io.Reader }

func (s slowReader) Read(p []byte) (int, error) {
	time.Sleep(100 * time.Millisecond)
	return s.Reader.Read(p[:min(len(p), 400)])
}

// A page of history takes a slow link more than two heartbeats. It arrives all the same,
// although the pings of the service wait behind it.
func TestAPageOfHistoryArrivesOnASlowLink(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n := startNode(t, nil)
		message := `{"room":"a","data":"` + strings.Repeat("x", 1200) + `"}`
		n.call("POST", "/v1/messages", testKey, "["+strings.Repeat(message+",", 199)+message+"]")
		c, br := n.rawHandshake(testkit.MaskedFrame(frameText, `{"type":"history","ref":"page","room":"a","limit":200}`))
		_ = c.SetDeadline(time.Time{})
		slow, asked := bufio.NewReader(slowReader{br}), time.Now()
		for op, payload := byte(0), ""; !strings.Contains(payload, `"ref":"page"`); {
			op, payload = readFrame(t, slow)
			switch op {
			case framePing:
				_, _ = io.WriteString(c, testkit.MaskedFrame(framePong, payload))
			case frameClose:
				t.Fatalf("closed with %x after %v", payload, time.Since(asked))
			}
		}
		if took := time.Since(asked); took < 2*n.cfg.Heartbeat {
			t.Errorf("the page took %v only", took)
		}
		_, _ = io.WriteString(c, testkit.MaskedFrame(frameText, `{"type":"leave","ref":"after","room":"none"}`))
		if outcome, _ := readOutcome(t, br); outcome != staysOpen {
			t.Errorf("then closed with %d", outcome)
		}
	})
}

// OPTIONS * is about the server as a whole (RFC 9110 §9.3.7). net/http would answer
// it without any of our headers.
func TestOptionsStarIsAnsweredLikeAnyUnknownPath(t *testing.T) {
	n := startNode(t, nil)
	c, err := net.Dial("tcp", n.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusNotFound || res.Header.Get("Content-Type") != "application/problem+json" || res.Header.Get("X-Request-ID") == "" {
		t.Errorf("OPTIONS *: %s %v", res.Status, res.Header)
	}
}
