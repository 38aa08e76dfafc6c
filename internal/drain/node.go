package drain

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"switchyard/internal/protocol"
)

// Clients are the connected clients of the node. Implementations are safe for
// concurrent use.
type Clients interface {
	// Each calls f for every client whose connection can be found. f must not block.
	Each(f func(Client))
	// Count returns the number of open connections. It includes those that Each does
	// not visit yet.
	Count() int
	// Emptied returns a channel that is closed when there is no connection.
	Emptied() <-chan struct{}
	// SaveBeforeMove saves the sessions of clients that are about to be asked to move,
	// and returns the clients that can resume theirs on another node, or have none, and
	// those that could not be saved. The others are just getting a session, for which
	// the drain waits.
	SaveBeforeMove(wave []Client) (saved, unsaved []Client)
}

// A Client is one client of the node. Implementations are safe for concurrent use.
type Client interface {
	// MoveRequest returns the client's move request, which is always the same one.
	MoveRequest() *MoveRequest
	// Send sends a frame without blocking.
	Send(protocol.Frame) bool
	// CloseWith closes the connection with a code. It returns false if the connection
	// is being closed already.
	CloseWith(protocol.CloseCode) bool
	// Abort ends the connection without a close handshake.
	Abort()
}

// Config is what a Node needs. All fields but MoveTargets, OnStart and OnCancel are
// required.
type Config struct {
	// Node and Deployment are what moved clients must avoid, by the scope.
	Node, Deployment string
	// Delay is how long handshakes are accepted during a drain. Window is the time over
	// which clients are asked to move. Timeout is the time from the beginning of the
	// drain until the remaining clients are closed.
	Delay, Window, Timeout time.Duration
	// CloseTimeout bounds the close handshakes of the clients that were closed last.
	CloseTimeout time.Duration
	// HandshakeRate is how many handshakes per second this node accepts.
	HandshakeRate int
	// MoveTargets describes the nodes that receive the clients, without those that the
	// scope excludes. It must not block. Nil: nothing is known of other nodes.
	MoveTargets func(Scope) MoveTargets
	Clients     Clients
	// OnStart and OnCancel are called when a drain has begun and when it was canceled.
	OnStart, OnCancel func(scope Scope, reason string)
	Log               *slog.Logger
	Registerer        prometheus.Registerer
}

// A Node is this node, as far as it stops taking clients: it is drained, drains are
// canceled, or it stops for good. It is safe for concurrent use.
type Node struct {
	cfg     Config
	metrics *metrics

	// starting is a lock of one element: it is held while a drain begins or is canceled,
	// with the hooks, so that a drain begins only after the one before has ended. It is
	// taken before mu.
	starting chan struct{}

	// mu protects the fields below and the guarded fields of each drain. It is a leaf:
	// no function of Config is called with mu held. A caller may hold its own locks.
	mu             sync.Mutex
	exitAfterDrain bool   // the process ends after the drain
	stopping       bool   // Stop was called
	current        *drain // nil: none is running
	movesAsked     int64  // clients that were asked to move since the start
}

// New returns a node that takes clients.
func New(cfg Config) *Node {
	if cfg.MoveTargets == nil {
		cfg.MoveTargets = func(Scope) MoveTargets { return MoveTargets{} }
	}
	return &Node{cfg: cfg, metrics: newMetrics(cfg.Registerer), starting: make(chan struct{}, 1)}
}

// Shutdown stops the node of a process that ends: it drains the node, or waits for the
// running drain, and then closes the clients that are left, as CloseClients does. It can't
// be canceled. When ctx ends, the remaining clients are aborted.
func (n *Node) Shutdown(ctx context.Context) error {
	n.mu.Lock()
	n.exitAfterDrain = true
	n.mu.Unlock()
	select {
	case <-n.findOrStart(ScopeNode, "stopping").done:
	case <-ctx.Done():
		n.cfg.Log.Warn("the drain did not complete", "error", ctx.Err())
	}
	return n.CloseClients(ctx) // those that the drain aborted may not be gone yet
}

// Start starts a drain and does not wait for it. If a drain is running, the wider
// scope and the newest reason apply to the clients that were not asked yet. If one is
// being canceled, the new one begins after that.
func (n *Node) Start(scope Scope, reason string) { n.findOrStart(scope, reason) }

func (n *Node) findOrStart(scope Scope, reason string) *drain {
	n.starting <- struct{}{} // bounded, as Undrain is
	defer func() { <-n.starting }()
	ctx, cancel := context.WithCancel(context.Background())
	d, isNew := n.currentOrNew(scope, reason, cancel)
	if !isNew {
		cancel()
		return d
	}
	if n.cfg.OnStart != nil {
		n.cfg.OnStart(scope, reason)
	}
	d.log.Info("draining", "clients", n.cfg.Clients.Count(), "delay", n.cfg.Delay, "timeout", n.cfg.Timeout)
	go d.loop(ctx)
	return d
}

// currentOrNew returns the running drain, or a new one whose loop the caller starts. cancel
// ends that loop.
func (n *Node) currentOrNew(scope Scope, reason string, cancel context.CancelFunc) (d *drain, isNew bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if d := n.current; d != nil {
		if d.reason = reason; scope == ScopeDeployment {
			d.scope = scope
		}
		return d, false
	}
	now := time.Now()
	n.current = &drain{
		node: n, log: n.cfg.Log.With("reason", reason, "scope", string(scope)),
		began: now, deadline: now.Add(n.cfg.Timeout), phaseStart: now, cancel: cancel, done: make(chan struct{}),
		scope: scope, reason: reason, phase: PhaseDelay,
	}
	n.metrics.drainStarted(n.current.deadline)
	return n.current, true
}

// Undrain cancels a drain in any phase, and the node takes clients again. Clients that
// were asked to move may still leave. It returns false if no drain is running or the
// process is stopping.
func (n *Node) Undrain() bool {
	n.starting <- struct{}{}
	defer func() { <-n.starting }()
	d := n.cancelCurrent()
	if d == nil {
		return false
	}
	<-d.done                                                          // bounded: loop waits only until its context ends, or for SaveBeforeMove
	n.cfg.Clients.Each(func(c Client) { c.MoveRequest().withdraw() }) // the next drain asks them again
	scope, reason := d.request()
	if n.cfg.OnCancel != nil {
		n.cfg.OnCancel(scope, reason)
	}
	d.log.Info("undrained", "after", time.Since(d.began), "progress", d.currentProgress())
	return true
}

func (n *Node) cancelCurrent() *drain {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := n.current
	if d == nil || n.exitAfterDrain || n.stopping {
		return nil
	}
	d.cancel()
	n.current = nil
	n.metrics.drainEnded()
	return d
}

// Stop makes the node take no clients from now on.
func (n *Node) Stop() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stopping = true
}

// CloseClients stops the node, closes all clients with 1012, so that they go to
// another node, and waits until they are gone or ctx ends.
func (n *Node) CloseClients(ctx context.Context) error {
	n.Stop()
	if !n.closeAll(ctx) {
		n.cfg.Clients.Each(Client.Abort)
		return fmt.Errorf("clients that did not answer the close: %w", ctx.Err())
	}
	return nil
}

// TakesClients reports whether a handshake may be accepted. The caller must ask again
// once it has counted the connection, and give it up if that is false: then no
// connection is accepted that the drain does not count.
func (n *Node) TakesClients() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.stopping && (n.current == nil || n.current.phase == PhaseDelay)
}

// IsClosing reports whether all connections are being closed, so that one that was
// accepted before must close itself. The caller must ask after Each can find the
// connection: closeAll visits those that were found before.
func (n *Node) IsClosing() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stopping || n.current != nil && (n.current.phase == PhaseClosing || n.current.phase == PhaseDrained)
}

// A Status is what other nodes learn of this one.
type Status struct {
	Draining   bool  // it takes no clients, or soon will not
	Leaving    int   // clients that must still be asked to move
	MovesAsked int64 // clients that were asked since the start
}

// Status returns what other nodes learn of this one.
func (n *Node) Status() Status {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := Status{Draining: n.current != nil || n.stopping, MovesAsked: n.movesAsked}
	if n.current != nil && n.current.phase == PhaseMoving {
		s.Leaving = n.current.notAsked
	}
	return s
}

// State returns the state of the drain for the admin API. Its Phase is "" if no drain
// is running.
func (n *Node) State() State {
	s := n.state()
	s.Clients = n.cfg.Clients.Count() // after the phase: a node that is drained has no clients
	return s
}

func (n *Node) state() (s State) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if d := n.current; d != nil {
		s = State{Phase: d.phase, Scope: d.scope, Reason: d.reason, Progress: d.progress}
		s.Seconds = time.Since(d.began).Round(time.Millisecond).Seconds()
	}
	return s
}

// RecordEnd counts the end of a connection whose client was asked to move, or that
// was closed by CloseRestart. byClient means that the client sent the close frame. It
// counts nothing if the drain was canceled meanwhile.
func (n *Node) RecordEnd(code protocol.CloseCode, byClient bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := n.current
	if d == nil {
		return
	}
	result, count := moveLost, &d.progress.Lost
	switch {
	case byClient, code == protocol.CloseReplaced:
		result, count = moveDone, &d.progress.Moved
	case code == protocol.CloseRestart:
		result, count = moveClosed, &d.progress.Closed
	}
	*count++
	n.metrics.moves.WithLabelValues(result).Inc()
}

// enterPhase begins a phase, and logs how long the previous phase took.
func (d *drain) enterPhase(phase string) {
	clients := d.node.cfg.Clients.Count()
	d.node.mu.Lock()
	previous, since, progress := d.phase, d.phaseStart, d.progress
	d.phase, d.phaseStart = phase, time.Now()
	d.node.mu.Unlock()
	d.log.Info("drain phase ended", "phase", previous, "took", time.Since(since), "clients", clients, "progress", progress)
}

// request returns which nodes clients must avoid, and why.
func (d *drain) request() (Scope, string) {
	d.node.mu.Lock()
	defer d.node.mu.Unlock()
	return d.scope, d.reason
}

// countNotAsked stores how many clients must still be asked.
func (d *drain) countNotAsked(clients int) {
	d.node.mu.Lock()
	defer d.node.mu.Unlock()
	d.notAsked = clients
}

// countAsked counts the clients of a wave.
func (d *drain) countAsked(clients int) {
	d.node.mu.Lock()
	defer d.node.mu.Unlock()
	d.progress.Asked += clients
	d.node.movesAsked += int64(clients)
	d.node.metrics.moves.WithLabelValues(moveAsked).Add(float64(clients))
}

// setReturned stores how many sessions have returned on other nodes.
func (d *drain) setReturned(sessions int) {
	d.node.mu.Lock()
	defer d.node.mu.Unlock()
	d.progress.Returned = sessions
}

func (d *drain) currentProgress() Progress {
	d.node.mu.Lock()
	defer d.node.mu.Unlock()
	return d.progress
}
