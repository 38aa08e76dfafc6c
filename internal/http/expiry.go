package http

import (
	"sync"
	"time"

	"switchyard/internal/protocol"
)

const (
	// expiryTick is how late a connection may be closed after its token ended.
	expiryTick = 250 * time.Millisecond
	// expirySlots times expiryTick is how often a connection with a long token
	// is looked at: every 256 s.
	expirySlots = 1024
)

// An expiryWheel closes connections whose token ends, or who have not shown one in
// time: a wheel, so that none of them needs a timer. Safe for concurrent use.
type expiryWheel struct {
	start time.Time // tick 0, static
	mu    sync.Mutex
	// Protects following.
	tick  int64
	slots [expirySlots][]*socket
}

// A deadline is when a socket is to end, as a tick; guarded by the expiry's
// lock. The zero deadline is none.
type deadline struct {
	at    int64
	index int // in its slot
}

// set makes the socket end at the given time, and at no earlier one that was
// set before. The zero time is never.
func (e *expiryWheel) set(k *socket, at time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.unlink(k)
	if at.IsZero() {
		return
	}
	// Rounded up: never before the end. By the clock, since the wheel may be late.
	now := time.Now()
	end := now.Sub(e.start) + max(at.Sub(now), 0)
	k.deadline.at = max(int64(end/expiryTick), e.tick) + 1
	slot := &e.slots[k.deadline.at%expirySlots]
	k.deadline.index = len(*slot)
	*slot = append(*slot, k)
}

// remove forgets a socket that is gone.
func (e *expiryWheel) remove(k *socket) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.unlink(k)
}

// unlink takes the socket off the wheel. Caller holds mu.
func (e *expiryWheel) unlink(k *socket) {
	if k.deadline.at == 0 {
		return
	}
	slot := &e.slots[k.deadline.at%expirySlots]
	last := len(*slot) - 1
	(*slot)[k.deadline.index] = (*slot)[last]
	(*slot)[k.deadline.index].deadline.index = k.deadline.index
	(*slot)[last] = nil
	*slot = (*slot)[:last]
	k.deadline = deadline{}
}

// loop turns the wheel until stop closes.
func (e *expiryWheel) loop(stop <-chan struct{}) {
	tick := time.NewTicker(expiryTick)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
			for _, k := range e.advance(time.Now()) {
				k.conn.CloseWith(protocol.CloseUnauthorized)
			}
		}
	}
}

// advance moves on to the clock, which a process that was stopped or starved is
// behind by many ticks, and returns who has ended, off the wheel.
func (e *expiryWheel) advance(now time.Time) (ended []*socket) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for to := int64(now.Sub(e.start) / expiryTick); e.tick < to; {
		e.tick++
		slot := e.slots[e.tick%expirySlots]
		for i := len(slot) - 1; i >= 0; i-- {
			if k := slot[i]; k.deadline.at <= e.tick {
				e.unlink(k)
				ended = append(ended, k)
			}
		}
	}
	return ended
}
