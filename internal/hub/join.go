package hub

import (
	"context"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// A catchUpProgress is how far a joining or catching-up member has come. It has
// one owner at a time: the goroutine that reads the client's socket, then the
// topic while it is not open, then the client's catchUpLoop.
type catchUpProgress struct {
	position        // an empty epoch with seq 0: any epoch
	fromNow  bool   // no position: begin with the next message
	result   string // label in metrics: the most expensive path so far
}

// openTimeout is how long a join waits for a topic to open.
const openTimeout = logTimeout + subscribeTimeout

// A waiter is a join whose topic is not open yet. It has no goroutine: ten
// thousand clients may join while the log is down.
type waiter struct {
	catchUpProgress
	timeout *time.Timer
}

// openLoop opens a new topic. It subscribes first and then reads the room's
// head and oldest seq, so that nothing is missed between the two: the read
// returns everything that was committed before it, and the subscription
// delivers everything that is committed after it. It does not wait long for the
// subscription, because the commit feed covers a late one. It retries while the
// log is down, until the topic is closed.
func (t *topic) openLoop() {
	ctx, cancel := context.WithTimeout(t.hub.ctx, subscribeTimeout)
	if err := t.hub.cfg.Broker.Subscribe(ctx, t.room); err != nil {
		t.hub.logger.Debug("topic opened before its subscription", "room", t.room, "error", err)
	}
	cancel()
	for wait := minRetry; !t.isClosed(); wait = min(2*wait, maxRetry) {
		page, err := t.hub.read(t.hub.ctx, t.hub.readSlots.opens, message.Range{Room: t.room}, noBytes)
		if err == nil {
			t.completeOpen(&page)
			return
		}
		t.hub.logger.Debug("topic not opened", "room", t.room, "error", err)
		if !t.hub.sleep(wait) {
			return
		}
	}
}

// noBytes is the size of a read without messages.
func noBytes() int { return 0 }

// isClosed reports whether the topic was swept meanwhile.
func (t *topic) isClosed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.closed
}

// completeOpen opens the topic at the head that the log returned. First the
// waiting members join there. Then the buffered messages are delivered, so
// these members get everything that was committed after the read.
func (t *topic) completeOpen(page *message.Page) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	t.open = true
	// Messages that arrived before may be of another epoch.
	if t.epochBeforeOpen != "" && t.epochBeforeOpen != page.Epoch {
		t.epochMismatches++ // one of the two epochs has ended
	}
	if t.epochMismatches > t.mismatchesResolved {
		t.knownHead = 0 // it may be of either epoch: the repair reads it again
	}
	t.epoch, t.last, t.first = page.Epoch, page.Head, page.First
	t.prune(t.last) // members never need frames at or below the head
	for m, w := range t.waiters {
		w.timeout.Stop()
		if m.goLive(&w.catchUpProgress) {
			m.releaseJoinSlot() // also if the member left meanwhile
		} else {
			m.client.enqueueCatchUp(catchUpTask{member: m, catchUpProgress: w.catchUpProgress})
		}
	}
	t.waiters = nil
	t.fanOut(t.releaseBuffered(nil))
	t.scheduleRepair(causeHole)
}

// startJoin makes the member live at once if it misses nothing. Otherwise the
// member waits for the topic to open and for its turn in the client's catch-up
// queue, while the client's next request is handled; only with maxPendingJoins
// unanswered joins does startJoin block.
func (m *member) startJoin(p catchUpProgress) {
	t := m.topic
	t.mu.Lock()
	// A member that misses something takes its turn even if the ring has it, so
	// that one client's rooms do not fill its outlet together.
	upToDate := t.open && (p.fromNow || p.seq == t.last)
	live := upToDate && m.goLive(&p)
	t.mu.Unlock()
	if live {
		return
	}
	m.joinSlot = m.client.acquireJoinSlot() // without the lock, because it may block
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open {
		m.client.enqueueCatchUp(catchUpTask{member: m, catchUpProgress: p})
		return
	}
	if t.waiters == nil {
		t.waiters = make(map[*member]waiter)
	}
	t.waiters[m] = waiter{p, time.AfterFunc(openTimeout, func() { t.expireWaiter(m) })}
}

// expireWaiter refuses a join that has waited for the topic for openTimeout.
// The topic keeps trying to open.
func (t *topic) expireWaiter(m *member) {
	t.mu.Lock()
	_, waiting := t.waiters[m]
	delete(t.waiters, m)
	t.mu.Unlock()
	if waiting {
		m.refuse()
	}
}

// goLive sends the member what it misses and makes it live, if the ring has all
// of it. It returns true if there is nothing left to do. A member that is ahead
// of this topic does not become live, or it would get messages twice. Caller
// holds mu.
func (m *member) goLive(p *catchUpProgress) bool {
	t := m.topic
	if m.state == memberGone {
		return true // the member left meanwhile
	}
	if !t.open {
		return false
	}
	if p.fromNow {
		p.seq, p.epoch, p.fromNow = t.last, t.epoch, false
	} else if p.result == "" {
		p.result = resumeRing
	}
	// A position without an epoch is 0, which is valid in every epoch. It stays
	// without one until the member is live, because the topic may not know the
	// newest epoch.
	if p.epoch != "" && p.epoch != t.epoch || !t.ring.covers(p.seq, t.last) {
		return false
	}
	var frames []protocol.Frame
	if !m.joinedSent {
		m.confirmedUpTo = position{p.seq, t.epoch}
		frames = append(frames, m.markJoined(t.epoch, t.last, min(t.first, t.last+1)))
	}
	if n := int(t.last - p.seq); n > 0 {
		t.hub.metrics.sent.Add(float64(n))
		missed := t.ring.tail(n)
		m.client.chargeFrames(missed)
		frames = append(frames, missed...)
	}
	if p.result != "" {
		t.hub.metrics.resumes.WithLabelValues(p.result).Inc()
	}
	t.add(m, frames)
	return true
}

// markJoined records that the join is answered and returns the answer, which
// must precede all other frames for the member. Caller holds mu.
func (m *member) markJoined(epoch message.Epoch, head, first message.Seq) protocol.Frame {
	m.joinedSent = true
	m.reportPresence(message.PresenceJoined)
	m.releaseJoinSlot()
	f := protocol.Joined(m.ref, m.topic.room, epoch, head, first)
	m.ref = ""
	return f
}
