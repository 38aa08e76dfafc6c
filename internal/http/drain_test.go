package http

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"nhooyr.io/websocket"

	"switchyard/internal/testkit"
)

// adminCall calls the admin listener, and returns the status and the answer.
func (n *node) adminCall(method, path string) (int, DrainState) {
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
	var state DrainState
	if res.StatusCode < 300 {
		if err := json.NewDecoder(res.Body).Decode(&state); err != nil {
			n.t.Fatal(err)
		}
	}
	return res.StatusCode, state
}

func (n *node) awaitPhase(phase string) {
	n.t.Helper()
	testkit.Eventually(n.t, "the phase "+phase, func() bool { return n.DrainState().Phase == phase })
}

// startDrainNode starts a node that moves its clients as fast as it may, to a node
// without trouble.
func startDrainNode(t *testing.T, change func(*Config)) *node {
	t.Helper()
	return startNode(t, func(c *Config) {
		c.DrainWindow, c.DrainTimeout = 3*time.Second, 20*time.Second
		c.MoveTargets = func(Scope) MoveTargets { return healthyTargets }
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
		n := startDrainNode(t, nil)
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
		if status, state := n.adminCall("POST", "/drain?scope=deployment&reason=release"); status != http.StatusAccepted || state.Clients != clients {
			t.Errorf("POST /drain: %d %+v", status, state)
		}
		if res, body := n.call("GET", "/readyz", "", ""); res.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, `"status":"dra`) {
			t.Errorf("readyz right after the drain began: %d %s", res.StatusCode, body)
		}
		if got := n.metric("websocket_draining"); got != "1" {
			t.Errorf("websocket_draining %s", got)
		}
		arrived.Wait()
		n.awaitPhase(phaseDrained)
		state := n.DrainState()
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

func TestAClientThatIgnoresTheMoveIsClosedAtTheDeadline(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n := startDrainNode(t, func(c *Config) { c.DrainWindow, c.DrainTimeout = time.Second, 2*time.Second })
		ignoring, following := n.dial(nil), n.dial(nil)
		go following.followMove()
		began := time.Now()
		go func() { _ = n.Drain(context.Background(), ScopeNode, "stopping") }()
		if code := ignoring.closed(); code != websocket.StatusServiceRestart {
			t.Errorf("closed with %d, want 1012", code)
		}
		if took := time.Since(began); took < 2*time.Second {
			t.Errorf("closed after %v, before the deadline", took)
		}
		n.awaitPhase(phaseDrained)
		progress := n.DrainState()
		deadline, err := strconv.ParseFloat(n.metric("websocket_drain_deadline_timestamp_seconds"), 64)
		if late := deadline - float64(began.UnixMilli())/1000; err != nil || late < 1.9 || late > 3 {
			t.Errorf("the deadline is %v s after the beginning (%v), want 2", late, err)
		}
		if n.Undrain(); n.metric("websocket_drain_deadline_timestamp_seconds") != "0" {
			t.Error("a canceled drain still has a deadline")
		}
		if s := progress; s.Closed != 1 || s.Moved != 1 {
			t.Errorf("%+v, want one closed and one moved", s)
		}
	})
}

func TestHandshakesAreAcceptedDuringTheDrainDelay(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n := startDrainNode(t, func(c *Config) { c.DrainDelay = time.Second })
		done := make(chan error, 1)
		go func() { done <- n.Drain(context.Background(), ScopeNode, "stopping") }()
		n.awaitPhase(phaseDelay)
		late := n.dial(nil) // not ready, but it is served and then moved
		go late.followMove()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if s := n.DrainState(); s.Moved != 1 || s.Seconds < 1 {
			t.Errorf("%+v, want the late client moved after the delay", s)
		}
	})
}

func TestADrainWaitsUntilAnotherNodeIsReady(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var targets atomic.Pointer[MoveTargets]
		targets.Store(&MoveTargets{Known: true, Nodes: 1}) // starting: not ready
		n := startDrainNode(t, func(c *Config) { c.MoveTargets = func(Scope) MoveTargets { return *targets.Load() } })
		b := n.dial(nil)
		go func() { _ = n.Drain(context.Background(), ScopeNode, "stopping") }()
		n.awaitPhase(phaseMoving)
		b.send(`{"type":"publish","room":"a","data":1,"ref":"p"}`) // the client is still served
		if ack := b.until("ack"); ack["seq"] != 1.0 {
			t.Errorf("ack while draining: %v", ack)
		}
		if s := n.DrainState(); s.Asked != 0 {
			t.Errorf("%d clients were asked to move while no node is ready", s.Asked)
		}
		targets.Store(&healthyTargets)
		b.followMove()
		n.awaitPhase(phaseDrained)
	})
}

// A developer works alone on a laptop and presses Ctrl-C. No other node can take
// the clients, so the drain does not wait for one.
func TestWithoutAnotherNodeClientsAreClosedAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n := startDrainNode(t, func(c *Config) { c.MoveTargets = func(Scope) MoveTargets { return MoveTargets{Known: true} } })
		b := n.dial(nil)
		began := time.Now()
		go func() { _ = n.Drain(context.Background(), ScopeNode, "stopping") }()
		if code := b.closed(); code != websocket.StatusServiceRestart {
			t.Errorf("closed with %d", code)
		}
		n.awaitPhase(phaseDrained)
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("the drain took %v", took)
		}
		if state := n.DrainState(); state.Asked != 0 || state.Closed != 1 {
			t.Errorf("%+v, want one client closed that was not asked", state)
		}
	})
}

// Probes read the state of a node, and clients come and go, while drains begin and
// are canceled.
func TestProbesAndDrainsDoNotDeadlock(t *testing.T) {
	n := startDrainNode(t, func(c *Config) { c.DrainDelay = 0 })
	var probes sync.WaitGroup
	drained := make(chan struct{})
	for range 4 {
		probes.Go(func() {
			for {
				select {
				case <-drained:
					return
				default:
					n.DrainState()
					n.Status()
					n.isClosing()
				}
			}
		})
	}
	go func() {
		defer close(drained)
		for range many(100, 300) {
			n.findOrStartDrain(ScopeNode, "test")
			n.Undrain()
		}
	}()
	testkit.Receive(t, "the drains to end, since a drain and a probe do not wait for each other", drained)
	probes.Wait()
}

// After a signal the process ends, whatever operators request.
func TestADrainForShutdownCannotBeUndone(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n := startDrainNode(t, nil)
		n.dial(nil)
		go func() { _ = n.DrainForShutdown(context.Background()) }()
		testkit.Eventually(t, "the drain", func() bool { return n.DrainState().Phase != "" })
		if n.Undrain() || n.DrainState().Phase == "" {
			t.Error("the drain was canceled")
		}
		n.findOrStartDrain(ScopeDeployment, "deploy")
		n.findOrStartDrain(ScopeNode, "stopping")
		if got := n.DrainState().Scope; got != ScopeDeployment {
			t.Errorf("scope %s, want deployment: a sibling may be draining, too", got)
		}
	})
}

// A client that answers nothing delays a stop by the drain, which asks it to move if
// there is another node, and by the time for one close handshake.
func TestAClientThatNeverAnswersDoesNotBlockShutdown(t *testing.T) {
	const drain, handshake = 3 * time.Second, 5 * time.Second // docs/limits.md
	for _, tt := range []struct {
		name    string
		targets MoveTargets
		reads   bool
		want    time.Duration
	}{
		{"reads, on a single node", MoveTargets{Known: true, SingleNode: true}, true, handshake},
		{"reads nothing, on a single node", MoveTargets{Known: true, SingleNode: true}, false, handshake},
		{"reads, beside another node", healthyTargets, true, drain + handshake},
		{"reads nothing, beside another node", healthyTargets, false, drain + handshake},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				n := startDrainNode(t, func(c *Config) {
					c.DrainWindow, c.DrainTimeout = drain, drain
					c.MoveTargets = func(Scope) MoveTargets { return tt.targets }
				})
				_, br := n.rawHandshake("")
				if tt.reads {
					go func() { _, _ = io.Copy(io.Discard, br) }()
				}
				synctest.Wait()
				began := time.Now()
				if err := errors.Join(n.DrainForShutdown(t.Context()), n.CloseSockets(t.Context())); err != nil {
					t.Error(err)
				}
				if took := time.Since(began); took != tt.want {
					t.Errorf("the stop took %v, want %v", took, tt.want)
				}
			})
		})
	}
}

// A drain waits for nodes that were there and are not seen for a moment.
func TestADrainWaitsForNodesThatDisappearBriefly(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var calls atomic.Int64
		n := startDrainNode(t, func(c *Config) {
			c.DrainWindow, c.DrainTimeout = time.Minute, time.Minute
			c.MoveTargets = func(Scope) MoveTargets {
				if call := calls.Add(1); call > 1 && call < 5 {
					return MoveTargets{Known: true}
				}
				return healthyTargets
			}
		})
		n.dial(nil)
		n.findOrStartDrain(ScopeNode, "test")
		testkit.Eventually(t, "the nodes to return", func() bool { return calls.Load() > 5 })
		if state := n.DrainState(); state.Phase != phaseMoving || state.Clients != 1 {
			t.Errorf("the drain gave up: %+v", state)
		}
	})
}

func TestADrainCanceledMidway(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var targets atomic.Pointer[MoveTargets]
		targets.Store(&healthyTargets)
		n := startDrainNode(t, func(c *Config) {
			c.DrainWindow = time.Minute
			c.DrainTimeout = time.Minute
			c.MoveTargets = func(Scope) MoveTargets { return *targets.Load() }
		})
		clients := make([]*browser, 2*minWave)
		for i := range clients {
			clients[i] = n.dial(nil)
		}
		failed := make(chan error, 1)
		go func() { failed <- n.Drain(context.Background(), ScopeNode, "stopping") }()
		testkit.Eventually(t, "the first wave", func() bool { return n.DrainState().Asked > 0 })
		if !n.Undrain() || n.Undrain() {
			t.Error("a drain can be canceled once")
		}
		if err := <-failed; !errors.Is(err, ErrDrainCanceled) {
			t.Errorf("Drain returned %v, want ErrDrainCanceled", err)
		}
		for i, b := range clients { // those that were asked are served as well
			b.send(`{"type":"publish","room":"a","data":%d,"ref":"p"}`, i)
			b.until("ack")
		}
		n.dial(nil)
		// The next drain asks all clients again.
		var gone sync.WaitGroup
		for _, b := range clients {
			gone.Go(b.followMove)
		}
		n.findOrStartDrain(ScopeNode, "again")
		gone.Wait()
		testkit.Eventually(t, "all clients to be asked", func() bool { return n.DrainState().Asked >= len(clients) })
	})
}

func TestASecondDrainJoinsTheFirst(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n := startDrainNode(t, nil)
		n.adminCall("POST", "/drain?scope=deployment")
		n.awaitPhase(phaseDrained)
		// This is a SIGTERM after an operator has drained the node.
		if err := n.Drain(t.Context(), ScopeNode, "stopping"); err != nil {
			t.Error(err)
		}
		n.Stop()
		if n.Undrain() {
			t.Error("the drain of a stopping node was canceled")
		}
	})
}

func TestBadDrainRequestsAreRefused(t *testing.T) {
	n := startNode(t, func(c *Config) { c.Deployment = "" })
	for _, query := range []string{"?scope=world", "?scope=deployment", "?reason=" + strings.Repeat("x", 65), "?reason=%ff"} {
		if status, _ := n.adminCall("POST", "/drain"+query); status != http.StatusBadRequest {
			t.Errorf("%s: %d, want 400", query, status)
		}
	}
	if s := n.DrainState(); s.Phase != "" {
		t.Errorf("a refused call started a drain: %+v", s)
	}
	n.addr, n.admin = n.admin, n.addr
	if status, _ := n.adminCall("POST", "/drain"); status != http.StatusNotFound && status != http.StatusMethodNotAllowed {
		t.Errorf("the public listener accepts a drain: %d", status)
	}
}
