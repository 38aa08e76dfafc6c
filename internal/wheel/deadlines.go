// Package wheel times what happens to many members, such as the connections of a node,
// without a timer for each: Deadlines end members at a time of their own, and Slots
// spread what happens to each member once in a period.
package wheel

import (
	"sync"
	"time"
)

const (
	// Tick is how late a deadline may be noticed.
	Tick = 250 * time.Millisecond
	// deadlineSlots is the size of the wheel: one turn takes 256 s, and a member whose
	// deadline is farther away is visited once a turn.
	deadlineSlots = 1024
)

// A Deadline is the tick at which the member that embeds it ends. The zero value is
// none.
type Deadline struct {
	// Guarded by Deadlines.mu.
	at    int64
	index int // in its slot
}

func (d *Deadline) deadline() *Deadline { return d }

// Deadlines are a timer wheel with the deadlines of members, which embed a Deadline.
// They are safe for concurrent use.
type Deadlines[M interface{ deadline() *Deadline }] struct {
	start time.Time // the time of tick 0; static
	// mu protects the fields below.
	mu    sync.Mutex
	tick  int64
	slots [deadlineSlots][]M
}

// NewDeadlines returns a wheel without a deadline. The caller advances it every Tick.
func NewDeadlines[M interface{ deadline() *Deadline }](start time.Time) *Deadlines[M] {
	return &Deadlines[M]{start: start}
}

// Set replaces the member's deadline. The zero time means none.
func (d *Deadlines[M]) Set(m M, at time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unlink(m)
	if at.IsZero() {
		return
	}
	// The tick is rounded up, so that the deadline is never early. It is
	// computed from the clock, since the wheel may be late.
	now := time.Now()
	end := now.Sub(d.start) + max(at.Sub(now), 0)
	own := m.deadline()
	own.at = max(int64(end/Tick), d.tick) + 1
	slot := &d.slots[own.at%deadlineSlots]
	own.index = len(*slot)
	*slot = append(*slot, m)
}

// Remove removes the deadline of a member that has ended.
func (d *Deadlines[M]) Remove(m M) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unlink(m)
}

// unlink removes the member from its slot. Caller holds mu.
func (d *Deadlines[M]) unlink(m M) {
	own := m.deadline()
	if own.at == 0 {
		return
	}
	slot := &d.slots[own.at%deadlineSlots]
	last := len(*slot) - 1
	(*slot)[own.index] = (*slot)[last]
	(*slot)[own.index].deadline().index = own.index
	clear((*slot)[last:])
	*slot = (*slot)[:last]
	*own = Deadline{}
}

// Advance moves the wheel to the present tick, which may be many ticks ahead if the
// process was stopped or starved. It removes and returns the members whose deadline
// has passed.
func (d *Deadlines[M]) Advance(now time.Time) (expired []M) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for to := int64(now.Sub(d.start) / Tick); d.tick < to; {
		d.tick++
		slot := d.slots[d.tick%deadlineSlots]
		for i := len(slot) - 1; i >= 0; i-- {
			if m := slot[i]; m.deadline().at <= d.tick {
				d.unlink(m)
				expired = append(expired, m)
			}
		}
	}
	return expired
}
