// Package drain empties a node of its clients: it asks them to move to other nodes in
// waves, as fast as those accept them, and closes the rest. It knows the clients
// by the interfaces Clients and Client only.
package drain

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"switchyard/internal/protocol"
)

// A Scope says which nodes the clients of a draining node must avoid.
type Scope string

// The scopes of a drain.
const (
	ScopeNode       Scope = "node"       // this node only: other nodes of the deployment may be used
	ScopeDeployment Scope = "deployment" // all nodes of this deployment
)

// The phases of a drain, as the admin API shows them.
const (
	PhaseDelay   = "delay"   // not ready, but handshakes are still accepted
	PhaseMoving  = "moving"  // clients are asked to move
	PhaseClosing = "closing" // the remaining clients are closed
	PhaseDrained = "drained" // running, not ready and empty
)

const (
	// moveGrace is how long a client counts as moving after it was asked to. A
	// client that is still connected after that is ignoring the request, and is
	// closed at the deadline.
	moveGrace = 5 * time.Second
	// nodesGoneWaves is the number of waves that a drain waits after the last other
	// node has disappeared. It is twice the time after which a silent node is
	// dropped. If the drain has seen no other node at all, it waits only for
	// noNodesWaves, because a node may be starting.
	nodesGoneWaves = 10
	noNodesWaves   = 3
)

// A drain empties the node of its clients. The node is unready at once. It refuses
// handshakes after Config.Delay, when the load balancer has noticed, moves its
// clients in waves, and closes the rest at the deadline. The node publishes and
// delivers until its last client has left.
type drain struct {
	node     *Node
	log      *slog.Logger // with the scope and reason of the call that started the drain
	began    time.Time
	deadline time.Time
	cancel   context.CancelFunc
	done     chan struct{} // closed when the drain is complete or canceled

	// The fields from here on belong to loop.
	schedule waveSchedule
	// returnedBefore is the number of returned sessions at the first wave for which it
	// was known. It is valid if hasReturnedBefore.
	returnedBefore    int
	hasReturnedBefore bool

	// Guarded by Node.mu.
	scope      Scope
	reason     string
	phase      string
	phaseStart time.Time // when the phase began
	progress   Progress
	notAsked   int // clients that were not asked yet, as of the last wave
}

// loop runs the phases. ctx ends when the drain is canceled.
func (d *drain) loop(ctx context.Context) {
	defer close(d.done)
	defer d.cancel()
	if !sleep(ctx, d.node.cfg.Delay) {
		return
	}
	d.enterPhase(PhaseMoving)
	if !d.moveInWaves(ctx) {
		return
	}
	d.enterPhase(PhaseClosing)
	if !d.node.closeAll(ctx) {
		return
	}
	if !d.awaitReturns(ctx) {
		return
	}
	d.enterPhase(PhaseDrained)
	took := time.Since(d.began)
	d.node.metrics.duration.Observe(took.Seconds())
	d.log.Info("drained", "took", took, "progress", d.currentProgress())
}

// moveInWaves asks clients to move, wave by wave, until no client is connected, no
// other node can take them, or the deadline has passed. It returns false if the
// drain was canceled.
func (d *drain) moveInWaves(ctx context.Context) bool {
	clients := d.node.cfg.Clients
	var pacer wavePacer
	var returns returnTracker
	var nodelessWaves int // waves in a row without another node
	sawNode := false
	windowEnd := time.Now().Add(d.node.cfg.Window)
	if d.deadline.Before(windowEnd) {
		windowEnd = d.deadline
	}
	tick := time.NewTicker(waveInterval)
	defer tick.Stop()
	for clients.Count() > 0 && time.Now().Before(d.deadline) {
		r := d.targets()
		if nodelessWaves++; !r.Known || r.Nodes > 0 {
			nodelessWaves, sawNode = 0, sawNode || r.Nodes > 0
		}
		if nodelessWaves > nodesGoneWaves || nodelessWaves > 0 && r.SingleNode || nodelessWaves > noNodesWaves && !sawNode {
			d.log.Info("no other node to move clients to", "clients", clients.Count())
			return true
		}
		notAsked, moving := d.countClients()
		d.countNotAsked(notAsked)
		progress := d.updateReturned(r)
		missing := returns.next(progress.Moved+progress.Lost, progress.Returned, r.ReturnsKnown)
		window := time.Until(windowEnd)
		if window < waveInterval { // the window was too short: extend it by half
			windowEnd = time.Now().Add(max(d.node.cfg.Window/2, maxMovingWaves*waveInterval))
			if d.deadline.Before(windowEnd) {
				windowEnd = d.deadline
			}
			window = time.Until(windowEnd)
		}
		if !r.Known { // as many as this node itself would accept
			r.HandshakeLimit = d.node.cfg.HandshakeRate
		}
		previous := pacer.slowdownReason
		n := pacer.next(notAsked, moving, missing, window, r)
		if pacer.slowdownReason != previous {
			d.log.Info("drain wave", "slowdown", pacer.slowdownReason, "size", n, "not_asked", notAsked, "moving", moving, "missing", missing,
				"handshake_p95", r.HandshakeP95, "other_handshakes", r.OtherHandshakes, "refused", r.RefusedHandshakes,
				"limit", r.HandshakeLimit, "draining_nodes", r.DrainingNodes)
		}
		if n > 0 {
			pacer.correctLast(d.sendMoves(n, time.Until(d.deadline)))
		}
		select {
		case <-tick.C:
		case <-clients.Emptied():
		case <-ctx.Done():
			return false
		}
	}
	return ctx.Err() == nil
}

// targets returns the nodes that clients may move to.
func (d *drain) targets() MoveTargets {
	scope, _ := d.request()
	return d.node.cfg.MoveTargets(scope)
}

// countClients counts the clients that were not asked to move yet, and those that
// were asked within moveGrace and are still connected.
func (d *drain) countClients() (notAsked, moving int) {
	now := time.Now()
	d.node.cfg.Clients.Each(func(c Client) {
		switch r := c.MoveRequest(); {
		case !r.IsMade():
			notAsked++
		case r.age(now) < moveGrace:
			moving++
		}
	})
	return notAsked, moving
}

// sendMoves asks n clients to move, spread over a second, and sends them the time until the
// drain's deadline. It returns how many it asked: a client whose session is not saved yet
// waits for another wave.
func (d *drain) sendMoves(n int, untilDeadline time.Duration) (sent int) {
	scope, reason := d.request()
	m := protocol.Move{Reason: reason, Avoid: protocol.Avoid{Node: d.node.cfg.Node}}
	if scope == ScopeDeployment {
		m.Avoid = protocol.Avoid{Deployment: d.node.cfg.Deployment}
	}
	wave := make([]Client, 0, n)
	d.node.cfg.Clients.Each(func(c Client) {
		if len(wave) < n && !c.MoveRequest().IsMade() {
			wave = append(wave, c)
		}
	})
	ready, unsaved := d.node.cfg.Clients.SaveBeforeMove(wave)
	for _, c := range unsaved {
		if !c.MoveRequest().skip() {
			ready = append(ready, c)
		}
	}
	now := time.Now()
	first := d.schedule.next(now)
	for i, c := range ready {
		// Each client gets its own slot, and a random time within it.
		slot := waveInterval / time.Duration(len(ready))
		after := first + time.Duration(i)*slot + rand.N(slot+1)
		m.AfterMS, m.DeadlineMS = after.Milliseconds(), max(untilDeadline, after+waveInterval).Milliseconds()
		c.MoveRequest().record(now)
		c.Send(m.Encode())
	}
	d.countAsked(len(ready))
	return len(ready)
}

// sleep waits for d. It returns false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
