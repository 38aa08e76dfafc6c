package drain

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"switchyard/internal/protocol"
	"switchyard/internal/testkit"
)

// A drain asks each client once, in waves of a second, and is over when all have left.
func TestADrainMovesEveryClientInWaves(t *testing.T) {
	for scope, want := range map[Scope]moveFrame{ScopeNode: {Reason: "r"}, ScopeDeployment: {Reason: "r"}} {
		inBubble(t, nil, func(t *testing.T, n *testNode) {
			if want.Avoid.Node = "n1"; scope == ScopeDeployment {
				want.Avoid.Node, want.Avoid.Deployment = "", "d1"
			}
			clients := n.connectMany(30, follows)
			began := time.Now()
			n.Start(scope, "r")
			n.awaitPhase(PhaseDrained)
			waves := map[time.Duration]int{}
			for _, c := range clients {
				moves := c.received()
				if len(moves) != 1 {
					t.Fatalf("a client was asked %d times", len(moves))
				}
				m := moves[0]
				waves[m.at.Sub(began)]++
				if m.Reason != want.Reason || m.Avoid != want.Avoid {
					t.Errorf("move %+v, want %+v", m, want)
				}
				if m.AfterMS < 0 || m.AfterMS > 1000 {
					t.Errorf("after_ms is %d, want at most 1000: within the wave's second", m.AfterMS)
				}
				if m.Left < 1000 || m.Left > 20_000 {
					t.Errorf("deadline_ms is %d, want 1000 to 20000", m.Left)
				}
			}
			if len(waves) != 3 || waves[0] != 10 || waves[time.Second] != 10 || waves[2*time.Second] != 10 {
				t.Errorf("waves %v, want 10 in each second of the window", waves)
			}
			if s := n.State(); s.Phase != PhaseDrained || s.Asked != 30 || s.Moved != 30 || s.Clients != 0 || s.Closed+s.Lost != 0 {
				t.Errorf("drained: %+v", s)
			}
			if n.metric("websocket_moves_total", moveAsked) != 30 || n.metric("websocket_moves_total", moveDone) != 30 || n.metric("websocket_drain_duration_seconds", "") != 1 {
				t.Error("the metrics do not show the moves")
			}
			if s := n.Status(); !s.Draining || s.MovesAsked != 30 || s.Leaving != 0 {
				t.Errorf("status %+v", s)
			}
		})
	}
}

func TestAClientThatIgnoresTheMoveIsClosedAtTheDeadline(t *testing.T) {
	inBubble(t, func(c *Config) { c.Window, c.Timeout = time.Second, 2*time.Second }, func(t *testing.T, n *testNode) {
		ignoring := n.connect(ignores)
		n.connect(follows)
		began := time.Now()
		n.Start(ScopeNode, "stopping")
		if code := ignoring.closedWith(t); code != protocol.CloseRestart {
			t.Errorf("closed with %d, want 1012", code)
		}
		if took := time.Since(began); took < 2*time.Second || took > 2100*time.Millisecond {
			t.Errorf("closed after %v, want at the deadline after 2s", took)
		}
		n.awaitPhase(PhaseDrained)
		if s := n.State(); s.Closed != 1 || s.Moved != 1 {
			t.Errorf("%+v, want one closed and one moved", s)
		}
		deadline := began.Add(2 * time.Second)
		if got := n.metric("websocket_drain_deadline_timestamp_seconds", ""); got != float64(deadline.UnixMilli())/1000 {
			t.Errorf("the deadline is %v, want %v", got, deadline)
		}
		if n.metric("websocket_draining", "") != 1 {
			t.Error("a drained node does not show it")
		}
		n.Undrain()
		if n.metric("websocket_drain_deadline_timestamp_seconds", "") != 0 || n.metric("websocket_draining", "") != 0 {
			t.Error("a canceled drain still has a deadline")
		}
	})
}

func TestHandshakesAreAcceptedDuringTheDrainDelay(t *testing.T) {
	inBubble(t, func(c *Config) { c.Delay = time.Second }, func(t *testing.T, n *testNode) {
		n.Start(ScopeNode, "stopping")
		n.awaitPhase(PhaseDelay)
		if late := n.connect(follows); late == nil || n.IsClosing() {
			t.Fatal("a handshake during the delay was refused")
		}
		n.awaitPhase(PhaseMoving)
		if n.connect(follows) != nil {
			t.Error("a handshake after the delay was accepted")
		}
		n.awaitPhase(PhaseDrained)
		if s := n.State(); s.Moved != 1 || s.Seconds < 1 {
			t.Errorf("%+v, want the late client moved after the delay", s)
		}
	})
}

func TestADrainWaitsUntilAnotherNodeIsReady(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, n *testNode) {
		n.targets.Store(&MoveTargets{Known: true, Nodes: 1}) // starting: not ready
		c := n.connect(follows)
		n.Start(ScopeNode, "stopping")
		time.Sleep(5 * time.Second)
		if s := n.State(); s.Phase != PhaseMoving || s.Asked != 0 {
			t.Errorf("while no node is ready: %+v", s)
		}
		if s := n.Status(); s.Leaving != 1 {
			t.Errorf("status %+v, want one client that must still be asked", s)
		}
		n.targets.Store(&healthyTargets)
		n.awaitPhase(PhaseDrained)
		if len(c.received()) != 1 {
			t.Error("the client was not asked")
		}
	})
}

// A developer works alone on a laptop and presses Ctrl-C. No other node can take
// the clients, so the drain does not wait for one.
func TestWithoutAnotherNodeClientsAreClosedAtOnce(t *testing.T) {
	for _, alone := range []MoveTargets{{Known: true}, {Known: true, SingleNode: true}} {
		inBubble(t, nil, func(t *testing.T, n *testNode) {
			n.targets.Store(&alone)
			c := n.connect(ignores)
			began := time.Now()
			n.Start(ScopeNode, "stopping")
			if code := c.closedWith(t); code != protocol.CloseRestart {
				t.Errorf("closed with %d", code)
			}
			n.awaitPhase(PhaseDrained)
			limit := (noNodesWaves + 1) * time.Second
			if alone.SingleNode {
				limit = 100 * time.Millisecond
			}
			if took := time.Since(began); took > limit {
				t.Errorf("%+v: the drain took %v", alone, took)
			}
			if s := n.State(); s.Asked != 0 || s.Closed != 1 {
				t.Errorf("%+v, want one client closed that was not asked", s)
			}
		})
	}
}

// Probes read the state of a node, and clients come and go, while drains begin and
// are canceled. The clients' lock is held while the node is called, and the node calls
// the clients.
func TestProbesAndDrainsDoNotDeadlock(t *testing.T) {
	n := startNode(t, nil) // in no bubble: its clock would wait for the locks, too
	var probes sync.WaitGroup
	drained := make(chan struct{})
	for range 4 {
		probes.Go(func() {
			for {
				select {
				case <-drained:
					return
				default:
					n.State()
					n.Status()
					n.IsClosing()
					if c := n.connect(follows); c != nil {
						c.leave(protocol.CloseRestart, false)
					}
				}
			}
		})
	}
	rounds := 100
	if *longStorms {
		rounds = 300
	}
	go func() {
		defer close(drained)
		for range rounds {
			n.Start(ScopeNode, "test")
			n.Undrain()
		}
	}()
	testkit.Receive(t, "the drains to end, since a drain and a probe do not wait for each other", drained)
	probes.Wait()
}

// After a signal the process ends, whatever operators request.
func TestADrainForShutdownCannotBeUndone(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, n *testNode) {
		n.connect(ignores)
		go func() { _ = n.Shutdown(context.Background()) }()
		synctest.Wait()
		if n.Undrain() || n.State().Phase == "" {
			t.Error("the drain was canceled")
		}
		n.Start(ScopeDeployment, "deploy")
		n.Start(ScopeNode, "stopping")
		if got := n.State().Scope; got != ScopeDeployment {
			t.Errorf("scope %s, want deployment: a sibling may be draining, too", got)
		}
		n.awaitPhase(PhaseDrained)
	})
}

// A drain waits for nodes that were there and are not seen for a moment.
func TestADrainWaitsForNodesThatDisappearBriefly(t *testing.T) {
	inBubble(t, func(c *Config) { c.Window, c.Timeout = time.Minute, time.Minute }, func(t *testing.T, n *testNode) {
		n.connect(ignores)
		n.Start(ScopeNode, "test")
		synctest.Wait()
		n.targets.Store(&MoveTargets{Known: true})
		time.Sleep((nodesGoneWaves - 1) * time.Second)
		n.targets.Store(&healthyTargets)
		time.Sleep(nodesGoneWaves * time.Second)
		if s := n.State(); s.Phase != PhaseMoving || s.Clients != 1 {
			t.Errorf("the drain gave up: %+v", s)
		}
		n.targets.Store(&MoveTargets{Known: true})
		time.Sleep((nodesGoneWaves + 2) * time.Second)
		if s := n.State(); s.Phase != PhaseDrained {
			t.Errorf("the drain waits for nodes that are gone: %+v", s)
		}
	})
}

func TestADrainCanceledMidway(t *testing.T) {
	inBubble(t, func(c *Config) { c.Window, c.Timeout = time.Minute, time.Minute }, func(t *testing.T, n *testNode) {
		clients := n.connectMany(2*minWave, ignores)
		n.Start(ScopeNode, "canceled")
		testkit.Eventually(t, "the first wave", func() bool { return n.State().Asked > 0 })
		if !n.Undrain() || n.Undrain() {
			t.Error("a drain can be canceled once")
		}
		if n.connect(ignores) == nil {
			t.Error("a handshake after the drain was refused")
		}
		// The next drain asks all clients again.
		n.Start(ScopeNode, "again")
		testkit.Eventually(t, "all clients to be asked", func() bool { return n.State().Asked > len(clients) })
		for i, c := range clients {
			if moves := c.received(); moves[len(moves)-1].Reason != "again" {
				t.Errorf("client %d was not asked again", i)
			}
		}
	})
}

// Redis hiccups when a drain begins: the node learns of the others a moment later. All
// clients are asked to move nevertheless, and none is closed at the deadline.
func TestADrainThatLearnsOfOtherNodesLateMovesEveryClient(t *testing.T) {
	inBubble(t, func(c *Config) { c.Window, c.Timeout = 10*time.Second, 30*time.Second }, func(t *testing.T, n *testNode) {
		n.targets.Store(&MoveTargets{})
		n.connectMany(100, follows)
		n.Start(ScopeNode, "x")
		synctest.Wait() // the first wave
		n.targets.Store(&healthyTargets)
		n.awaitPhase(PhaseDrained)
		if s := n.State(); s.Moved != 100 || s.Closed != 0 || s.Seconds > 12 {
			t.Errorf("%+v, want all clients moved within the window", s)
		}
	})
}

// An operator cancels a drain while another begins one. The second drain begins when the
// first one has ended: what was canceled is what the first one asked.
func TestADrainBeginsAfterTheOneBeforeWasCanceled(t *testing.T) {
	var seen []string // hooks are called one at a time
	hook := func(what string) func(Scope, string) {
		return func(_ Scope, reason string) { seen = append(seen, what+" "+reason) }
	}
	inBubble(t, func(c *Config) { c.OnStart, c.OnCancel = hook("start"), hook("cancel") }, func(t *testing.T, n *testNode) {
		saving, release := make(chan struct{}), make(chan struct{})
		n.save = func(wave []Client) (saved, unsaved []Client) {
			if len(seen) == 1 { // the first drain is in the middle of a wave
				close(saving)
				<-release
			}
			return wave, nil
		}
		c := n.connect(ignores)
		n.Start(ScopeNode, "first")
		<-saving
		go n.Undrain()
		synctest.Wait() // it waits for the wave
		go n.Start(ScopeNode, "second")
		synctest.Wait() // it waits for the cancel
		close(release)
		synctest.Wait()
		if want := []string{"start first", "cancel first", "start second"}; !slices.Equal(seen, want) {
			t.Errorf("%q, want %q", seen, want)
		}
		if moves := c.received(); len(moves) != 2 || moves[1].Reason != "second" || !c.request.IsMade() {
			t.Errorf("%+v, want the client asked by both drains, and not again", moves)
		}
		time.Sleep(3 * time.Second)
		if moves := c.received(); len(moves) != 2 {
			t.Errorf("the client was asked %d times by the second drain", len(moves)-1)
		}
	})
}

// A drain can be canceled in every phase. The node then takes clients, the loop has
// ended, and the hooks have seen the drain begin before it was canceled.
func TestADrainIsCanceledInAnyPhase(t *testing.T) {
	for _, phase := range []string{PhaseDelay, PhaseMoving, PhaseClosing, PhaseDrained} {
		var seen []string
		hook := func(what string) func(Scope, string) {
			return func(scope Scope, reason string) { seen = append(seen, what+" "+string(scope)+" "+reason) }
		}
		inBubble(t, func(c *Config) {
			c.Delay, c.Timeout = time.Second, 3*time.Second
			c.OnStart, c.OnCancel = hook("start"), hook("cancel")
		}, func(t *testing.T, n *testNode) {
			n.connect(silent) // it is aborted five seconds after it was closed
			n.Start(ScopeNode, "x")
			n.awaitPhase(phase)
			if got := n.TakesClients(); got != (phase == PhaseDelay) {
				t.Errorf("%s: takes clients: %v", phase, got)
			}
			if got := n.IsClosing(); got != (phase == PhaseClosing || phase == PhaseDrained) {
				t.Errorf("%s: is closing: %v", phase, got)
			}
			if !n.Undrain() {
				t.Errorf("%s: the drain was not canceled", phase)
			}
			if s := n.State(); s.Phase != "" || !n.TakesClients() || n.IsClosing() || n.Status().Draining {
				t.Errorf("%s: after the drain %+v", phase, s)
			}
			if want := []string{"start node x", "cancel node x"}; !slices.Equal(seen, want) {
				t.Errorf("%s: %q, want %q", phase, seen, want)
			}
			if n.logs.Count(`"msg":"undrained"`) != 1 {
				t.Errorf("%s: the log does not show that the drain was canceled: %s", phase, n.logs)
			}
		})
	}
}

func TestASecondDrainJoinsTheFirst(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, n *testNode) {
		n.Start(ScopeDeployment, "deploy")
		n.awaitPhase(PhaseDrained)
		n.Stop()
		if n.Undrain() {
			t.Error("the drain of a stopping node was canceled")
		}
		// This is a SIGTERM after an operator has drained the node.
		if err := n.Shutdown(t.Context()); err != nil || n.State().Phase != PhaseDrained {
			t.Errorf("error %v, state %+v", err, n.State())
		}
	})
}

// A shutdown that takes too long ends: the clients that are left are closed at once, and
// the log says that they were not all moved.
func TestAShutdownEndsWithItsContext(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, n *testNode) {
		ignoring, dead := n.connect(ignores), n.connect(silent)
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := n.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Shutdown returned %v", err)
		}
		if a, b := ignoring.closedWith(t), dead.closedWith(t); a != protocol.CloseRestart || b != protocol.CloseRestart || !dead.aborted {
			t.Errorf("closed with %d and %d, aborted: %v", a, b, dead.aborted)
		}
		if took := time.Since(began); took > 1100*time.Millisecond {
			t.Errorf("the clients were closed after %v, want when the context ended", took)
		}
		if n.logs.Count(`"msg":"the drain did not complete"`) != 1 {
			t.Errorf("the log does not show that the drain did not complete: %s", n.logs)
		}
	})
}

// A client whose session is not saved waits for another wave.
func TestAClientWhoseSessionIsNotSavedWaitsForAnotherWave(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, n *testNode) {
		waves := 0
		n.save = func(wave []Client) (saved, unsaved []Client) {
			if waves++; waves < 2 {
				return nil, wave
			}
			return wave, nil
		}
		began := time.Now()
		c := n.connect(follows)
		n.Start(ScopeNode, "x")
		n.awaitPhase(PhaseDrained)
		if moves := c.received(); len(moves) != 1 || moves[0].at.Sub(began) != time.Second {
			t.Errorf("%+v, want the client asked in the second wave", moves)
		}
		if s := n.State(); s.Asked != 1 || s.Moved != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// A Redis that stores nothing holds a drain up for two waves, and after a cancel the next
// drain for two as well.
func TestEachDrainWaitsTwoWavesForSaves(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, n *testNode) {
		n.save = func(wave []Client) (saved, unsaved []Client) { return nil, wave }
		c := n.connect(ignores)
		for drains := range 3 {
			began := time.Now()
			n.Start(ScopeNode, "x")
			testkit.Eventually(t, "the client to be asked", func() bool { return len(c.received()) > drains })
			if took := c.received()[drains].at.Sub(began); took != maxSkippedWaves*waveInterval {
				t.Errorf("drain %d asked a client without a saved session after %v, want after two waves", drains+1, took)
			}
			n.Undrain()
		}
	})
}

// The end of a connection counts by what happened to it.
func TestEveryEndOfAMovedClientIsCounted(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, n *testNode) {
		n.RecordEnd(protocol.CloseRestart, false) // no drain: not counted
		n.connect(ignores)
		n.Start(ScopeNode, "x")
		synctest.Wait()
		n.RecordEnd(protocol.CloseNormal, true)
		n.RecordEnd(protocol.CloseReplaced, false)
		n.RecordEnd(protocol.CloseRestart, false)
		n.RecordEnd(1006, false)
		if s := n.State(); s.Moved != 2 || s.Closed != 1 || s.Lost != 1 {
			t.Errorf("%+v, want two moved, one closed and one lost", s)
		}
		for result, want := range map[string]float64{moveDone: 2, moveClosed: 1, moveLost: 1} {
			if got := n.metric("websocket_moves_total", result); got != want {
				t.Errorf("%s: %v, want %v", result, got, want)
			}
		}
		if logs := n.logs.String(); !strings.Contains(logs, `"msg":"drain phase ended","reason":"x","scope":"node","phase":"delay"`) {
			t.Errorf("the log does not show the phases: %s", logs)
		}
	})
}
