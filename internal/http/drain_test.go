package http

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"nhooyr.io/websocket"

	"switchyard/internal/drain"
	"switchyard/internal/testkit"
)

var healthyTargets = drain.MoveTargets{Known: true, Nodes: 1, Ready: 1, HandshakeLimit: 10_000, HandshakeP95: 20 * time.Millisecond}

// adminCall calls the admin listener, and returns the status and the answer.
func (n *node) adminCall(method, path string) (int, drain.State) {
	n.t.Helper()
	r, err := http.NewRequestWithContext(n.t.Context(), method, "http://"+n.admin+path, nil)
	if err != nil {
		n.t.Fatal(err)
	}
	res, err := n.httpClient().Do(r)
	if err != nil {
		n.t.Fatal(err)
	}
	defer res.Body.Close()
	var state drain.State
	if res.StatusCode < 300 {
		if err := json.NewDecoder(res.Body).Decode(&state); err != nil {
			n.t.Fatal(err)
		}
	}
	return res.StatusCode, state
}

func (n *node) awaitPhase(phase string) {
	n.t.Helper()
	testkit.Eventually(n.t, "the phase "+phase, func() bool { return n.drain.State().Phase == phase })
}

// startDrainNode starts a node that moves its clients as fast as it may, to a node
// without trouble.
func startDrainNode(t *testing.T, change func(*Config)) *node {
	t.Helper()
	return startNode(t, func(c *Config) {
		c.DrainWindow, c.DrainTimeout = 3*time.Second, 20*time.Second
		c.MoveTargets = func(drain.Scope) drain.MoveTargets { return healthyTargets }
		if change != nil {
			change(c)
		}
	})
}

// followMove closes the connection after a move frame, as a client does when its
// other connection is live.
func (b *browser) followMove() {
	b.until("move")
	_ = b.ws.Close(websocket.StatusNormalClosure, "")
}

func TestADrainMovesEveryClientInWavesAndCanBeUndone(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n := startDrainNode(t, func(c *Config) { c.DrainDelay = time.Second }) // nobody moves before the answer
		const clients = 30
		var arrived sync.WaitGroup
		var moved atomic.Int64
		for range clients {
			b := n.dial(nil)
			arrived.Go(func() {
				m := b.until("move")
				if avoid := m["avoid"].(map[string]any); avoid["deployment"] != "d1" || avoid["node"] != nil || m["reason"] != "release" {
					t.Errorf("move %v, want to avoid deployment d1 for release", m)
				}
				if after := m["after_ms"].(float64); after < 0 || after > 2000 {
					t.Errorf("after_ms is %v, want at most 2000: within the wave's second, or one later for a late wave", after)
				}
				if left := m["deadline_ms"].(float64); left < 1000 || left > 20_000 {
					t.Errorf("deadline_ms is %v, want 1000 to 20000", left)
				}
				moved.Add(1)
				_ = b.ws.Close(websocket.StatusNormalClosure, "")
			})
		}
		if status, state := n.adminCall("POST", "/drain?scope=deployment&reason=release"); status != http.StatusAccepted || state.Phase != drain.PhaseDelay || state.Clients != clients {
			t.Errorf("POST /drain: %d %+v", status, state)
		}
		if res, body := n.call("GET", "/readyz", "", ""); res.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, `"status":"dra`) {
			t.Errorf("readyz right after the drain began: %d %s", res.StatusCode, body)
		}
		if got := n.metric("websocket_draining"); got != "1" {
			t.Errorf("websocket_draining %s", got)
		}
		arrived.Wait()
		n.awaitPhase(drain.PhaseDrained)
		state := n.drain.State()
		if state.Asked != clients || state.Moved != clients || state.Clients != 0 || state.Closed+state.Lost != 0 {
			t.Errorf("drained: %+v", state)
		}
		if n.metric(`websocket_moves_total{result="moved"}`) != "30" || n.metric("websocket_drain_duration_seconds_count") != "1" {
			t.Error("the metrics do not show the moves")
		}
		if res, _ := n.request("GET", "/ws", upgradeHeader(), http.NoBody); res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") == "" {
			t.Errorf("handshake when drained: %d", res.StatusCode)
		}
		if res, body := n.call("GET", "/readyz", "", ""); res.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, `"status":"drained"`) {
			t.Errorf("readyz when drained: %d %s", res.StatusCode, body)
		}
		if status, state := n.adminCall("DELETE", "/drain"); status != http.StatusOK || state.Phase != "" {
			t.Errorf("DELETE /drain: %d %+v", status, state)
		}
		if res, _ := n.call("GET", "/readyz", "", ""); res.StatusCode != http.StatusOK {
			t.Errorf("readyz after the drain was canceled: %d", res.StatusCode)
		}
		n.dial(nil).send(`{"type":"join","room":"a"}`)
	})
}

// A node that drains accepts handshakes during the delay, serves its clients, and
// closes those that ignore the move.
func TestADrainingNodeServesItsClientsUntilTheDeadline(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n := startDrainNode(t, func(c *Config) { c.DrainDelay, c.DrainWindow, c.DrainTimeout = time.Second, time.Second, 3*time.Second })
		began := time.Now()
		done := make(chan error, 1)
		go func() { done <- n.DrainForShutdown(context.Background()) }()
		n.awaitPhase(drain.PhaseDelay)
		ignoring, following := n.dial(nil), n.dial(nil)
		go following.followMove()
		n.awaitPhase(drain.PhaseMoving)
		ignoring.send(`{"type":"publish","room":"a","data":1,"ref":"p"}`)
		if ack := ignoring.until("ack"); ack["seq"] != 1.0 {
			t.Errorf("ack while draining: %v", ack)
		}
		if code := ignoring.closed(); code != websocket.StatusServiceRestart {
			t.Errorf("closed with %d, want 1012", code)
		}
		if took := time.Since(began); took < 3*time.Second {
			t.Errorf("closed after %v, before the deadline", took)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		if s := n.drain.State(); s.Closed != 1 || s.Moved != 1 {
			t.Errorf("%+v, want one closed and one moved", s)
		}
	})
}

// A client that answers nothing delays a stop by the drain, which asks it to move if
// there is another node, and by the time for one close handshake.
func TestAClientThatNeverAnswersDoesNotBlockShutdown(t *testing.T) {
	const drainTimeout, handshake = 3 * time.Second, 5 * time.Second // docs/limits.md
	for _, tt := range []struct {
		name    string
		targets drain.MoveTargets
		reads   bool
		want    time.Duration
	}{
		{"reads, on a single node", drain.MoveTargets{Known: true, SingleNode: true}, true, handshake},
		{"reads nothing, on a single node", drain.MoveTargets{Known: true, SingleNode: true}, false, handshake},
		{"reads, beside another node", healthyTargets, true, drainTimeout + handshake},
		{"reads nothing, beside another node", healthyTargets, false, drainTimeout + handshake},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				n := startDrainNode(t, func(c *Config) {
					c.DrainWindow, c.DrainTimeout = drainTimeout, drainTimeout
					c.MoveTargets = func(drain.Scope) drain.MoveTargets { return tt.targets }
				})
				_, br := n.rawHandshake("")
				if tt.reads {
					go func() { _, _ = io.Copy(io.Discard, br) }()
				}
				synctest.Wait()
				began := time.Now()
				if err := n.DrainForShutdown(t.Context()); err != nil {
					t.Error(err)
				}
				if took := time.Since(began); took != tt.want {
					t.Errorf("the stop took %v, want %v", took, tt.want)
				}
			})
		})
	}
}

func TestBadDrainRequestsAreRefused(t *testing.T) {
	n := startNode(t, func(c *Config) { c.Deployment = "" })
	for _, query := range []string{"?scope=world", "?scope=deployment", "?reason=" + strings.Repeat("x", 65), "?reason=%ff"} {
		if status, _ := n.adminCall("POST", "/drain"+query); status != http.StatusBadRequest {
			t.Errorf("%s: %d, want 400", query, status)
		}
	}
	if s := n.drain.State(); s.Phase != "" {
		t.Errorf("a refused call started a drain: %+v", s)
	}
	n.addr, n.admin = n.admin, n.addr
	if status, _ := n.adminCall("POST", "/drain"); status != http.StatusNotFound && status != http.StatusMethodNotAllowed {
		t.Errorf("the public listener accepts a drain: %d", status)
	}
}
