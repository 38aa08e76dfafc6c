package proxies

import (
	"bufio"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"nhooyr.io/websocket"

	"switchyard/internal/testkit"
	"switchyard/internal/testkit/chromium"
	"switchyard/internal/testkit/metrictest"
)

// families are clients at addresses of their own, not the proxy's, and how they reach
// the proxy.
var families = []struct{ name, from, to string }{
	{"IPv4", "127.0.0.9", "127.0.0.1"},
	{"IPv6", "::1", "::1"},
}

// A socket is a WebSocket through the proxy.
type socket struct {
	t    *testing.T
	conn *websocket.Conn
}

// connect opens a WebSocket as a page does. It returns the answer of a handshake that
// is refused.
func (s *site) connect(t *testing.T, client *http.Client, path string, header http.Header) (*socket, *http.Response) {
	t.Helper()
	c, res, err := websocket.Dial(testkit.Within(t, testkit.Timeout), s.url(path), &websocket.DialOptions{HTTPClient: client, HTTPHeader: header})
	if err != nil {
		if res == nil {
			t.Fatalf("connect to %s: %v", path, err)
		}
		return nil, res
	}
	t.Cleanup(func() { _ = c.CloseNow() })
	return &socket{t, c}, res
}

// clientOf returns newClient, which leaves no connection behind.
func (s *site) clientOf(t *testing.T, from, to string) *http.Client {
	t.Helper()
	c := newClient(s, from, to)
	t.Cleanup(c.CloseIdleConnections)
	return c
}

func (s *socket) send(frame string) {
	s.t.Helper()
	if err := s.conn.Write(testkit.Within(s.t, testkit.Timeout), websocket.MessageText, []byte(frame)); err != nil {
		s.t.Fatal(err)
	}
}

// until reads frames up to the first one of a type.
func (s *socket) until(kind string) {
	s.t.Helper()
	for {
		_, frame, err := s.conn.Read(testkit.Within(s.t, 2*testkit.Timeout))
		if err != nil {
			s.t.Fatalf("waiting for %s: %v", kind, err)
		}
		if strings.Contains(string(frame), `"type":"`+kind+`"`) {
			return
		}
	}
}

// end reads up to the end of the connection, and returns its close code, -1 for none.
func (s *socket) end() websocket.StatusCode {
	s.t.Helper()
	for {
		if _, _, err := s.conn.Read(testkit.Within(s.t, testkit.Timeout)); err != nil {
			return websocket.CloseStatus(err)
		}
	}
}

func (s *site) testPagesOfTheServiceConnect(t *testing.T) {
	for _, f := range families {
		for _, path := range []string{"/ws", "/chat/ws"} {
			c, res := s.connect(t, s.clientOf(t, f.from, f.to), path, http.Header{"Origin": {s.origin()}})
			if c == nil {
				t.Errorf("%s over %s: status %d", path, f.name, res.StatusCode)
				continue
			}
			c.until("welcome")
			c.send(`{"type":"publish","ref":"1","room":"lobby","data":"hello"}`)
			c.until("ack")
		}
	}
}

// The answer and the audit log name what was compared and who was refused, whatever the
// client writes into the headers of proxies.
func (s *site) testPagesOfOthersAreRefused(t *testing.T) {
	for _, f := range families {
		for _, page := range []string{
			"https://evil.example.com", "https://" + serviceName, strings.Replace(s.origin(), "https", "http", 1), "null",
		} {
			_, res := s.connect(t, s.clientOf(t, f.from, f.to), "/ws", http.Header{
				"Origin": {page}, "X-Forwarded-For": {"198.51.100.66"}, "X-Real-Ip": {"198.51.100.66"}, "X-Forwarded-Host": {"evil.example.com"},
				"X-Forwarded-Proto": {"http"}, "Forwarded": {"for=198.51.100.66;host=evil.example.com;proto=http"},
			})
			if res.StatusCode != http.StatusForbidden {
				t.Errorf("%s over %s: status %d", page, f.name, res.StatusCode)
				continue
			}
			body, _ := io.ReadAll(res.Body) // the library keeps the beginning, which is all
			var p struct {
				Detail    string `json:"detail"`
				RequestID string `json:"request_id"`
			}
			if err := json.Unmarshal(body, &p); err != nil {
				t.Fatalf("%s: %v", body, err)
			}
			want := "this service is at " + s.origin() + ", the page at " + page
			line := s.auditLine(t, p.RequestID)
			if !strings.Contains(p.Detail, want) || !strings.Contains(line, want) || !strings.Contains(line, `"from":"`+f.from+`"`) {
				t.Errorf("%s over %s is answered %s\nwith the audit line %swant %q from %s", page, f.name, p.Detail, line, want, f.from)
			}
		}
	}
}

// openObserved makes a document without the page into the page, after it has replaced
// WebSocket by a class that keeps the paths of sockets.
const openObserved = `fetch("./").then((r) => r.text()).then((page) => {
	window.socketPaths = [];
	window.WebSocket = class extends WebSocket {
		constructor(url, ...more) { super(url, ...more); socketPaths.push(new URL(url).pathname); }
	};
	document.open();
	document.write(page);
	document.close();
	return true;
})`

const rows = `[...document.querySelectorAll(".log:not([hidden]) .row[data-seq] .text")].map((r) => r.textContent)`

// The page, its files and its socket are all below the prefix. Chromium reports a file
// that does not load.
func (s *site) testThePageWorksUnderAPrefix(t *testing.T) {
	client := s.clientOf(t, "127.0.0.1", "127.0.0.1")
	res, err := client.Get(s.url("/chat"))
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if to, err := res.Location(); err != nil || to.String() != s.url("/chat/") {
		t.Errorf("/chat redirects to %v (%v), want %s", to, err, s.url("/chat/"))
	}
	key := sha256.Sum256(s.leaf.RawSubjectPublicKeyInfo)
	browser := chromium.Start(t,
		chromedp.Flag("host-resolver-rules", "MAP "+serviceName+" 127.0.0.1"),
		chromedp.Flag("ignore-certificate-errors-spki-list", base64.StdEncoding.EncodeToString(key[:])),
	)
	ada, bob := browser.Open(t, s.url("/chat/#prefix")), browser.Open(t, s.url("/chat/client.js#prefix"))
	chromium.Eval[bool](bob, openObserved)
	for _, w := range []*chromium.Window{ada, bob} {
		w.Until(`document.body?.dataset.state === "live"`)
	}
	ada.Type("hello\r")
	bob.Until(rows + `.includes("hello")`)
	if paths := chromium.Eval[[]string](bob, "socketPaths"); !slices.Equal(slices.Compact(paths), []string{"/chat/ws"}) {
		t.Errorf("the page connects to %q, want /chat/ws", paths)
	}
	loaded := chromium.Eval[[]string](ada, `performance.getEntriesByType("resource").map((e) => new URL(e.name).pathname)`)
	for _, want := range []string{"/chat/page.css", "/chat/page.js", "/chat/icon.svg"} {
		if !slices.Contains(loaded, want) {
			t.Errorf("the page has loaded %q, without %s", loaded, want)
		}
	}
	for _, path := range loaded {
		if !strings.HasPrefix(path, "/chat/") {
			t.Errorf("the page loads %s", path)
		}
	}
	if icon := chromium.Eval[int](ada, `fetch(document.querySelector("link[rel=icon]").href).then((r) => r.status)`); icon != http.StatusOK {
		t.Errorf("the icon is answered %d", icon)
	}
}

// A client that has sent its last byte is at its end: what it sent is stored, and
// nothing of it is left.
func (s *site) testAHalfClosedConnectionEnds(t *testing.T) {
	before := s.active(t)
	dialer := &tls.Dialer{Config: s.tlsConfig()}
	dialer.Config.NextProtos = []string{"http/1.1"}
	raw, err := dialer.DialContext(testkit.Within(t, testkit.Timeout), "tcp", s.addr("127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(testkit.Timeout))
	fmt.Fprintf(raw, "GET /ws HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", strings.TrimPrefix(s.origin(), "https://"))
	reader := bufio.NewReader(raw)
	res, err := http.ReadResponse(reader, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("the handshake: %v %v", res, err)
	}
	if _, err := reader.ReadByte(); err != nil { // of the welcome: the service has the connection
		t.Fatal(err)
	}
	fmt.Fprint(raw, testkit.MaskedFrame(0x81, `{"type":"publish","room":"half","data":"the last word"}`))
	conn := raw.(*tls.Conn)
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if tcp, ok := conn.NetConn().(interface{ CloseWrite() error }); !ok || tcp.CloseWrite() != nil {
		t.Fatal("the connection can't be half-closed")
	}
	if _, err := io.Copy(io.Discard, reader); err != nil && !isReset(err) {
		t.Errorf("the rest of the connection: %v, want its end", err)
	}
	client := s.clientOf(t, "127.0.0.1", "127.0.0.1")
	testkit.EventuallyNil(t, "the last word to be stored", func() error {
		if body := s.history(t, client, "half"); !strings.Contains(body, "the last word") {
			return fmt.Errorf("the room has %s", body)
		}
		return nil
	})
	testkit.Eventually(t, "the service to let go of the connection", func() bool { return s.active(t) <= before })
}

// isReset reports whether the peer has reset a connection: it has closed it, too.
func isReset(err error) bool { return strings.Contains(err.Error(), "connection reset by peer") }

// active returns how many WebSockets the service has.
func (s *site) active(t *testing.T) float64 {
	t.Helper()
	value, found := metrictest.Parse(t, testkit.Get(t, s.server.URL()+"/metrics")).Value(t, "websocket_active_connections")
	if !found {
		t.Fatal("websocket_active_connections is no metric")
	}
	return value
}

// history reads a room by a server call under the prefix.
func (s *site) history(t *testing.T, client *http.Client, room string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url("/chat/v1/rooms/"+room+"/messages"), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+apiKey)
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("the history: %d %s %v", res.StatusCode, body, err)
	}
	return string(body)
}

// A close code of the service tells a client what to do next.
func (s *site) testACloseCodeArrives(t *testing.T) {
	c, _ := s.connect(t, s.clientOf(t, "127.0.0.9", "127.0.0.1"), "/ws", nil)
	c.until("welcome")
	if err := c.conn.Write(testkit.Within(t, testkit.Timeout), websocket.MessageBinary, []byte("no text")); err != nil {
		t.Fatal(err)
	}
	if got := c.end(); got != websocket.StatusUnsupportedData {
		t.Errorf("the close code is %d, want %d", got, websocket.StatusUnsupportedData)
	}
}

// heartbeatsOfIdleness take three periods at least, which is longer than the longest
// idle timeout in docs/proxies.md.
const heartbeatsOfIdleness = 4

// A client that says nothing stays connected, with the timeouts that the proxies have
// by default: the heartbeat and its pong are traffic.
func (s *site) testAnIdleConnectionStays(t *testing.T) {
	c, _ := s.connect(t, s.clientOf(t, "127.0.0.9", "127.0.0.1"), "/chat/ws", nil)
	c.until("welcome")
	for range heartbeatsOfIdleness {
		c.until("heartbeat")
	}
	c.send(`{"type":"publish","ref":"1","room":"idle","data":"still here"}`)
	c.until("ack")
}

// When the service goes, its clients do not wait for a timeout of the proxy. They come
// back through the same proxy.
func (s *site) testTheEndOfTheServiceArrives(t *testing.T) {
	client := s.clientOf(t, "127.0.0.9", "127.0.0.1")
	c, _ := s.connect(t, client, "/ws", nil)
	c.until("welcome")
	s.server.Kill()
	c.end()
	s.server.Restart()
	testkit.EventuallyNil(t, "the proxy to reach the service again", func() error {
		again, res, err := websocket.Dial(testkit.Within(t, testkit.Timeout), s.url("/ws"), &websocket.DialOptions{HTTPClient: client})
		if err != nil {
			if res != nil {
				return fmt.Errorf("status %d", res.StatusCode)
			}
			return err
		}
		return again.CloseNow()
	})
}
