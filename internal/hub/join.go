package hub

import (
	"context"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// progress is how far a joining or catching-up member has come.
type progress struct {
	seq     message.Seq
	epoch   message.Epoch // "" with seq 0: any
	fromNow bool          // no position: begin with what comes
	result  string        // for metrics: the dearest way taken so far
}

// openLoop makes a new topic live: subscription first, then head and first, so
// that nothing falls between the two. It goes on while the log is away and
// somebody waits.
func (t *topic) openLoop() {
	ctx, cancel := context.WithTimeout(t.hub.ctx, subscribeTimeout)
	if err := t.hub.cfg.Broker.Subscribe(ctx, t.room); err != nil {
		t.hub.log.Debug("opened before its subscription", "room", t.room, "error", err)
	}
	cancel()
	for wait := firstRetry; !t.isClosed(); wait = min(2*wait, 2*time.Second) {
		page, err := t.hub.read(t.hub.ctx, message.Range{Room: t.room})
		if err == nil {
			t.begin(&page)
			return
		}
		t.hub.log.Debug("room not opened", "room", t.room, "error", err)
		if !t.hub.sleep(wait) {
			return
		}
	}
}

func (t *topic) isClosed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.closed
}

// begin takes the log's word for where the room stands, and what was held
// since goes on from there.
func (t *topic) begin(page *message.Page) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	t.open = true
	if t.heard != "" && t.heard != page.Epoch {
		t.doubts++ // the page, or what was heard, is of the past
	}
	if t.doubts > t.settled {
		t.target = 0 // of whichever epoch: the log is asked again
	}
	t.epoch, t.last, t.first = page.Epoch, page.Head, page.First
	t.hold.prune(t.last, t.epoch) // the log knew these already
	t.fanOut(t.unhold(nil))
	close(t.ready)
	t.mend(causeHole)
}

// enter makes the member live at once where it misses nothing. Else it takes
// its turn on a goroutine of its own, which ends when it is live; the client
// reads on meanwhile, but for having maxJoins unanswered.
func (m *member) enter(p progress) {
	t := m.topic
	t.mu.Lock()
	upToDate := t.open && (p.fromNow || p.seq == t.last)
	live := upToDate && m.goLive(&p)
	t.mu.Unlock()
	if live {
		return
	}
	m.unanswered = m.client.awaitJoin()
	t.hub.spawn(func() {
		t.catchUp(m, p)
		m.answered() // whatever became of it
	})
}

// goLive enqueues what the member misses from the ring and makes it live, if
// the ring has it; true says that nothing is left to do. Caller holds mu.
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
	if p.epoch != "" && p.epoch != t.epoch || !t.ring.covers(p.seq, t.last) {
		return false
	}
	var frames []protocol.Frame
	if !m.announced {
		m.proved = place{p.seq, t.epoch}
		frames = append(frames, m.announce(t.epoch, t.last, min(t.first, t.last+1)))
	}
	if n := int(t.last - p.seq); n > 0 {
		t.hub.metrics.sent.Add(float64(n))
		frames = append(frames, t.ring.tail(n))
	}
	if p.result != "" {
		t.hub.metrics.resumes.WithLabelValues(p.result).Inc()
	}
	t.add(m, frames)
	return true
}

// announce returns the answer to the join. Caller holds mu.
func (m *member) announce(epoch message.Epoch, head, first message.Seq) protocol.Frame {
	m.announced = true
	m.present(message.PresenceJoined)
	m.answered()
	f := protocol.Joined(m.ref, m.topic.room, epoch, head, first)
	m.ref = ""
	return f
}
