package http

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"switchyard/internal/audit"
	"switchyard/internal/conn"
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
	phaseDelay   = "delay"   // not ready, but handshakes are still accepted
	phaseMoving  = "moving"  // clients are asked to move
	phaseClosing = "closing" // the remaining clients are closed
	phaseDrained = "drained" // running, not ready and empty
)

const (
	// moveGrace is how long a client counts as moving after it was asked to. A
	// client that is still connected after that is ignoring the request, and is
	// closed at the deadline.
	moveGrace = 5 * time.Second
	// The remaining clients reconnect within a second, so they are closed over
	// closeSpread, or longer, up to maxCloseSpread, if the other nodes could not
	// accept them that fast. In each closeInterval at least minCloseBatch clients
	// are closed.
	closeSpread    = 3 * time.Second
	maxCloseSpread = 10 * time.Second
	closeInterval  = 100 * time.Millisecond
	minCloseBatch  = 40
	// nodesGoneWaves is the number of waves that a drain waits after the last other
	// node has disappeared. It is twice the time after which a silent node is
	// dropped. If the drain has seen no other node at all, it waits only for
	// noNodesWaves, because a node may be starting.
	nodesGoneWaves = 10
	noNodesWaves   = 3
)

// ErrDrainCanceled means that a drain was canceled before it was complete.
var ErrDrainCanceled = errors.New("the drain was canceled")

// A drain empties the node of its clients. The node is unready at once. It refuses
// handshakes after DRAIN_DELAY, when the load balancer has noticed, moves its
// clients in waves, and closes the rest at the deadline. The node publishes and
// delivers until its last client has left.
type drain struct {
	server   *Server
	log      *slog.Logger
	began    time.Time
	cancel   context.CancelFunc
	done     chan struct{} // closed when the drain is complete or canceled
	notAsked atomic.Int64  // clients that were not asked yet, as of the last wave
	schedule waveSchedule  // belongs to loop

	// mu protects the fields below. A goroutine may lock it while it holds
	// Server.mu, never the other way around.
	mu         sync.Mutex
	scope      Scope
	reason     string
	phase      string
	phaseStart time.Time // when the phase began
	progress   Progress
	canceled   bool
	// returnedBefore is the number of returned sessions when the drain began. It is
	// valid if hasReturnedBefore.
	returnedBefore    int
	hasReturnedBefore bool
}

// Drain starts a drain, or waits for the running drain. It returns when the node is
// empty, when the drain is canceled (ErrDrainCanceled), or when ctx ends, in which case
// the drain continues.
func (s *Server) Drain(ctx context.Context, scope Scope, reason string) error {
	d := s.findOrStartDrain(scope, reason)
	select {
	case <-d.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.canceled {
		return ErrDrainCanceled
	}
	return nil
}

// DrainForShutdown drains the node of a process that is stopping. It can't be
// canceled.
func (s *Server) DrainForShutdown(ctx context.Context) error {
	s.mu.Lock()
	s.exitAfterDrain = true
	s.mu.Unlock()
	return s.Drain(ctx, ScopeNode, "stopping")
}

// findOrStartDrain returns the running drain, or starts one. In a running one, the
// wider scope and the newest reason apply to the clients that were not asked yet.
func (s *Server) findOrStartDrain(scope Scope, reason string) *drain {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.drain
	if d != nil {
		d.mu.Lock()
		if d.reason = reason; scope == ScopeDeployment {
			d.scope = scope
		}
		d.mu.Unlock()
		return d
	}
	ctx, cancel := context.WithCancel(context.Background())
	now := time.Now()
	d = &drain{
		server: s, log: s.log.With("reason", reason, "scope", string(scope)),
		began: now, phaseStart: now, cancel: cancel, done: make(chan struct{}),
		scope: scope, reason: reason, phase: phaseDelay,
	}
	s.drain = d
	s.metrics.drainStarted(now.Add(s.cfg.DrainTimeout))
	s.audit.Record(&audit.Line{Event: audit.DrainBegun, Subject: string(scope), Reason: reason})
	d.log.Info("draining", "clients", s.admission.count(), "delay", s.cfg.DrainDelay, "timeout", s.cfg.DrainTimeout)
	go d.loop(ctx)
	return d
}

// Undrain cancels a drain in any phase, and the node accepts connections again.
// Clients that were asked to move may still leave. It returns false if no drain is
// running or the process is stopping.
func (s *Server) Undrain() bool {
	s.mu.Lock()
	d := s.drain
	if d == nil || s.exitAfterDrain || s.stopping {
		s.mu.Unlock()
		return false
	}
	d.mu.Lock()
	d.canceled = true
	d.mu.Unlock()
	d.cancel()
	s.drain = nil
	s.metrics.drainEnded()
	s.mu.Unlock()
	<-d.done                                                             // bounded: loop waits only until its context ends, or for Sessions.Save
	s.openSockets.each(func(sock *socket) { sock.moveAskedAt.Store(0) }) // the next drain asks them again
	s.audit.Record(&audit.Line{Event: audit.DrainCanceled, Subject: string(d.scope), Reason: d.reason})
	d.log.Info("undrained", "after", time.Since(d.began), "progress", d.currentProgress())
	return true
}

// currentPhase returns the phase of a drain. d may be nil, for no drain, which has
// phase "".
func (d *drain) currentPhase() string {
	if d == nil {
		return ""
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.phase
}

// loop runs the phases. ctx ends when the drain is canceled.
func (d *drain) loop(ctx context.Context) {
	defer close(d.done)
	defer d.cancel()
	if !sleep(ctx, d.server.cfg.DrainDelay) {
		return
	}
	d.enterPhase(phaseMoving)
	deadline := d.began.Add(d.server.cfg.DrainTimeout)
	if !d.moveInWaves(ctx, deadline) {
		return
	}
	d.enterPhase(phaseClosing)
	if !d.server.closeAll(ctx) {
		return
	}
	if !d.awaitReturns(ctx) {
		return
	}
	d.enterPhase(phaseDrained)
	took := time.Since(d.began)
	d.server.metrics.drainDuration.Observe(took.Seconds())
	d.log.Info("drained", "took", took, "progress", d.currentProgress())
}

// enterPhase begins a phase, and logs how long the previous phase took.
func (d *drain) enterPhase(phase string) {
	clients := d.server.admission.count()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log.Info("drain phase ended", "phase", d.phase, "took", time.Since(d.phaseStart), "clients", clients, "progress", d.progress)
	d.phase, d.phaseStart = phase, time.Now()
}

// moveInWaves asks clients to move, wave by wave, until no client is connected, no
// other node can take them, or the deadline has passed. It returns false if the
// drain was canceled.
func (d *drain) moveInWaves(ctx context.Context, deadline time.Time) bool {
	var pacer wavePacer
	var returns returnTracker
	var nodelessWaves int // waves in a row without another node
	sawNode := false
	windowEnd := time.Now().Add(d.server.cfg.DrainWindow)
	if deadline.Before(windowEnd) {
		windowEnd = deadline
	}
	tick := time.NewTicker(waveInterval)
	defer tick.Stop()
	for d.server.admission.count() > 0 && time.Now().Before(deadline) {
		r := d.server.cfg.MoveTargets(d.currentScope())
		if nodelessWaves++; !r.Known || r.Nodes > 0 {
			nodelessWaves, sawNode = 0, sawNode || r.Nodes > 0
		}
		if nodelessWaves > nodesGoneWaves || nodelessWaves > 0 && r.SingleNode || nodelessWaves > noNodesWaves && !sawNode {
			d.log.Info("no other node to move clients to", "clients", d.server.admission.count())
			return true
		}
		notAsked, moving := d.countClients()
		d.notAsked.Store(int64(notAsked))
		progress := d.updateReturned(r)
		missing := returns.next(progress.Moved+progress.Lost, progress.Returned, r.ReturnsKnown)
		window := time.Until(windowEnd)
		if window < waveInterval { // the window was too short: extend it by half
			windowEnd = time.Now().Add(max(d.server.cfg.DrainWindow/2, maxMovingWaves*waveInterval))
			if deadline.Before(windowEnd) {
				windowEnd = deadline
			}
			window = time.Until(windowEnd)
		}
		if !r.Known { // as many as this node itself would accept
			r.HandshakeLimit = d.server.cfg.MaxHandshakeRate
		}
		previous := pacer.slowdownReason
		n := pacer.next(notAsked, moving, missing, window, r)
		if pacer.slowdownReason != previous {
			d.log.Info("drain wave", "slowdown", pacer.slowdownReason, "size", n, "not_asked", notAsked, "moving", moving, "missing", missing,
				"handshake_p95", r.HandshakeP95, "other_handshakes", r.OtherHandshakes, "refused", r.RefusedHandshakes,
				"limit", r.HandshakeLimit, "draining_nodes", r.DrainingNodes)
		}
		if n > 0 {
			pacer.correctLast(d.sendMoves(n, time.Until(deadline)))
		}
		select {
		case <-tick.C:
		case <-d.server.admission.emptied():
		case <-ctx.Done():
			return false
		}
	}
	return ctx.Err() == nil
}

// currentScope returns which nodes clients must avoid.
func (d *drain) currentScope() Scope {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.scope
}

// countClients counts the clients that were not asked to move yet, and those that
// were asked within moveGrace and are still connected.
func (d *drain) countClients() (notAsked, moving int) {
	now := time.Now()
	d.server.openSockets.each(func(sock *socket) {
		switch askedAt := sock.moveAskedAt.Load(); {
		case askedAt == 0:
			notAsked++
		case now.Sub(time.UnixMilli(askedAt)) < moveGrace:
			moving++
		}
	})
	return notAsked, moving
}

// sendMoves asks n clients to move, spread over the time until the next wave. It
// returns how many it asked: a client whose session is not saved yet waits for
// another wave.
func (d *drain) sendMoves(n int, untilNextWave time.Duration) (sent int) {
	d.mu.Lock()
	scope, reason := d.scope, d.reason
	d.mu.Unlock()
	m := protocol.Move{Reason: reason, Avoid: protocol.Avoid{Node: d.server.cfg.Node}}
	if scope == ScopeDeployment {
		m.Avoid = protocol.Avoid{Deployment: d.server.cfg.Deployment}
	}
	wave := make([]*socket, 0, n)
	d.server.openSockets.each(func(sock *socket) {
		if len(wave) < n && sock.moveAskedAt.Load() == 0 {
			wave = append(wave, sock)
		}
	})
	wave = d.server.sessionWriter.saveBeforeMove(wave)
	now := time.Now()
	first := d.schedule.next(now)
	for i, sock := range wave {
		// Each client gets its own slot, and a random time within it.
		slot := waveInterval / time.Duration(len(wave))
		after := first + time.Duration(i)*slot + rand.N(slot+1)
		m.AfterMS, m.DeadlineMS = after.Milliseconds(), max(untilNextWave, after+waveInterval).Milliseconds()
		sock.moveAskedAt.Store(now.UnixMilli())
		sock.conn.Send(m.Encode())
	}
	d.updateProgress(func(p *Progress) { p.Asked += len(wave) })
	d.server.movesAsked.Add(int64(len(wave)))
	d.server.metrics.moves.WithLabelValues(moveAsked).Add(float64(len(wave)))
	return len(wave)
}

// waveSchedule keeps the clients of two waves apart. A wave's sessions are saved
// before its clients are asked, so one wave may be late and the next on time: both
// at once would exceed what the other nodes accept.
type waveSchedule struct{ end time.Time } // when the last wave ends

// next returns the delay until the next wave begins. A wave lasts for waveInterval.
func (s *waveSchedule) next(now time.Time) time.Duration {
	if s.end.Before(now) {
		s.end = now
	}
	first := s.end.Sub(now)
	s.end = s.end.Add(waveInterval)
	return first
}

// closeAll closes every connection with 1012, a batch at a time, because the
// clients reconnect within a second, to nodes that accept as many handshakes as
// this node. It aborts clients that do not answer. It returns false if ctx ended first.
func (s *Server) closeAll(ctx context.Context) bool {
	n := s.admission.count()
	spread := time.Duration(float64(n) / (targetLoad * float64(s.cfg.MaxHandshakeRate)) * float64(time.Second))
	spread = min(max(spread, closeSpread), maxCloseSpread)
	step := max(minCloseBatch, n/int(spread/closeInterval)+1)
	for {
		n := 0
		s.openSockets.each(func(sock *socket) {
			if n < step && sock.conn.CloseWith(protocol.CloseRestart) {
				n++
			}
		})
		if n < step {
			break // all are closing
		}
		if !sleep(ctx, closeInterval) {
			return false
		}
	}
	timeout := time.NewTimer(conn.CloseTimeout)
	defer timeout.Stop()
	select {
	case <-s.admission.emptied():
	case <-timeout.C:
		s.openSockets.each(func(sock *socket) { sock.conn.Abort() })
	case <-ctx.Done():
		return false
	}
	return true
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
