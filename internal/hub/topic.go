package hub

import (
	"sync"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// An entry is a message or signal as it travels to members: already encoded.
type entry struct {
	seq    message.Seq // 0: a signal
	epoch  message.Epoch
	frame  protocol.Frame
	bornAt int64 // commit, Unix microseconds of the node that committed
}

// A topic is a room's live state on one node. Only it knows what was delivered
// here, so only it repairs.
type topic struct {
	hub   *Hub
	room  message.Room
	inbox mailbox[entry]
	ready chan struct{} // closed once open

	// Guarded by the shard's lock.
	pins      int
	madeAt    time.Time
	idleSince time.Time

	mu sync.Mutex
	// Protects following.
	open      bool
	closed    bool
	epoch     message.Epoch
	last      message.Seq   // everything up to here went to the members
	first     message.Seq   // oldest stored, as of the last read
	target    message.Seq   // known to exist
	heard     message.Epoch // the first that was told of before the topic opened
	ring      ring
	hold      hold      // later than last+1
	members   []*member // live ones
	outlets   []Outlet  // theirs, at the same index
	repairing bool
	doubts    uint64        // how often a message of another epoch came
	settled   uint64        // the doubts that the log has answered
	waiting   bool          // the repair timer runs
	moved     chan struct{} // closed when last advances; nil: nobody waits
	pages     map[message.Seq]*pageRead
	scratch   []protocol.Frame
	watching  watch

	looking chan struct{} // holds a token while somebody looks who is here
}

func newTopic(h *Hub, room message.Room) *topic {
	return &topic{hub: h, room: room, ready: make(chan struct{}), looking: make(chan struct{}, 1), madeAt: time.Now()}
}

// receive takes what was committed or signalled. It only appends: the runner
// does the rest. Never blocks.
func (t *topic) receive(e entry) {
	if t.inbox.put(e, len(e.frame), t.hub.cfg.bounds.inboxBytes, t.runLoop) {
		return
	}
	t.hub.metrics.dropped.WithLabelValues("inbox_full").Inc()
	if e.seq > 0 {
		t.mu.Lock()
		t.hear(e.epoch, e.seq)
		t.mend(causeOverflow)
		t.mu.Unlock()
	}
}

// runLoop fans out while there is work.
func (t *topic) runLoop() {
	for {
		batch, ok := t.inbox.take()
		if !ok {
			return
		}
		t.deliver(batch)
	}
}

// deliver puts a batch in order and fans out what is due.
func (t *topic) deliver(batch []entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return // and so would keep what nobody counts any more
	}
	out := t.scratch[:0]
	for i := range batch {
		out = t.accept(&batch[i], out)
	}
	t.fanOut(out)
	t.hub.observeDelivery(batch)
	clear(out)
	t.scratch = out[:0]
	if cap(t.scratch) > 64 {
		t.scratch = nil
	}
	t.mend(causeHole)
}

// accept appends to out what the entry makes due: itself and what was held
// for it. Caller holds mu.
func (t *topic) accept(e *entry, out []protocol.Frame) []protocol.Frame {
	switch {
	case e.seq == 0:
		return append(out, e.frame)
	case !t.open:
		t.hear(e.epoch, e.seq)
		t.keep(e)
	case e.epoch != t.epoch:
		t.hear(e.epoch, e.seq)
	case e.seq <= t.last: // a duplicate: its own echo, or a broadcast repeated
	case e.seq > t.last+1:
		t.keep(e)
	default:
		out = t.unhold(append(out, t.advance(e)))
	}
	return out
}

// unhold appends to out what was held for the position that is now reached.
// Caller holds mu.
func (t *topic) unhold(out []protocol.Frame) []protocol.Frame {
	for t.hold.len() > 0 {
		next, ok := t.hold.take(t.last+1, t.epoch)
		if !ok {
			break
		}
		out = append(out, t.advance(&next))
	}
	return out
}

// advance moves the position over the next entry. Caller holds mu.
func (t *topic) advance(e *entry) protocol.Frame {
	t.last = e.seq
	before := t.ring.bytes
	t.ring.push(e.frame, t.hub.cfg.bounds.ringFrames, t.hub.ringLimit())
	t.hub.rings.Add(int64(t.ring.bytes - before))
	t.wake()
	return e.frame
}

// wake tells who waits for the topic to move. Caller holds mu.
func (t *topic) wake() {
	if t.moved != nil {
		close(t.moved)
		t.moved = nil
	}
}

// keep holds an entry for later, in bounds. Caller holds mu.
func (t *topic) keep(e *entry) {
	t.target = max(t.target, e.seq)
	if !t.hold.put(e, &t.hub.cfg.bounds) {
		t.hub.metrics.dropped.WithLabelValues("hold_full").Inc()
	}
}

// hear learns that the log has, or had, a seq in an epoch. Which of two epochs
// is the newer only the log knows: it is asked then. Caller holds mu, and mends.
func (t *topic) hear(epoch message.Epoch, seq message.Seq) {
	mine := t.epoch
	if !t.open {
		if t.heard == "" {
			t.heard = epoch
		}
		mine = t.heard
	}
	if epoch != mine {
		t.doubts++
		return
	}
	t.target = max(t.target, seq)
}

// close ends a topic that nobody holds.
func (t *topic) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	t.forgetRing()
}

// forgetRing empties the ring. Caller holds mu.
func (t *topic) forgetRing() {
	t.hub.rings.Add(-int64(t.ring.bytes))
	t.ring = ring{}
}

// add makes a member live, after the frames that bring it up to date. Caller
// holds mu.
func (t *topic) add(m *member, frames []protocol.Frame) {
	m.state = memberLive
	m.index = len(t.members)
	t.members = append(t.members, m)
	t.outlets = append(t.outlets, m.client.out)
	if len(frames) > 0 {
		m.client.out.Send(join(frames))
	}
	m.becameLive()
}

// remove takes a live member out. Caller holds mu.
func (t *topic) remove(m *member) {
	last := len(t.members) - 1
	t.members[m.index] = t.members[last]
	t.outlets[m.index] = t.outlets[last]
	t.members[m.index].index = m.index
	t.members[last], t.outlets[last] = nil, nil
	t.members, t.outlets = t.members[:last], t.outlets[:last]
	if last == 0 {
		t.members, t.outlets = nil, nil
	}
}
