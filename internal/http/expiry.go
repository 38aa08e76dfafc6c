package http

import (
	"sync"
	"time"

	"switchyard/internal/protocol"
)

const (
	// expiryTick is how late a connection may be closed after its token expired.
	expiryTick = 250 * time.Millisecond
	// expirySlots is the size of the wheel: one turn takes 256 s, and a connection
	// whose token lives longer is visited once a turn.
	expirySlots = 1024
)

// An expiryWheel closes connections whose token has expired or that never
// authenticated. It is a timer wheel, so that no connection needs a timer. It is
// safe for concurrent use.
type expiryWheel struct {
	start time.Time // the time of tick 0; static
	// mu protects the fields below.
	mu    sync.Mutex
	tick  int64
	slots [expirySlots][]*socket
}

// A deadline is the tick at which a socket is closed. It is guarded by the wheel's
// lock. The zero value is none.
type deadline struct {
	at    int64
	index int // in its slot
}

// set replaces the socket's deadline. The zero time means none.
func (e *expiryWheel) set(sock *socket, at time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.unlink(sock)
	if at.IsZero() {
		return
	}
	// The tick is rounded up, so that the connection is never closed early. It is
	// computed from the clock, since the wheel may be late.
	now := time.Now()
	end := now.Sub(e.start) + max(at.Sub(now), 0)
	sock.deadline.at = max(int64(end/expiryTick), e.tick) + 1
	slot := &e.slots[sock.deadline.at%expirySlots]
	sock.deadline.index = len(*slot)
	*slot = append(*slot, sock)
}

// remove removes a socket that has ended.
func (e *expiryWheel) remove(sock *socket) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.unlink(sock)
}

// unlink removes the socket from its slot. Caller holds mu.
func (e *expiryWheel) unlink(sock *socket) {
	if sock.deadline.at == 0 {
		return
	}
	slot := &e.slots[sock.deadline.at%expirySlots]
	last := len(*slot) - 1
	(*slot)[sock.deadline.index] = (*slot)[last]
	(*slot)[sock.deadline.index].deadline.index = sock.deadline.index
	(*slot)[last] = nil
	*slot = (*slot)[:last]
	sock.deadline = deadline{}
}

// loop advances the wheel until stop closes.
func (e *expiryWheel) loop(stop <-chan struct{}) {
	tick := time.NewTicker(expiryTick)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
			for _, sock := range e.advance(time.Now()) {
				sock.conn.CloseWith(protocol.CloseUnauthorized)
			}
		}
	}
}

// advance moves the wheel to the present tick, which may be many ticks ahead if the
// process was stopped or starved. It removes and returns the sockets whose deadline
// has passed.
func (e *expiryWheel) advance(now time.Time) (expired []*socket) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for to := int64(now.Sub(e.start) / expiryTick); e.tick < to; {
		e.tick++
		slot := e.slots[e.tick%expirySlots]
		for i := len(slot) - 1; i >= 0; i-- {
			if sock := slot[i]; sock.deadline.at <= e.tick {
				e.unlink(sock)
				expired = append(expired, sock)
			}
		}
	}
	return expired
}
