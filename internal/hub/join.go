package hub

import (
	"context"
	"errors"
	"fmt"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// firstRetry is the wait after a first failed read; it doubles up to 2 s.
const firstRetry = 100 * time.Millisecond

// progress is how far a joining or catching-up member has come.
type progress struct {
	seq     message.Seq
	epoch   message.Epoch // "" with seq 0: any
	fromNow bool          // no position: begin with what comes
	result  string        // for metrics: the dearest way taken so far
}

// openLoop makes a new topic live: subscription first, then head and first, so
// that nothing falls between the two. It goes on while the log is away.
func (t *topic) openLoop() {
	ctx, cancel := context.WithTimeout(t.hub.ctx, subscribeTimeout)
	if err := t.hub.cfg.Broker.Subscribe(ctx, t.room); err != nil {
		t.hub.log.Debug("opened before its subscription", "room", t.room, "error", err)
	}
	cancel()
	for wait := firstRetry; ; wait = min(2*wait, 2*time.Second) {
		page, err := t.hub.read(t.hub.ctx, message.Range{Room: t.room})
		if err == nil {
			t.begin(&page)
			return
		}
		t.hub.log.Warn("room not opened", "room", t.room, "error", err)
		if !t.hub.sleep(wait) || t.isClosed() {
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
	t.open = true
	t.epoch, t.last, t.first = page.Epoch, page.Head, page.First
	t.fanOut(t.unhold(nil))
	close(t.ready)
	t.mend(causeHole)
}

// enter makes the member live at once where memory suffices, else on a
// goroutine of its own that ends when it is live.
func (m *member) enter(p progress) {
	t := m.topic
	t.mu.Lock()
	live := m.goLive(&p)
	t.mu.Unlock()
	if !live {
		t.hub.spawn(func() { t.catchUp(m, p) })
	}
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
	if p.seq == 0 && p.epoch == "" {
		p.epoch = t.epoch
	}
	if p.epoch != t.epoch || !t.ring.covers(p.seq, t.last) {
		return false
	}
	var frames []protocol.Frame
	if !m.announced {
		frames = append(frames, m.announce(t.epoch, t.last, t.first))
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
	f := protocol.Joined(m.ref, m.topic.room, epoch, head, first)
	m.ref = ""
	return f
}

// catchUp brings a member to where the ring takes over, page by page, each
// after the last one has left the member's queue: a joiner has no buffer.
func (t *topic) catchUp(m *member, p progress) {
	if !t.awaitOpen() {
		t.refuse(m)
		return
	}
	wait := firstRetry
	for {
		t.mu.Lock()
		done := m.goLive(&p)
		t.mu.Unlock()
		if done {
			return
		}
		page, err := t.page(p.seq)
		if err != nil {
			if !t.retry(m, err, &wait) {
				return
			}
			continue
		}
		wait = firstRetry
		if !t.step(m, &p, page) || m.client.out.Flushed(t.hub.ctx) != nil {
			return // gone, or its connection is
		}
		t.keepUp(&p)
	}
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
	if t.epoch == p.epoch {
		t.notice(p.seq, causeAhead)
	} else {
		t.doubt()
	}
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
	t.hub.log.Warn("page not read", "room", t.room, "error", err)
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

// refuse answers a join that the log could not serve in time.
func (t *topic) refuse(m *member) {
	t.mu.Lock()
	gone, ref := m.state == memberGone, m.ref
	t.mu.Unlock()
	if gone {
		return
	}
	m.client.drop(m)
	m.client.out.Send(protocol.ErrorFor(message.ErrUnavailable).Encode(ref, t.room, ""))
}

// step sends a member one page of what it misses: joined first, then gap, then
// messages. False says that the member is gone.
func (t *topic) step(m *member, p *progress, page *page) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m.state == memberGone {
		return false
	}
	var frames []protocol.Frame
	if !m.announced {
		frames = append(frames, m.announce(page.Epoch, page.Head, page.First))
	}
	if p.epoch == "" {
		p.epoch = page.Epoch
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
	return true
}

// A page is part of the log, encoded once for all who need it.
type page struct {
	message.Page // without its messages
	entries      []entry
}

// A pageRead is a read under way that others may wait for.
type pageRead struct {
	done chan struct{}
	page *page
	err  error
}

var errHole = errors.New("the log returned a page with a hole")

// page reads what follows after, sharing the read with whoever asks for the
// same at the same time: a room that comes back asks the database once.
func (t *topic) page(after message.Seq) (*page, error) {
	t.mu.Lock()
	r := t.pages[after]
	if r != nil {
		t.mu.Unlock()
		<-r.done // bounded by read
		return r.page, r.err
	}
	r = &pageRead{done: make(chan struct{})}
	if t.pages == nil {
		t.pages = make(map[message.Seq]*pageRead)
	}
	t.pages[after] = r
	t.mu.Unlock()

	r.page, r.err = t.fetch(after)
	t.mu.Lock()
	delete(t.pages, after)
	t.mu.Unlock()
	close(r.done)
	return r.page, r.err
}

func (t *topic) fetch(after message.Seq) (*page, error) {
	got, err := t.hub.read(t.hub.ctx, message.Range{Room: t.room, After: after, Limit: pageFrames, MaxBytes: pageBytes})
	if err != nil {
		return nil, fmt.Errorf("reading %s after %d: %w", t.room, after, err)
	}
	p := &page{Page: got}
	next := max(after+1, got.First)
	for i := range got.Messages {
		m := &got.Messages[i]
		if m.Seq != next {
			return nil, fmt.Errorf("%w: %s at %d, not %d", errHole, t.room, m.Seq, next)
		}
		next++
		p.entries = append(p.entries, entry{
			seq:    m.Seq,
			epoch:  m.Epoch,
			frame:  protocol.Message(m),
			bornAt: m.At.UnixMicro(),
		})
	}
	p.Messages = nil
	return p, nil
}
