package http

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"nhooyr.io/websocket"

	"switchyard/internal/testkit"
)

// A browser is a WebSocket client of a test.
type browser struct {
	t  testing.TB
	ws *websocket.Conn
}

func (n *node) dial(opts *websocket.DialOptions) *browser {
	n.t.Helper()
	b := n.open(opts)
	if got := b.read(); got["type"] != "welcome" {
		n.t.Fatalf("first frame %v", got)
	}
	return b
}

// open is dial for a connection that may get no welcome.
func (n *node) open(opts *websocket.DialOptions) *browser {
	n.t.Helper()
	b, _ := n.openAt("/ws", opts)
	return b
}

// openAt is open for a path with a query. It also returns the answer.
func (n *node) openAt(path string, opts *websocket.DialOptions) (*browser, *http.Response) {
	n.t.Helper()
	withClient := websocket.DialOptions{HTTPClient: n.httpClient()}
	if opts != nil {
		withClient.HTTPHeader, withClient.Subprotocols = opts.HTTPHeader, opts.Subprotocols
	}
	ws, res, err := websocket.Dial(testkit.Within(n.t, testkit.Timeout), "ws://"+n.addr+path, &withClient)
	if err != nil {
		n.t.Fatal(err)
	}
	ws.SetReadLimit(4 << 20)
	n.t.Cleanup(func() { _ = ws.CloseNow() })
	return &browser{n.t, ws}, res
}

// dialRejected opens a connection that is rejected after the upgrade, without a
// welcome, and returns its close code.
func (n *node) dialRejected(opts *websocket.DialOptions) websocket.StatusCode {
	n.t.Helper()
	b := n.open(opts)
	_, p, err := b.ws.Read(testkit.Within(n.t, testkit.Timeout))
	if code := websocket.CloseStatus(err); code != -1 {
		return code
	}
	n.t.Fatalf("no close frame but %q: %v", p, err)
	return 0
}

func (b *browser) send(format string, args ...any) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Timeout)
	defer cancel()
	if err := b.ws.Write(ctx, websocket.MessageText, fmt.Appendf(nil, format, args...)); err != nil {
		b.t.Fatal(err)
	}
}

func (b *browser) read() map[string]any {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Timeout)
	defer cancel()
	_, p, err := b.ws.Read(ctx)
	if err != nil {
		b.t.Fatal(err)
	}
	var v map[string]any
	if err := json.Unmarshal(p, &v); err != nil {
		b.t.Fatalf("%s: %v", p, err)
	}
	return v
}

// until reads up to the next frame of a type.
func (b *browser) until(kind string) map[string]any {
	b.t.Helper()
	for {
		if v := b.read(); v["type"] == kind {
			return v
		}
	}
}

// closed reads to the end and returns the close code.
func (b *browser) closed() websocket.StatusCode {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Timeout)
	defer cancel()
	for {
		if _, _, err := b.ws.Read(ctx); err != nil {
			if code := websocket.CloseStatus(err); code != -1 {
				return code
			}
			b.t.Fatalf("no close frame: %v", err)
		}
	}
}

// rawHandshake opens a connection and performs the handshake by hand. extra follows
// the handshake in the same write.
func (n *node) rawHandshake(extra string, lines ...string) (net.Conn, *bufio.Reader) {
	n.t.Helper()
	c, err := n.dialRaw(n.addr)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(testkit.Timeout))
	more := ""
	for _, line := range lines {
		more += line + "\r\n"
	}
	fmt.Fprintf(c, "GET /ws HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n%s\r\n%s", n.addr, more, extra)
	br := bufio.NewReader(c)
	res, err := http.ReadResponse(br, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		n.t.Fatalf("handshake: %v %v", res, err)
	}
	return c, br
}

// handshakeStatus sends a WebSocket handshake with the given header lines, and
// returns the status of the answer.
func (n *node) handshakeStatus(lines ...string) int { return n.handshakeStatusAt("/ws", lines...) }

// handshakeStatusAt is handshakeStatus for a path with a query.
func (n *node) handshakeStatusAt(path string, lines ...string) int {
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
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\n%s\r\n\r\n", path, strings.Join(all, "\r\n"))
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

// readFrame reads one frame of the service.
func readFrame(t *testing.T, br *bufio.Reader) (op byte, payload string) {
	t.Helper()
	var head [2]byte
	if _, err := io.ReadFull(br, head[:]); err != nil {
		t.Fatal(err)
	}
	size := uint64(head[1])
	if size > 125 {
		long := make([]byte, map[uint64]int{126: 2, 127: 8}[size])
		if _, err := io.ReadFull(br, long); err != nil {
			t.Fatal(err)
		}
		size = 0
		for _, b := range long {
			size = size<<8 | uint64(b)
		}
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(br, b); err != nil {
		t.Fatal(err)
	}
	return head[0], string(b)
}
