// Package fakeservice has the parts of a service for tests of its clients: a server
// in virtual time, the service's end of a connection, and the frames of the wire. The
// test decides what the service answers.
package fakeservice

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"testing"
	"time"

	"nhooyr.io/websocket"

	"switchyard/internal/testkit"
)

// Start serves HTTP over pipes until the test ends. It works in a bubble of
// testing/synctest.
func Start(tb testing.TB, h http.Handler) *testkit.PipeListener {
	tb.Helper()
	l := testkit.NewPipeListener()
	server := &http.Server{Handler: h}
	go func() { _ = server.Serve(l) }()
	tb.Cleanup(func() { _ = server.Close() })
	return l
}

// A Conn is the service's end of a connection.
type Conn struct {
	WS          *websocket.Conn
	ConnectedAt time.Time     // when the handshake arrived
	Header      http.Header   // of the handshake
	Delay       time.Duration // of each queued frame

	tb    testing.TB
	queue chan string
	ended chan struct{} // closed by Serve
}

// Accept completes the handshake of a request.
func Accept(tb testing.TB, w http.ResponseWriter, r *http.Request) (*Conn, error) {
	tb.Helper()
	at := time.Now()
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"switchyard.v1"}})
	if err != nil {
		return nil, err
	}
	return &Conn{
		WS: conn, ConnectedAt: at, Header: r.Header,
		tb: tb, queue: make(chan string, 10_000), ended: make(chan struct{}),
	}, nil
}

// Queue has Serve send a frame. It does not wait for the client.
func (c *Conn) Queue(frame string) {
	select {
	case c.queue <- frame:
	case <-c.ended:
	}
}

// Serve sends what is queued, and calls handle with each frame of the client. When
// handle returns false or the client is gone, Serve breaks the connection and
// returns.
func (c *Conn) Serve(handle func(Frame) bool) {
	var writing sync.WaitGroup
	writing.Go(c.writeLoop)
	defer func() {
		_ = c.WS.CloseNow()
		close(c.ended)
		writing.Wait()
	}()
	for {
		_, b, err := c.WS.Read(context.Background())
		if err != nil {
			return
		}
		var f Frame
		if err := json.Unmarshal(b, &f); err != nil {
			c.tb.Errorf("the client sent an invalid frame: %s: %v", b, err)
			return
		}
		if !handle(f) {
			return
		}
	}
}

func (c *Conn) writeLoop() {
	for {
		select {
		case frame := <-c.queue:
			if c.Delay > 0 {
				<-time.After(c.Delay)
			}
			_ = c.WS.Write(context.Background(), websocket.MessageText, []byte(frame))
		case <-c.ended:
			return
		}
	}
}
