package hub

import (
	"errors"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// maxCopiedBytes is the size up to which a member's frames are copied into one,
// to save a write. Larger ones are sent as they are, shared by all members that
// get the same ones: otherwise each of ten thousand slow members would have its
// own copy of a page.
const maxCopiedBytes = 16 << 10

// A catchUpTask is a room in which a client is behind. The queue owns it, or
// the loop that has dequeued it.
type catchUpTask struct {
	member *member
	catchUpProgress
	backoff time.Duration // before the next try, after a failed read
}

// run makes the member live, or sends it one page, and waits until the client's
// outlet is flushed. So a joining member needs no buffer, however far back it
// starts. It returns true if there is more to do.
func (t *catchUpTask) run() bool {
	m := t.member
	tp, out := m.topic, m.client.out
	if !t.fromNow && !m.awaitReadAllowance() {
		return false
	}
	tp.mu.Lock()
	done := m.goLive(&t.catchUpProgress)
	tp.mu.Unlock()
	if done {
		// The member is live or gone. Wait until its frames are written before
		// the client's next room is served.
		_ = out.Flushed(tp.hub.ctx)
		return false
	}
	page, err := tp.acquirePage(&t.catchUpProgress)
	if err != nil {
		// Nothing was sent.
		return t.retry(err)
	}
	t.backoff = 0
	m.client.chargeRead(len(page.body))
	// The page counts towards the budget until it has left the outlet, so that
	// pages held by slow clients are counted.
	done = !tp.sendPage(m, &t.catchUpProgress, page)
	gone := out.Flushed(tp.hub.ctx) != nil // bounded by the outlet's write deadline
	tp.releasePage(page)
	if done || gone {
		return false
	}
	tp.repairAndWait(&t.catchUpProgress)
	return true
}

// The waits of awaitReadAllowance are not shorter, since thousands of clients of one reader
// may wait, and not longer, so that one whose client has gone ends.
const minAllowanceWait, maxAllowanceWait = 250 * time.Millisecond, time.Second

// awaitReadAllowance waits until what was read for the client's user is paid, so that a
// user who resumes more than the rate allows is served at that rate, and refused nothing.
// It returns false if the member is gone or the hub closes.
func (m *member) awaitReadAllowance() bool {
	readers, reader := m.client.hub.cfg.Readers, m.client.reader
	if readers == nil || reader == "" {
		return true
	}
	for {
		wait := readers.ReadDebt(reader)
		if wait <= 0 {
			return true
		}
		if m.isGone() || !m.client.hub.sleep(min(max(wait, minAllowanceWait), maxAllowanceWait)) {
			return false
		}
	}
}

func (m *member) isGone() bool {
	m.topic.mu.Lock()
	defer m.topic.mu.Unlock()
	return m.state == memberGone
}

// chargeRead counts bytes that were read for the client.
func (c *Client) chargeRead(bytes int) {
	if c.hub.cfg.Readers != nil && c.reader != "" {
		c.hub.cfg.Readers.ChargeRead(c.reader, bytes)
	}
}

func (c *Client) chargeFrames(frames []protocol.Frame) {
	size := 0
	for _, f := range frames {
		size += len(f)
	}
	c.chargeRead(size)
}

// retry handles a failed read. It refuses the joins that were not answered yet:
// this one and, unless only this room cannot be read, those behind it in the
// queue, which would otherwise fail one after the other for the same reason. A
// member whose join was answered tries again after a backoff.
func (t *catchUpTask) retry(err error) bool {
	m := t.member
	tp := m.topic
	tp.hub.logger.Debug("page not read", "room", tp.room, "error", err)
	if !errors.Is(err, errHole) {
		m.client.refuseUnanswered()
	}
	if m.refuse() {
		return false
	}
	t.backoff = min(max(2*t.backoff, minRetry), maxRetry)
	return tp.hub.sleep(t.backoff)
}

// repairAndWait starts a repair if the topic is behind the member, and waits up
// to a second for the topic to advance. A topic is behind when the member
// received more on another node, or when the topic does not know of a new epoch
// yet. The member's position is reliable, because a page of the log has
// confirmed it.
func (t *topic) repairAndWait(p *catchUpProgress) {
	t.mu.Lock()
	if t.epoch == p.epoch && t.last >= p.seq {
		t.mu.Unlock()
		return // the next run continues from the ring, or reads the next page
	}
	if t.advanced == nil {
		t.advanced = make(chan struct{})
	}
	advanced := t.advanced
	t.recordCommitted(p.epoch, p.seq)
	t.scheduleRepair(causeAhead)
	t.mu.Unlock()
	// After the wait the member reads the log again, whether the topic advanced
	// or not.
	timeout := time.NewTimer(time.Second)
	defer timeout.Stop()
	select {
	case <-advanced:
	case <-timeout.C:
	case <-t.hub.ctx.Done():
	}
}

// refuse answers a join that the log could not serve in time, unless the client
// has left the room or joined it again. It returns false if the join was
// answered before.
func (m *member) refuse() bool {
	t := m.topic
	t.mu.Lock()
	answered := m.joinedSent
	t.mu.Unlock()
	if answered {
		return false
	}
	if m.client.removeIfCurrent(m) {
		m.retire(nil, message.ErrUnavailable, message.PresenceLeft)
	}
	m.releaseJoinSlot() // also if the client had left
	return true
}

// sendPage sends a member one page of what it missed: joined first, then gap,
// then messages. A position that the page's epoch does not have is invalid, and
// the member continues at the head. From a position before the oldest stored
// message the member skips to that message. It returns false if the member is
// gone.
func (t *topic) sendPage(m *member, p *catchUpProgress, s *sharedPage) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m.state == memberGone {
		return false
	}
	page := &s.page
	head := page.Head
	if page.Epoch == t.epoch {
		t.first = max(t.first, page.First)
		head = max(head, t.last) // the page may be older than the topic
	}
	if p.epoch == "" {
		p.epoch = page.Epoch // position 0 is valid in every epoch
	}
	var frames []protocol.Frame
	if !m.joinedSent {
		m.confirmedUpTo = p.position
		frames = append(frames, m.markJoined(page.Epoch, head, page.First))
	}
	if p.result == "" || p.result == resumeRing {
		p.result = resumeLog
	}
	// Compare the epoch first: in another epoch neither seq nor First means
	// anything.
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
	m.caughtUpTo = p.position
	return true
}

// sendFrames sends frames to the member's client, in order. The caller holds
// topic.mu, so that no live message gets between them.
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
		out.Flush() // so that the large frame is written without a copy
		out.Send(f)
	}
	out.Flush()
}
