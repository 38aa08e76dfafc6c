package http

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"nhooyr.io/websocket"

	"switchyard/internal/testkit"
)

func TestTwoBrowsersChat(t *testing.T) {
	n := startNode(t, nil)
	a := n.dial(&websocket.DialOptions{Subprotocols: []string{"switchyard.v1"}})
	if a.ws.Subprotocol() != "switchyard.v1" {
		t.Errorf("subprotocol %q", a.ws.Subprotocol())
	}
	b := n.dial(nil) // offers none and gets v1
	for _, p := range []*browser{a, b} {
		p.send(`{"type":"join","ref":"j","room":"lobby"}`)
		if got := p.read(); got["type"] != "joined" || got["ref"] != "j" || got["seq"] != 0.0 {
			t.Fatalf("joined: %v", got)
		}
	}
	a.send(`{"type":"publish","ref":"p","room":"lobby","id":"i1","data":{"text":"hi"}}`)
	if got := a.until("ack"); got["ref"] != "p" || got["seq"] != 1.0 || got["id"] != "i1" {
		t.Errorf("ack: %v", got)
	}
	got := b.until("message")
	if got["seq"] != 1.0 || got["from"] != nil || fmt.Sprint(got["data"]) != "map[text:hi]" {
		t.Errorf("message: %v", got)
	}
	a.send(`{"type":"publish","ref":"q","room":"lobby","id":"i1","data":{"text":"hi"}}`)
	if got := a.until("ack"); got["duplicate"] != true || got["seq"] != 1.0 {
		t.Errorf("resent: %v", got)
	}
	a.send(`{"type":"publish","ref":"r","room":"lobby","id":"i1","data":"other"}`)
	if got := a.until("error"); got["code"] != "conflict" || got["id"] != "i1" {
		t.Errorf("same id, other data: %v", got)
	}
	b.send(`{"type":"history","ref":"h","room":"lobby"}`)
	if got := b.until("history"); len(got["messages"].([]any)) != 1 || got["more"] != false {
		t.Errorf("history: %v", got)
	}
}

func TestWelcomeNamesTheNode(t *testing.T) {
	n := startNode(t, nil)
	ctx := t.Context()
	ws, _, err := websocket.Dial(ctx, "ws://"+n.addr+"/ws", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	_, p, err := ws.Read(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(p, &got); err != nil {
		t.Fatal(err)
	}
	for field, want := range map[string]any{
		"type": "welcome", "resumed": false, "user": nil, "node": "n1", "color": "blue",
		"deployment": "d1", "version": "v1", "heartbeat_ms": 25000.0, "max_frame": 65536.0,
	} {
		if got[field] != want {
			t.Errorf("%s: %v, want %v", field, got[field], want)
		}
	}
}

func TestBadInputIsAnsweredWithAnErrorCode(t *testing.T) {
	n := startNode(t, nil)
	b := n.dial(nil)
	for _, tt := range []struct{ send, code, says string }{
		{`{"type":"join","ref":"1","room":"a b"}`, "invalid", "room"},
		{`{"type":"join","ref":"2","room":"_x"}`, "forbidden", "_"},
		{`{"type":"fly","ref":"3"}`, "unknown_type", "known"},
		{`{"type":"join","ref":"4","room":"a","after":-1}`, "invalid", "after"},
		{`{"type":"leave","ref":"5","room":"a"}`, "invalid", "joined"},
		{`nonsense`, "malformed", "JSON"},
	} {
		b.send("%s", tt.send)
		got := b.until("error")
		if got["code"] != tt.code || !strings.Contains(got["message"].(string), tt.says) {
			t.Errorf("%s: %v, want %s about %q", tt.send, got, tt.code, tt.says)
		}
	}
	b.send(`{"type":"join","room":"a"}`) // it is still served
	b.until("joined")
	if got := n.metric(`websocket_errors_total{type="invalid"}`); got != "3" {
		t.Errorf("websocket_errors_total{invalid} = %s, want 3", got)
	}
}

// A client that doubts its connection sends a ping, and is answered at once.
func TestAPingIsAnswered(t *testing.T) {
	n := startNode(t, nil)
	b := n.dial(nil)
	b.send(`{"type":"ping","ref":"7"}`)
	if got := b.until("pong"); got["ref"] != "7" {
		t.Errorf("the answer is %v, want the ref 7", got)
	}
	if got := n.metric(`websocket_errors_total{type="unknown_type"}`); got != "0" && got != "" {
		t.Errorf("%s requests of an unknown type were counted", got)
	}
}

func TestBadFramesCloseTheConnection(t *testing.T) {
	n := startNode(t, func(c *Config) { c.MaxFrame = 2048 })
	big := `{"type":"publish","room":"a","data":"` + strings.Repeat("x", 4096) + `"}`
	tests := []struct {
		name string
		do   func(*browser)
		code websocket.StatusCode
	}{
		{"three malformed frames in a row", func(b *browser) { b.send("a"); b.send("b"); b.send("c") }, 1008},
		{"a frame too big", func(b *browser) { b.send("%s", big) }, 1009},
		{"a binary frame", func(b *browser) {
			_ = b.ws.Write(context.Background(), websocket.MessageBinary, []byte("x"))
		}, 1003},
		{"text that is not UTF-8", func(b *browser) { b.send("%s", "{\"type\":\"\xff\"}") }, 1007},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := n.dial(nil)
			tt.do(b)
			if got := b.closed(); got != tt.code {
				t.Errorf("closed with %d, want %d", got, tt.code)
			}
		})
	}
	testkit.Eventually(t, "all connections to end", func() bool { return n.metric("websocket_active_connections") == "0" })
	for _, reason := range []string{"malformed", "too_big", "binary_frame", "invalid_utf8"} {
		if got := n.metric(`websocket_disconnections_total{reason="` + reason + `"}`); got != "1" {
			t.Errorf("%s counted %q times", reason, got)
		}
	}
}

func TestAnUnmaskedFrameIsAProtocolError(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n := startNode(t, nil)
		_, br := n.rawHandshake("\x81\x02{}")
		rest, err := io.ReadAll(br)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(rest, []byte("\x88\x10\x03\xeaprotocol_error")) {
			t.Errorf("got %q, want a close with 1002", rest)
		}
		testkit.Eventually(t, "the connection to end", func() bool {
			return n.metric(`websocket_disconnections_total{reason="protocol_error"}`) == "1"
		})
	})
}

func TestTwoMalformedFramesAreForgiven(t *testing.T) {
	n := startNode(t, nil)
	b := n.dial(nil)
	for range 3 {
		b.send("a")
		b.send("b")
		b.send(`{"type":"join","room":"a"}`)
		b.until("joined")
	}
}

// Bytes that a client sends right after its handshake are in net/http's buffer when
// the connection is hijacked.
func TestFramesSentWithTheHandshakeAreNotLost(t *testing.T) {
	n := startNode(t, nil)
	_, br := n.rawHandshake(testkit.MaskedFrame(0x81, `{"type":"join","ref":"early","room":"a"}`))
	for {
		if _, payload := readFrame(t, br); strings.Contains(payload, `"ref":"early"`) {
			return
		}
	}
}

// shrinkWriteBuffers makes the kernel buffer little for clients that do not read.
// Otherwise it buffers megabytes, which take seconds to fill.
func (n *node) shrinkWriteBuffers() {
	n.openSockets.Each(func(sock *socket) { _ = sock.conn.Conn.(*net.TCPConn).SetWriteBuffer(16 << 10) })
}

func TestASlowClientIsClosedAndNobodyWaitsForIt(t *testing.T) {
	n := startNode(t, func(c *Config) { c.QueueBytes = 600 << 10 })
	fast := n.dial(nil)
	fast.send(`{"type":"join","room":"a"}`)
	fast.until("joined")
	slow, br := n.rawHandshake(testkit.MaskedFrame(0x81, `{"type":"join","room":"a"}`))
	n.shrinkWriteBuffers()
	testkit.Eventually(t, "both to be members", func() bool {
		rooms := n.hub.Rooms()
		return len(rooms) == 1 && rooms[0].Members == 2
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	data := `"` + strings.Repeat("x", 32<<10) + `"`
	peak := int64(0)
	for sent := 1; peak < 300<<10 || n.memory.Queued() > peak/2; sent++ { // until the queue is dropped
		peak = max(peak, n.memory.Queued())
		if _, err := n.hub.Publish(ctx, draft("a", data)); err != nil {
			t.Fatal(err)
		}
		if got := fast.until("message"); got["seq"] != float64(sent) {
			t.Fatalf("the fast client got %v, want %d", got["seq"], sent)
		}
	}
	// When it reads again, it gets whole frames and then the close frame.
	if code, _ := readClose(t, readDocument(t, "asyncapi.yaml"), br); code != 4208 {
		t.Errorf("closed with %d, want 4208", code)
	}
	_ = slow.Close()
	testkit.Eventually(t, "the slow client's connection to end", func() bool {
		return n.metric(`websocket_disconnections_total{reason="slow"}`) == "1" && n.metric("websocket_queue_bytes") == "0"
	})
}

// A client that answers no ping is closed after two heartbeats, when the third is due
// at the latest. A client that answers them stays.
func TestASilentClientIsClosedAfterTwoHeartbeats(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		const heartbeat = 25 * time.Second
		n := startNode(t, nil)
		lively := n.dial(nil)
		ctx, stop := context.WithCancel(t.Context())
		heartbeats := make(chan int)
		go func() { // the library answers pings while it reads
			count := 0
			for {
				_, p, err := lively.ws.Read(ctx)
				if err != nil {
					heartbeats <- count
					return
				}
				if bytes.Contains(p, []byte(`"heartbeat"`)) {
					count++
				}
			}
		}()
		_, br := n.rawHandshake("") // reads, but answers no ping
		began := time.Now()
		code, reason := readClose(t, readDocument(t, "asyncapi.yaml"), br)
		if code != 4209 || reason != "no_pong" {
			t.Errorf("closed with %d %s, want 4209 no_pong", code, reason)
		}
		if took := time.Since(began); took < 2*heartbeat || took > 3*heartbeat {
			t.Errorf("closed after %v, want after two heartbeats", took)
		}
		time.Sleep(4 * heartbeat)
		if got := n.metric("websocket_active_connections"); got != "1" {
			t.Errorf("%s connections are open, want the one that answers", got)
		}
		stop()
		if count := <-heartbeats; count < 6 || count > 8 {
			t.Errorf("%d heartbeats in 6 to 7 periods", count)
		}
	})
}

func TestStopClosesEveryoneWithRestart(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n := startNode(t, nil)
		browsers := make([]*browser, 20)
		for i := range browsers {
			browsers[i] = n.dial(nil)
		}
		done := make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			done <- n.drain.CloseClients(ctx)
		}()
		for _, b := range browsers {
			if got := b.closed(); got != 1012 {
				t.Errorf("closed with %d, want 1012", got)
			}
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		res, _ := n.call("GET", "/ws", "", "")
		if res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") == "" {
			t.Errorf("handshake while stopping: %d", res.StatusCode)
		}
		if res, body := n.call("GET", "/readyz", "", ""); res.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, "draining") {
			t.Errorf("readyz while stopping: %d %s", res.StatusCode, body)
		}
	})
}

func TestTooManyConnections(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n := startNode(t, func(c *Config) { c.MaxConnections = 2 })
		a := n.dial(nil)
		n.dial(nil)
		if got := n.dialRejected(nil); got != 4103 {
			t.Errorf("third connection closed with %d, want 4103", got)
		}
		testkit.Eventually(t, "the third connection to end", func() bool { return n.metric("websocket_active_connections") == "2" })
		_ = a.ws.Close(websocket.StatusNormalClosure, "")
		testkit.Eventually(t, "the first connection to end", func() bool { return n.metric("websocket_active_connections") == "1" })
		n.dial(nil).send(`{"type":"join","room":"a"}`)
	})
}

func TestOneLineForEachConnectionEnd(t *testing.T) {
	n := startNode(t, nil)
	b := n.dial(nil)
	b.send(`{"type":"publish","room":"a","data":"secret"}`)
	b.until("ack")
	_ = b.ws.Close(websocket.StatusNormalClosure, "bye")
	line := n.logLine("connection ended")
	if line["code"] != 1000.0 || line["reason"] != "client" || line["frames_in"] != 1.0 || line["remote"] != "127.0.0.1" {
		t.Errorf("line: %v", line)
	}
	if strings.Contains(n.logs.String(), "secret") {
		t.Error("the log contains a message")
	}
}
