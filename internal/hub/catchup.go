package hub

import (
	"time"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// firstRetry is the wait after a first failed read; it doubles up to 2 s.
const firstRetry = 100 * time.Millisecond

// catchUp brings a member to where the ring takes over, page by page. The
// rooms of one client take turns, and each turn ends when what it sent has left
// the client's queue: a joiner has no buffer, and a client that resumes a
// thousand rooms is not drowned in them.
func (t *topic) catchUp(m *member, p progress) {
	if !t.awaitOpen() {
		t.refuse(m)
		return
	}
	for wait := firstRetry; m.client.takeTurn(); {
		done, err := t.serve(m, &p)
		m.client.endTurn()
		switch {
		case done:
			return
		case err != nil:
			if !t.retry(m, err, &wait) {
				return
			}
		default:
			wait = firstRetry
			t.keepUp(&p)
		}
	}
}

// serve makes the member live or sends it one page, and waits until that has
// left. Done says that nothing is left to do: live, gone, or cut off.
func (t *topic) serve(m *member, p *progress) (done bool, err error) {
	t.mu.Lock()
	done = m.goLive(p)
	t.mu.Unlock()
	if !done {
		page, err := t.page(p)
		if err != nil {
			return false, err
		}
		done = !t.step(m, p, page)
	}
	return m.client.out.Flushed(t.hub.ctx) != nil || done, nil
}

// awaitOpen waits for a cold topic, no longer than a client should for an answer.
func (t *topic) awaitOpen() bool {
	timeout := time.NewTimer(logTimeout + subscribeTimeout)
	defer timeout.Stop()
	select {
	case <-t.ready:
		return true
	case <-timeout.C:
	case <-t.hub.ctx.Done():
	}
	return false
}

// keepUp makes a topic that is behind a member repair, and waits for it to
// move. It is behind when the member saw more on another node, or when the
// epoch changed and this topic does not know yet.
func (t *topic) keepUp(p *progress) {
	t.mu.Lock()
	if t.epoch == p.epoch && t.last >= p.seq {
		t.mu.Unlock()
		return
	}
	if t.moved == nil {
		t.moved = make(chan struct{})
	}
	moved := t.moved
	t.hear(p.epoch, p.seq)
	t.mend(causeAhead)
	t.mu.Unlock()
	timeout := time.NewTimer(time.Second)
	defer timeout.Stop()
	select {
	case <-moved:
	case <-timeout.C:
	case <-t.hub.ctx.Done():
	}
}

// retry decides what a failed read means: a join not yet answered is refused,
// a member that was promised its messages waits on. False ends the catch-up.
func (t *topic) retry(m *member, err error, wait *time.Duration) bool {
	t.hub.log.Debug("page not read", "room", t.room, "error", err)
	t.mu.Lock()
	announced := m.announced
	t.mu.Unlock()
	if !announced {
		t.refuse(m)
		return false
	}
	*wait = min(2**wait, 2*time.Second)
	return t.hub.sleep(*wait)
}

// refuse answers a join that the log could not serve in time, unless it was
// left or replaced meanwhile.
func (t *topic) refuse(m *member) {
	if m.client.forget(m) {
		m.retire(nil, message.ErrUnavailable, message.PresenceLeft)
	}
}

// step sends a member one page of what it misses: joined first, then gap, then
// messages. False says that the member is gone.
func (t *topic) step(m *member, p *progress, page *page) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m.state == memberGone {
		return false
	}
	if page.Epoch == t.epoch {
		t.first = max(t.first, page.First)
	}
	if p.epoch == "" {
		p.epoch = page.Epoch
	}
	var frames []protocol.Frame
	if !m.announced {
		m.proved = place{p.seq, p.epoch}
		frames = append(frames, m.announce(page.Epoch, page.Head, page.First))
	}
	if p.result == "" || p.result == resumeRing {
		p.result = resumeLog
	}
	switch {
	case p.epoch != page.Epoch || p.seq > page.Head:
		frames = append(frames, protocol.Gap(t.room, page.Epoch, 1, page.Head, protocol.GapEpoch))
		p.seq, p.epoch, p.result = page.Head, page.Epoch, resumeEpoch
	case page.First > p.seq+1:
		frames = append(frames, protocol.Gap(t.room, page.Epoch, p.seq+1, page.First-1, protocol.GapTrimmed))
		p.seq, p.result = page.First-1, resumeTrimmed
		fallthrough
	default:
		t.hub.metrics.sent.Add(float64(len(page.entries)))
		for i := range page.entries {
			frames = append(frames, page.entries[i].frame)
		}
		p.seq += message.Seq(len(page.entries))
	}
	if len(frames) > 0 {
		m.client.out.Send(join(frames))
	}
	m.reached = place{p.seq, p.epoch}
	return true
}
