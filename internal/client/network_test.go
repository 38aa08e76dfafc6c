package client

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"nhooyr.io/websocket"

	"switchyard/internal/testkit"
)

// realService welcomes each connection on a real network and then says nothing
// but heartbeats; it reads only if told to.
func realService(t *testing.T, heartbeat time.Duration, reads bool) (proxy *testkit.Proxy, connected chan time.Time) {
	t.Helper()
	connected = make(chan time.Time, 100)
	ctx, cancel := context.WithCancel(context.Background())
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer func() { _ = conn.CloseNow() }()
		if reads {
			conn.CloseRead(ctx)
		}
		frame := fmt.Sprintf(`{"type":"welcome","user":null,"heartbeat_ms":%d,"max_frame":1000000}`, heartbeat.Milliseconds())
		connected <- time.Now()
		beat := time.NewTicker(heartbeat)
		defer beat.Stop()
		for conn.Write(ctx, websocket.MessageText, []byte(frame)) == nil {
			frame = `{"type":"heartbeat"}`
			select {
			case <-beat.C:
			case <-ctx.Done():
				return
			}
		}
	}))
	t.Cleanup(func() {
		cancel()
		server.Close()
	})
	return testkit.NewProxy(t, server.Listener.Addr().String()), connected
}

func dialReal(t *testing.T, proxy *testkit.Proxy) *Client {
	t.Helper()
	transport := &http.Transport{}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := Dial(ctx, Options{
		URLs: []string{"ws://" + proxy.Addr() + "/ws"}, HTTPClient: &http.Client{Transport: transport},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		transport.CloseIdleConnections()
	})
	return c
}

func receiveWithin[T any](t *testing.T, ch <-chan T, d time.Duration, what string) (v T) {
	t.Helper()
	select {
	case v = <-ch:
	case <-time.After(d):
		t.Fatalf("not within %v: %s", d, what)
	}
	return v
}

func TestACableThatIsPulledOutIsNoticed(t *testing.T) {
	const heartbeat = 100 * time.Millisecond
	proxy, connected := realService(t, heartbeat, true)
	c := dialReal(t, proxy)
	<-connected
	proxy.Stall()
	pulled := time.Now()
	for live := true; live; <-time.After(time.Millisecond) {
		c.mu.Lock()
		live = c.link != nil
		c.mu.Unlock()
		if time.Since(pulled) > 10*time.Second {
			t.Fatal("the silence was not noticed")
		}
	}
	if took := time.Since(pulled); took < heartbeat/2 {
		t.Errorf("noticed after %v already", took)
	}
	proxy.Resume()
	receiveWithin(t, connected, 20*time.Second, "a new connection")
}

func TestAConnectionThatIsCutIsMadeAgain(t *testing.T) {
	proxy, connected := realService(t, 25*time.Second, true)
	dialReal(t, proxy)
	for range 3 {
		receiveWithin(t, connected, 20*time.Second, "a connection")
		proxy.Cut()
	}
	receiveWithin(t, connected, 20*time.Second, "a connection")
}

// What a service does not read must not hold a client up, nor grow for ever.
func TestAServiceThatDoesNotReadHoldsNobodyUp(t *testing.T) {
	proxy, _ := realService(t, 25*time.Second, false)
	c := dialReal(t, proxy)
	big := []byte(`"` + strings.Repeat("x", 20_000) + `"`)
	busy := false
	for range 3 * DefaultMaxPending {
		if err := c.Send("r", big, "", func(Ack, error) {}); err != nil {
			busy = true
			break
		}
	}
	if !busy {
		t.Error("publishes that nobody reads are taken without end")
	}
	start := time.Now()
	c.Close()
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("Close took %v", took)
	}
}
