package drain

import (
	"context"
	"testing"
	"time"

	"switchyard/internal/protocol"
)

// The clients that remain at the end are closed over a time in which the other nodes
// can accept them: at least 3, at most 10 seconds.
func TestRemainingClientsAreClosedOverSeconds(t *testing.T) {
	for clients, want := range map[int]struct{ batch, seconds int }{
		30:   {40, 0},  // at least 40 at a time
		1200: {41, 3},  // 3 s
		2400: {41, 6},  // 80 % of 500 a second
		5000: {51, 10}, // 10 s
	} {
		inBubble(t, nil, func(t *testing.T, n *testNode) {
			all := n.connectMany(clients, ignores)
			began := time.Now()
			if err := n.CloseClients(t.Context()); err != nil {
				t.Error(err)
			}
			took := time.Since(began)
			if off := took - time.Duration(want.seconds)*time.Second; off.Abs() > 3*closeInterval {
				t.Errorf("%d clients were closed in %v, want %d s", clients, took, want.seconds)
			}
			batches := map[time.Duration]int{}
			for _, c := range all {
				if c.code != protocol.CloseRestart {
					t.Fatalf("%d clients: one was closed with %d", clients, c.code)
				}
				batches[c.closedAt.Sub(began)]++
			}
			for at, size := range batches {
				if size > want.batch {
					t.Errorf("%d clients: %d were closed after %v, want at most %d", clients, size, at, want.batch)
				}
			}
		})
	}
}

// A client that does not answer the close is aborted, and does not hold the node up.
func TestClientsThatDoNotAnswerACloseAreAborted(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, n *testNode) {
		c := n.connect(silent)
		began := time.Now()
		if err := n.CloseClients(t.Context()); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took != n.cfg.CloseTimeout || !c.aborted {
			t.Errorf("after %v, aborted: %v; want aborted after %v", took, c.aborted, n.cfg.CloseTimeout)
		}
	})
}

func TestClosingEndsWithItsContext(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, n *testNode) {
		c := n.connect(silent)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := n.CloseClients(ctx); err == nil || !c.aborted {
			t.Errorf("error %v, aborted: %v; want both", err, c.aborted)
		}
		if n.TakesClients() || !n.IsClosing() || n.Undrain() {
			t.Error("a node that is stopped takes clients")
		}
	})
}

// A node is drained when it has no connection: an operator may remove it then. The end of
// a connection that was aborted takes a moment, too.
func TestADrainedNodeHasNoClients(t *testing.T) {
	inBubble(t, func(c *Config) { c.Timeout = time.Second }, func(t *testing.T, n *testNode) {
		n.connect(lingers)
		began := time.Now()
		n.Start(ScopeNode, "x")
		n.awaitPhase(PhaseDrained)
		if s := n.State(); s.Clients != 0 {
			t.Errorf("a drained node has %d clients", s.Clients)
		}
		if took, want := time.Since(began), time.Second+n.cfg.CloseTimeout+lingerTime; took < want || took > want+time.Second {
			t.Errorf("drained after %v, want after %v", took, want)
		}
	})
}

// A connection that does not end does not hold the drain up, and the log shows it.
func TestADrainDoesNotWaitForEverForAnAbortedClient(t *testing.T) {
	inBubble(t, func(c *Config) { c.Timeout = time.Second }, func(t *testing.T, n *testNode) {
		c := n.connect(stuck)
		began := time.Now()
		n.Start(ScopeNode, "x")
		n.awaitPhase(PhaseDrained)
		if took, limit := time.Since(began), time.Second+n.cfg.CloseTimeout+2*time.Second; took > limit {
			t.Errorf("drained after %v, want within %v", took, limit)
		}
		if s := n.State(); s.Clients != 1 || n.logs.Count(`"msg":"aborted clients are still connected"`) != 1 {
			t.Errorf("%+v; the log does not show the client that is left: %s", s, n.logs)
		}
		c.leave(protocol.CloseRestart, false)
	})
}
