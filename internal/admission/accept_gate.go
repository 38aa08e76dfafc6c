package admission

import (
	"container/list"
	"net"
	"net/http"
	"sync"
	"time"
)

// freshFor is how long a new connection holds others off at most: who sends nothing, or asks
// for something that takes long, does not count.
const freshFor = 500 * time.Microsecond

// An AcceptGate lets new connections in as earlier ones are served. Without it a thousand that
// come at once fill the scheduler's queue, and what the open connections receive waits behind
// them: while no processor is idle, the runtime polls the network every 10 ms only. The 99th
// percentile of acks beside a thousand handshakes was 90 ms without the gate and 35 ms with it.
// Of n connections that come at once, the last one waits for at most freshFor*n/size. It is safe
// for concurrent use.
type AcceptGate struct {
	size   int           // how many are accepted before the first of them has been served
	served chan struct{} // has a token after one was served

	mu    sync.Mutex // Protects following.
	fresh list.List  // of *freshConn, the oldest first
	conns map[net.Conn]*list.Element
}

// A freshConn was accepted, and has not been served.
type freshConn struct {
	conn     net.Conn
	accepted time.Time
}

// NewAcceptGate returns a gate that has let nobody in yet, and lets size in before the first
// of them has been served.
func NewAcceptGate(size int) *AcceptGate {
	return &AcceptGate{size: size, served: make(chan struct{}, 1), conns: map[net.Conn]*list.Element{}}
}

// Enter waits until an accepted connection may be served. One goroutine calls it.
func (g *AcceptGate) Enter(c net.Conn) {
	for wait := g.tryEnter(c); wait > 0; wait = g.tryEnter(c) {
		timer := time.NewTimer(wait)
		select {
		case <-g.served:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// tryEnter lets a connection in and returns 0, or returns how long to wait at most.
func (g *AcceptGate) tryEnter(c net.Conn) (wait time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	for g.fresh.Len() >= g.size {
		oldest, _ := g.fresh.Front().Value.(*freshConn) // the only type in it
		if age := now.Sub(oldest.accepted); age < freshFor {
			return freshFor - age
		}
		g.remove(oldest.conn)
	}
	g.conns[c] = g.fresh.PushBack(&freshConn{c, now})
	return 0
}

// OnStateChange implements http.Server.ConnState, for connections after Enter.
func (g *AcceptGate) OnStateChange(c net.Conn, state http.ConnState) {
	if state == http.StateNew || state == http.StateActive {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.remove(c) {
		select {
		case g.served <- struct{}{}:
		default:
		}
	}
}

// remove takes a connection out. The caller holds mu.
func (g *AcceptGate) remove(c net.Conn) bool {
	e := g.conns[c]
	if e != nil {
		g.fresh.Remove(e)
		delete(g.conns, c)
	}
	return e != nil
}
