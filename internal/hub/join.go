package hub

import (
	"context"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// progress is how far a joining or catching-up member has come. It belongs to
// whoever serves the member, one at a time: the joining reader, then the topic
// while it is not open, then the client's turns.
type progress struct {
	seq     message.Seq
	epoch   message.Epoch // "" with seq 0: any
	fromNow bool          // no position: begin with what comes
	result  string        // for metrics: the dearest way taken so far
}

// openTimeout is how long a join waits for a cold topic.
const openTimeout = logTimeout + subscribeTimeout

// A waiter is a join for which the topic is not open yet. It has no goroutine:
// ten thousand clients may come to a room while the log is away.
type waiter struct {
	progress
	timeout *time.Timer
}

// openLoop makes a new topic live: subscription first, then head and first, so
// that nothing falls between the two: what is committed before the read is in
// it, what comes after it is heard. A subscription that takes too long is not
// waited for; the commit feed covers it. The loop goes on while the log is away
// and somebody waits.
func (t *topic) openLoop() {
	ctx, cancel := context.WithTimeout(t.hub.ctx, subscribeTimeout)
	if err := t.hub.cfg.Broker.Subscribe(ctx, t.room); err != nil {
		t.hub.logger.Debug("opened before its subscription", "room", t.room, "error", err)
	}
	cancel()
	for wait := minRetry; !t.isClosed(); wait = min(2*wait, maxRetry) {
		page, err := t.hub.read(t.hub.ctx, t.hub.readSlots.opens, message.Range{Room: t.room}, noBytes)
		if err == nil {
			t.completeOpen(&page)
			return
		}
		t.hub.logger.Debug("room not opened", "room", t.room, "error", err)
		if !t.hub.sleep(wait) {
			return
		}
	}
}

func noBytes() int { return 0 }

// isClosed says whether the topic was swept meanwhile.
func (t *topic) isClosed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.closed
}

// completeOpen takes the log's word for where the room stands. Who waited joins there,
// and what was held since goes on from there, in that order: whoever joins from
// now gets what was committed after the read.
func (t *topic) completeOpen(page *message.Page) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	t.open = true
	// What was heard before counts in this epoch or in none that is known yet.
	if t.epochBeforeOpen != "" && t.epochBeforeOpen != page.Epoch {
		t.epochMismatches++ // the page, or what was heard, is of the past
	}
	if t.epochMismatches > t.mismatchesResolved {
		t.target = 0 // of whichever epoch: the log is asked again
	}
	t.epoch, t.last, t.first = page.Epoch, page.Head, page.First
	t.prune(t.last) // the page knew these already
	for m, w := range t.waiters {
		w.timeout.Stop()
		if m.goLive(&w.progress) {
			m.releaseJoinSlot() // also where it left meanwhile
		} else {
			m.client.enqueueCatchUp(catchUpTask{member: m, progress: w.progress})
		}
	}
	t.waiters = nil
	t.fanOut(t.drainReorderBuffer(nil))
	t.scheduleRepair(causeHole)
}

// startJoin makes the member live at once where it misses nothing. Else it waits
// for the topic to open, and for its turn; the client reads on meanwhile, but
// for having maxPendingJoins unanswered.
func (m *member) startJoin(p progress) {
	t := m.topic
	t.mu.Lock()
	// Who misses something takes turns with the client's other rooms, even where
	// the ring has it.
	upToDate := t.open && (p.fromNow || p.seq == t.last)
	live := upToDate && m.goLive(&p)
	t.mu.Unlock()
	if live {
		return
	}
	m.joinSlot = m.client.acquireJoinSlot() // without the lock: it may take a while
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open {
		m.client.enqueueCatchUp(catchUpTask{member: m, progress: p})
		return
	}
	if t.waiters == nil {
		t.waiters = make(map[*member]waiter)
	}
	t.waiters[m] = waiter{p, time.AfterFunc(openTimeout, func() { t.expireWaiter(m) })}
}

// cancelWait refuses a member that has waited for the topic as long as a client
// should for an answer. The topic goes on trying: the next join may be in time.
func (t *topic) expireWaiter(m *member) {
	t.mu.Lock()
	_, waiting := t.waiters[m]
	delete(t.waiters, m)
	t.mu.Unlock()
	if waiting {
		m.refuse()
	}
}

// goLive enqueues what the member misses from the ring and makes it live, if
// the ring has it; true says that nothing is left to do. A member that is ahead
// of this topic does not become live: it would get messages a second time.
// Caller holds mu.
func (m *member) goLive(p *progress) bool {
	t := m.topic
	if m.state == memberGone {
		return true // left meanwhile: nothing more to do
	}
	if !t.open {
		return false
	}
	if p.fromNow {
		p.seq, p.epoch, p.fromNow = t.last, t.epoch, false
	} else if p.result == "" {
		p.result = resumeRing
	}
	// Without an epoch the position is 0, the same in all. It stays so until the
	// member is live: this topic may not have heard of the newest.
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
		frames = append(frames, t.ring.tail(n)...)
	}
	if p.result != "" {
		t.hub.metrics.resumes.WithLabelValues(p.result).Inc()
	}
	t.add(m, frames)
	return true
}

// markJoined returns the answer to the join; whatever else the room has for the
// member is sent after it. Caller holds mu.
func (m *member) markJoined(epoch message.Epoch, head, first message.Seq) protocol.Frame {
	m.joinedSent = true
	m.reportPresence(message.PresenceJoined)
	m.releaseJoinSlot()
	f := protocol.Joined(m.ref, m.topic.room, epoch, head, first)
	m.ref = ""
	return f
}
