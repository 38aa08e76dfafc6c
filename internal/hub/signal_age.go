package hub

import (
	"sync"
	"time"
)

// A signalClock stamps the signals that this node sends. It follows the wall clock,
// except backwards: a clock that is set back must not make all later signals look
// old. It is safe for concurrent use, and its lock is a leaf.
type signalClock struct {
	mu     sync.Mutex
	last   time.Time // of the last call
	micros int64     // what it returned
}

// now returns the present time in Unix microseconds.
func (c *signalClock) now() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := time.Now()
	if !c.last.IsZero() {
		c.micros += t.Sub(c.last).Microseconds() // by the monotonic clock
	}
	c.micros = max(c.micros, t.UnixMicro())
	c.last = t
	return c.micros
}

const (
	// maxSenders bounds the senders that a signalAges remembers. Each start of a
	// node is another one.
	maxSenders = 1000
	// leastOffsetWindow is how long a sender's least offset counts at least. The
	// clocks of two machines drift apart.
	leastOffsetWindow = time.Minute
)

// signalAges measures how long signals were on their way. The clocks of two nodes
// may differ by any amount, so it compares each signal with those of the same sender
// that were fastest: what it took longer than these is its age. The first signal of
// a sender has nothing to be compared with, and counts as new. It is safe for
// concurrent use, and its lock is a leaf.
type signalAges struct {
	mu      sync.Mutex
	started time.Time // read for its monotonic clock only
	senders map[uint64]*signalSender
}

// A signalSender is the boot of a node. An offset is the time of arrival less the
// time of sending, each by its node's own clock, in microseconds.
type signalSender struct {
	heard       time.Duration // since started
	windowBegan time.Duration // since started
	// The least offsets of this window, and of the one before.
	least, leastBefore int64
}

func newSignalAges() *signalAges {
	return &signalAges{started: time.Now(), senders: map[uint64]*signalSender{}}
}

// age returns the age of a signal that has just arrived.
func (a *signalAges) age(origin uint64, sentAt int64) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Since(a.started)
	offset := now.Microseconds() - sentAt
	s := a.senders[origin]
	if s == nil {
		if len(a.senders) >= maxSenders {
			a.forgetOne()
		}
		s = &signalSender{windowBegan: now, least: offset, leastBefore: offset}
		a.senders[origin] = s
	}
	if now-s.windowBegan > leastOffsetWindow {
		s.windowBegan, s.least, s.leastBefore = now, offset, s.least
	}
	s.heard = now
	s.least = min(s.least, offset)
	return time.Duration(offset-min(s.least, s.leastBefore)) * time.Microsecond
}

// forgetOne forgets the sender that was silent for longest. Caller holds mu.
func (a *signalAges) forgetOne() {
	var silent uint64
	heard := time.Duration(-1)
	for origin, s := range a.senders {
		if heard < 0 || s.heard < heard {
			silent, heard = origin, s.heard
		}
	}
	delete(a.senders, silent)
}
