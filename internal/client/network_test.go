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

// startNetworkService welcomes each connection on a real network and then says nothing
// but heartbeats; it reads only if told to.
func startNetworkService(t *testing.T, heartbeat time.Duration, reads bool) (proxy *testkit.Proxy, connected chan time.Time) {
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
		ticker := time.NewTicker(heartbeat)
		defer ticker.Stop()
		for conn.Write(ctx, websocket.MessageText, []byte(frame)) == nil {
			frame = `{"type":"heartbeat"}`
			select {
			case <-ticker.C:
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

func dialProxy(t *testing.T, proxy *testkit.Proxy) *Client {
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

func TestASilentNetworkIsNoticed(t *testing.T) {
	const heartbeat = 100 * time.Millisecond
	proxy, connected := startNetworkService(t, heartbeat, true)
	c := dialProxy(t, proxy)
	<-connected
	proxy.Stall()
	stalledAt := time.Now()
	for live := true; live; <-time.After(time.Millisecond) {
		c.mu.Lock()
		live = c.current != nil
		c.mu.Unlock()
		if time.Since(stalledAt) > 10*time.Second {
			t.Fatal("the silence was not noticed")
		}
	}
	if took := time.Since(stalledAt); took < heartbeat/2 {
		t.Errorf("noticed after %v already", took)
	}
	proxy.Resume()
	receiveWithin(t, connected, 20*time.Second, "a new connection")
}

func TestACutConnectionIsReopened(t *testing.T) {
	proxy, connected := startNetworkService(t, 25*time.Second, true)
	dialProxy(t, proxy)
	for range 3 {
		receiveWithin(t, connected, 20*time.Second, "a connection")
		proxy.Cut()
	}
	receiveWithin(t, connected, 20*time.Second, "a connection")
}

// What a service does not read must not hold a client up, nor grow for ever.
func TestAServiceThatDoesNotReadBlocksNobody(t *testing.T) {
	proxy, _ := startNetworkService(t, 25*time.Second, false)
	c := dialProxy(t, proxy)
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
