package hub

import (
	"errors"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// maxCopiedBytes is up to what size a member gets frames copied into one, to save a
// write. More is handed over as it is, shared with whoever gets the same: of
// ten thousand members who read slowly, each would keep a page of its own.
const maxCopiedBytes = 16 << 10

// run makes the member live or sends it one page, and waits until that has
// left the client's queue: a joiner has no buffer, however far back it starts.
// True says that there is more to do.
func (t *catchUpTask) run() bool {
	m := t.member
	top, out := m.topic, m.client.out
	top.mu.Lock()
	done := m.goLive(&t.progress)
	top.mu.Unlock()
	if done {
		// Live or gone; a live one's queue fills without us.
		_ = out.Flushed(top.hub.ctx) // the next room has its turn after it
		return false
	}
	page, err := top.acquirePage(&t.progress)
	if err != nil {
		// Nothing was sent.
		return t.retry(err)
	}
	t.backoff = 0
	// Its bytes stay on the books until they have left: so budgets see a slow
	// reader.
	done = !top.sendPage(m, &t.progress, page)
	gone := out.Flushed(top.hub.ctx) != nil // bounded by the outlet's write deadline
	top.releasePage(page)
	if done || gone {
		return false
	}
	top.repairAndWait(&t.progress)
	return true
}

// retry decides what a failed read means: joins not yet answered are refused,
// this one and, where it is not this room alone, those in line, which would ask
// the same log one after the other. A member that was promised its messages
// waits on.
func (t *catchUpTask) retry(err error) bool {
	m := t.member
	top := m.topic
	top.hub.logger.Debug("page not read", "room", top.room, "error", err)
	if !errors.Is(err, errHole) {
		m.client.refuseUnanswered()
	}
	if m.refuse() {
		return false
	}
	t.backoff = min(max(2*t.backoff, minRetry), maxRetry)
	return top.hub.sleep(t.backoff)
}

// repairAndWait makes a topic that is behind a member repair, and waits for it to
// move, for a second at most. It is behind when the member saw more on another
// node, or when the epoch changed and this topic does not know yet. The position
// can be trusted: a page of the log has confirmed it.
func (t *topic) repairAndWait(p *progress) {
	t.mu.Lock()
	if t.epoch == p.epoch && t.last >= p.seq {
		t.mu.Unlock()
		return // the next turn finds it in the ring, or reads the next page
	}
	if t.advanced == nil {
		t.advanced = make(chan struct{})
	}
	advanced := t.advanced
	t.recordCommitted(p.epoch, p.seq)
	t.scheduleRepair(causeAhead)
	t.mu.Unlock()
	// Then the log is read again, which tells what the topic could not.
	timeout := time.NewTimer(time.Second)
	defer timeout.Stop()
	select {
	case <-advanced:
	case <-timeout.C:
	case <-t.hub.ctx.Done():
	}
}

// refuse answers a join that the log could not serve in time, unless it was
// left or replaced meanwhile. False: it was answered before.
func (m *member) refuse() bool {
	t := m.topic
	t.mu.Lock()
	announced := m.joinedSent
	t.mu.Unlock()
	if announced {
		return false
	}
	if m.client.removeIfCurrent(m) {
		m.retire(nil, message.ErrUnavailable, message.PresenceLeft)
	}
	m.releaseJoinSlot() // also where it had left
	return true
}

// sendPage sends a member one page of what it misses: joined first, then gap, then
// messages. A position that the page's epoch does not have is void, and the
// member begins at the head; one before what is still stored skips to there. False
// says that the member is gone.
func (t *topic) sendPage(m *member, p *progress, s *sharedPage) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m.state == memberGone {
		return false
	}
	page := &s.page
	head := page.Head
	if page.Epoch == t.epoch {
		t.first = max(t.first, page.First)
		head = max(head, t.last) // the page may be a moment old
	}
	if p.epoch == "" {
		p.epoch = page.Epoch // before the first message, it is that of any
	}
	var frames []protocol.Frame
	if !m.joinedSent {
		m.confirmedUpTo = position{p.seq, p.epoch}
		frames = append(frames, m.markJoined(page.Epoch, head, page.First))
	}
	if p.result == "" || p.result == resumeRing {
		p.result = resumeLog
	}
	// The epoch first: in another one neither seq nor First say anything.
	switch {
	case p.epoch != page.Epoch || p.seq > page.Head:
		frames = append(frames, protocol.Gap(t.room, page.Epoch, 1, page.Head, protocol.GapEpoch))
		p.seq, p.epoch, p.result = page.Head, page.Epoch, resumeEpoch
	case page.First > p.seq+1:
		frames = append(frames, protocol.Gap(t.room, page.Epoch, p.seq+1, page.First-1, protocol.GapTrimmed))
		p.seq, p.result = page.First-1, resumeTrimmed
		fallthrough
	default:
		t.hub.metrics.sent.Add(float64(s.count))
		if s.count > 0 {
			frames = append(frames, s.body)
		}
		p.seq += s.count
	}
	m.sendFrames(frames)
	m.caughtUpTo = position{p.seq, p.epoch}
	return true
}

// sendFrames gives the member's client some frames, in order. Caller holds topic.mu, so
// that no live message comes between them.
func (m *member) sendFrames(frames []protocol.Frame) {
	if len(frames) == 0 {
		return
	}
	out, size := m.client.out, 0
	for _, f := range frames {
		size += len(f)
	}
	if size <= maxCopiedBytes {
		out.Send(concatFrames(frames))
		return
	}
	for _, f := range frames {
		if len(f) <= maxCopiedBytes {
			out.Queue(f)
			continue
		}
		out.Flush() // first, so that the large one is written from where it lies
		out.Send(f)
	}
	out.Flush()
}
