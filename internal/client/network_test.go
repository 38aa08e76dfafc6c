package client

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"nhooyr.io/websocket"

	"switchyard/internal/testkit"
)

// startNetworkService serves real connections behind a proxy: it welcomes each and
// sends heartbeats. connected gets a value for each connection.
func startNetworkService(t *testing.T, heartbeat time.Duration) (proxy *testkit.Proxy, connected chan struct{}) {
	t.Helper()
	connected = make(chan struct{}, 1000)
	ctx, cancel := context.WithCancel(context.Background())
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer func() { _ = conn.CloseNow() }()
		conn.CloseRead(ctx)
		frame := fmt.Sprintf(`{"type":"welcome","user":null,"heartbeat_ms":%d,"max_frame":1000000}`, heartbeat.Milliseconds())
		connected <- struct{}{}
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
	c, err := Dial(testkit.Within(t, testkit.Timeout), Options{
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

// On a network that loses everything, the client notices the missing heartbeats and
// reconnects. TestSilenceOfTwoHeartbeatsEndsAConnection has the exact time.
func TestASilentNetworkIsNoticed(t *testing.T) {
	t.Parallel()
	proxy, connected := startNetworkService(t, 100*time.Millisecond)
	c := dialProxy(t, proxy)
	testkit.Receive(t, "the first connection", connected)
	proxy.Stall()
	testkit.Eventually(t, "the client gives the silent connection up", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.current == nil
	})
	proxy.Resume()
	testkit.Receive(t, "a new connection", connected)
}

func TestACutConnectionIsReopened(t *testing.T) {
	t.Parallel()
	proxy, connected := startNetworkService(t, 25*time.Second)
	dialProxy(t, proxy)
	for range 3 {
		testkit.Receive(t, "a connection", connected)
		proxy.Cut()
	}
	testkit.Receive(t, "a connection", connected)
}

// A service that does not read delays no call of the client, and the client's queue
// does not grow without bound.
func TestAServiceThatDoesNotReadBlocksNoCall(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		c := s.newClient(Options{})
		s.accept() // and reads nothing
		start := time.Now()
		accepted := 0
		for c.Send("r", []byte(`1`), "", func(Ack, error) {}) == nil {
			accepted++
		}
		if accepted != 1024 {
			t.Errorf("%d publishes were accepted without an answer, want 1024", accepted)
		}
		signals := 0
		for c.Signal("r", []byte(`1`)) == nil {
			signals++
		}
		if signals+accepted < 4096 || signals > 4096 {
			t.Errorf("%d signals were accepted beside %d publishes, want a queue of 4096 frames", signals, accepted)
		}
		if waited := time.Since(start); waited != 0 {
			t.Errorf("the calls waited %v", waited)
		}
		c.Close()
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("Close took %v", took)
		}
	})
}
