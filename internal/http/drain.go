package http

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"switchyard/internal/protocol"
)

// A Scope says what clients that are moved away are to avoid.
type Scope string

// The scopes of a drain.
const (
	ScopeNode       Scope = "node"       // this one; its siblings are fine
	ScopeDeployment Scope = "deployment" // all nodes of this start of this colour
)

// Phases of a drain, as operators see them.
const (
	phaseDelay   = "delay"   // unready, but handshakes are still taken
	phaseMoving  = "moving"  // clients are asked to go on elsewhere
	phaseClosing = "closing" // what is left is closed
	phaseDrained = "drained" // running, unready and empty
)

const (
	// moveGrace is how long a client that was told counts as moving; who is
	// still here then does not follow, and is closed at the deadline.
	moveGrace = 5 * time.Second
	// closeSpread is the time over which clients that did not move are closed:
	// they come back within a second, all of them.
	closeSpread    = 3 * time.Second
	maxCloseSpread = 10 * time.Second // and where that would be more than a node takes
	closeInterval  = 100 * time.Millisecond
	minCloseBatch  = 40 // at a time
	// nodesGoneWaves is for how many waves nodes that were there may be gone before
	// nobody waits for them any more: twice as long as a node that says nothing
	// counts. Before one was seen, noNodesWaves will do: it may just be starting.
	nodesGoneWaves = 10
	noNodesWaves   = 3
)

// ErrUndrained says that a drain was taken back before it was done.
var ErrUndrained = errors.New("the drain was taken back")

// A drain empties the node of its clients: unready at once, handshakes refused
// once the balancer had time to notice, clients moved in waves, and what is
// left at the deadline closed. Publishing and delivery go on to the last
// moment.
type drain struct {
	server    *Server
	log       *slog.Logger
	began     time.Time
	cancel    context.CancelFunc
	done      chan struct{} // closed when it is drained or was taken back
	remaining atomic.Int64  // who is still to be told, as of the last wave
	schedule  waveSchedule  // the loop's

	// mu protects the following. The server's own lock may be held when it is
	// taken, and is never taken while it is held.
	mu         sync.Mutex
	scope      Scope
	reason     string
	phase      string
	phaseStart time.Time // the phase
	progress   Progress
	canceled   bool
	// before is how many sessions had come back when the drain began, once
	// that was counted.
	returnedBefore    int
	hasReturnedBefore bool
}

// Drain begins to drain, or joins the drain under way, and returns when the
// node is empty, when the drain is taken back (ErrUndrained), or when ctx ends.
// A drain that was begun goes on without its caller.
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
		return ErrUndrained
	}
	return nil
}

// DrainForShutdown is the drain of a process that ends: it can't be taken back.
func (s *Server) DrainForShutdown(ctx context.Context) error {
	s.mu.Lock()
	s.exiting = true
	s.mu.Unlock()
	return s.Drain(ctx, ScopeNode, "stopping")
}

// findOrStartDrain returns the drain under way; the wider scope and the newest reason
// count for who is not told yet.
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
	s.audit.record(&auditLine{Event: auditDrain, What: string(scope), Why: reason})
	d.log.Info("draining", "clients", s.admission.connected, "delay", s.cfg.DrainDelay, "timeout", s.cfg.DrainTimeout)
	go d.loop(ctx)
	return d
}

// Undrain takes a drain back, at whatever stage: the node serves again. Clients
// that were told to move may still go. It returns false where nothing drains,
// or the process is about to end.
func (s *Server) Undrain() bool {
	s.mu.Lock()
	d := s.drain
	if d == nil || s.exiting || s.stopping {
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
	<-d.done                                                     // bounded: every wait of the loop ends with its context, or as sessions are saved
	s.heartbeat.each(func(k *socket) { k.moveAskedAt.Store(0) }) // the next drain tells them anew
	s.audit.record(&auditLine{Event: auditUndrain, What: string(d.scope), Why: d.reason})
	d.log.Info("undrained", "after", time.Since(d.began), "progress", d.currentProgress())
	return true
}

// currentPhase returns the phase of a drain, "" for none.
func (d *drain) currentPhase() string {
	if d == nil {
		return ""
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.phase
}

// loop goes through the phases; ctx ends when the drain is taken back.
func (d *drain) loop(ctx context.Context) {
	defer close(d.done)
	defer d.cancel()
	if !sleep(ctx, d.server.cfg.DrainDelay) {
		return
	}
	d.enterPhase(phaseMoving)
	deadline := d.began.Add(d.server.cfg.DrainTimeout)
	if !d.moveClients(ctx, deadline) {
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

// enterPhase begins a phase, and logs how long the one before took.
func (d *drain) enterPhase(phase string) {
	clients := d.server.connectionCount() // before mu: it takes the server's lock
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log.Info("drain step", "step", d.phase, "took", time.Since(d.phaseStart), "clients", clients, "progress", d.progress)
	d.phase, d.phaseStart = phase, time.Now()
}

// moveClients asks clients to go, wave by wave, until none is left, nobody could take
// them, or the deadline has come. False says that the drain was taken back.
func (d *drain) moveClients(ctx context.Context, deadline time.Time) bool {
	var pacer wavePacer
	var returns returnTracker
	var nodelessWaves int // waves in a row without another node, after there was one
	sawNode := false
	window := time.Now().Add(d.server.cfg.DrainWindow)
	if deadline.Before(window) {
		window = deadline
	}
	tick := time.NewTicker(waveInterval)
	defer tick.Stop()
	for d.server.connectionCount() > 0 && time.Now().Before(deadline) {
		r := d.server.cfg.MoveTargets(d.currentScope())
		if nodelessWaves++; !r.Known || r.Nodes > 0 {
			nodelessWaves, sawNode = 0, sawNode || r.Nodes > 0
		}
		if nodelessWaves > nodesGoneWaves || nodelessWaves > 0 && r.SingleNode || nodelessWaves > noNodesWaves && !sawNode {
			d.log.Info("no other node to move clients to", "clients", d.server.connectionCount())
			return true
		}
		left, moving := d.countClients()
		d.remaining.Store(int64(left))
		seen := d.updateReturned(r)
		missing := returns.next(seen.Moved+seen.Lost, seen.Returned, r.ReturnsKnown)
		span := time.Until(window)
		if span < waveInterval { // it was too short: half as long again for what is left
			window = time.Now().Add(max(d.server.cfg.DrainWindow/2, maxMovingWaves*waveInterval))
			if deadline.Before(window) {
				window = deadline
			}
			span = time.Until(window)
		}
		if !r.Known { // as much as this node itself would take
			r.HandshakeLimit = d.server.cfg.MaxHandshakeRate
		}
		previous := pacer.holdback
		n := pacer.next(left, moving, missing, span, r)
		if pacer.holdback != previous {
			d.log.Info("drain wave", "held", pacer.holdback, "size", n, "left", left, "away", moving, "missing", missing,
				"handshake", r.HandshakeP95, "others", r.OtherHandshakes, "refused", r.RefusedHandshakes, "limit", r.HandshakeLimit, "drainers", r.DrainingNodes)
		}
		if n > 0 {
			pacer.correctLast(d.sendMoves(n, time.Until(deadline)))
		}
		select {
		case <-tick.C:
		case <-d.server.emptied():
		case <-ctx.Done():
			return false
		}
	}
	return ctx.Err() == nil
}

// currentScope returns what clients are to avoid.
func (d *drain) currentScope() Scope {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.scope
}

// countClients counts who is still to be told, and who was told and may be on the way.
func (d *drain) countClients() (left, moving int) {
	now := time.Now()
	d.server.heartbeat.each(func(k *socket) {
		switch askedAt := k.moveAskedAt.Load(); {
		case askedAt == 0:
			left++
		case now.Sub(time.UnixMilli(askedAt)) < moveGrace:
			moving++
		}
	})
	return left, moving
}

// sendMoves asks n clients to move, spread over the time until the next wave, and
// returns how many: those whose session is not kept yet stay for another.
func (d *drain) sendMoves(n int, deadline time.Duration) (asked int) {
	d.mu.Lock()
	scope, reason := d.scope, d.reason
	d.mu.Unlock()
	m := protocol.Move{Reason: reason, Avoid: protocol.Avoid{Node: d.server.cfg.Node}}
	if scope == ScopeDeployment {
		m.Avoid = protocol.Avoid{Deployment: d.server.cfg.Deployment}
	}
	wave := make([]*socket, 0, n)
	d.server.heartbeat.each(func(k *socket) {
		if len(wave) < n && k.moveAskedAt.Load() == 0 {
			wave = append(wave, k)
		}
	})
	wave = d.server.sessionWriter.saveBeforeMove(wave)
	now := time.Now()
	first := d.schedule.next(now)
	for i, k := range wave {
		// Its own slot, and somewhere in it.
		slot := waveInterval / time.Duration(len(wave))
		after := first + time.Duration(i)*slot + rand.N(slot+1)
		m.AfterMS, m.DeadlineMS = after.Milliseconds(), max(deadline, after+waveInterval).Milliseconds()
		k.moveAskedAt.Store(now.UnixMilli())
		k.conn.Send(m.Encode())
	}
	d.updateProgress(func(p *Progress) { p.Told += len(wave) })
	d.server.movesAsked.Add(int64(len(wave)))
	d.server.metrics.moves.WithLabelValues(moveTold).Add(float64(len(wave)))
	return len(wave)
}

// waveSchedule keeps the clients of two waves apart. The sessions of a wave are saved
// before it is told, so that one may be told late and the next in time: both at
// once would be more than the receivers take.
type waveSchedule struct{ end time.Time } // of the last wave

// next returns in how long the next one begins: it lasts for waveInterval.
func (s *waveSchedule) next(now time.Time) time.Duration {
	if s.end.Before(now) {
		s.end = now
	}
	first := s.end.Sub(now)
	s.end = s.end.Add(waveInterval)
	return first
}

// closeAll ends every connection with 1012, some at a time: they come back
// within a second, to nodes that take as many handshakes as this one. Those that
// do not answer are ended without a word. False says that ctx ended before.
func (s *Server) closeAll(ctx context.Context) bool {
	n := s.connectionCount()
	spread := time.Duration(float64(n) / (targetLoad * float64(s.cfg.MaxHandshakeRate)) * float64(time.Second))
	spread = min(max(spread, closeSpread), maxCloseSpread)
	step := max(minCloseBatch, n/int(spread/closeInterval)+1)
	for {
		n := 0
		s.heartbeat.each(func(k *socket) {
			if n < step && k.conn.CloseWith(protocol.CloseRestart) {
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
	timeout := time.NewTimer(closeTimeout)
	defer timeout.Stop()
	select {
	case <-s.emptied():
	case <-timeout.C:
		s.heartbeat.each(func(k *socket) { k.conn.abort() })
	case <-ctx.Done():
		return false
	}
	return true
}

// sleep waits for d; false says that ctx ended before.
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
