package hub

import (
	"sync"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// An roomFrame is a message or signal as it travels to members: already encoded. Its
// frame is shared by all who get it and by what keeps it, and never written to.
type roomFrame struct {
	seq       message.Seq // 0: a signal
	epoch     message.Epoch
	frame     protocol.Frame
	createdAt int64 // commit, Unix microseconds of the node that committed
}

// A topic is a room's live state on one node. Only it knows what was delivered
// here, so only it repairs.
type topic struct {
	hub   *Hub
	room  message.Room
	inbox inbox[roomFrame]

	// Guarded by the shard's lock. Pins are the members; a topic without one
	// lives on until it is swept.
	refCount  int
	createdAt time.Time
	idleSince time.Time

	mu sync.Mutex
	// Protects following.
	open   bool // the log has told where the room stands
	closed bool // swept: nothing is delivered or kept any more

	// Where the room is. Last only grows within an epoch; what is known to be
	// missing lies between it and target.
	epoch           message.Epoch
	last            message.Seq   // everything up to here went to the members
	first           message.Seq   // oldest stored, as of the last read
	target          message.Seq   // known to exist
	epochBeforeOpen message.Epoch // the first that was told of before the topic opened

	ring    ring          // the newest frames that went to the members
	reorder reorderBuffer // what came before its turn, later than last+1

	// A member that is pending or catching up is in none of these.
	members []*member          // live ones
	outlets []Outlet           // theirs, at the same index
	waiters map[*member]waiter // for open

	// A repair is planned, in line or under way while waiting or repairing.
	epochMismatches    uint64        // how often a message of another epoch came
	mismatchesResolved uint64        // the doubts that the log has answered
	repairScheduled    bool          // the repair timer runs
	repairing          bool          // it is in line, read, or waits for its next try
	repairCause        string        // of the repair
	repairBackoff      time.Duration // before its next try, after a failed read

	advanced      chan struct{} // closed when last advances; nil: nobody waits
	pages         map[message.Seq]*sharedPage
	scratch       []protocol.Frame // deliver's, used again
	presenceWatch presenceWatch

	presenceLock chan struct{} // holds a token while somebody looks who is here
}

func newTopic(h *Hub, room message.Room) *topic {
	return &topic{hub: h, room: room, presenceLock: make(chan struct{}, 1), createdAt: time.Now()}
}

// receive takes what was committed or signalled. It only appends: the runner
// does the rest. Never blocks.
func (t *topic) receive(e roomFrame) {
	// On the books first: the runner may be done with it before we are here again.
	limit := t.hub.inboxLimit()
	t.hub.memory.undelivered.Add(int64(len(e.frame)))
	if t.inbox.put(e, len(e.frame), limit, t.deliverLoop) {
		return
	}
	t.hub.memory.undelivered.Add(-int64(len(e.frame)))
	t.hub.metrics.dropped.WithLabelValues(dropInbox).Inc()
	if e.seq > 0 { // it is in the log; a signal is gone
		t.mu.Lock()
		t.recordCommitted(e.epoch, e.seq)
		t.scheduleRepair(causeOverflow)
		t.mu.Unlock()
	}
}

// deliverLoop fans out while there is work. The mailbox sees to it that one runs at
// a time: the order of the inbox is the order of delivery.
func (t *topic) deliverLoop() {
	for {
		batch, ok := t.inbox.dequeueAll()
		if !ok {
			return
		}
		t.deliver(batch)
		size := 0
		for i := range batch {
			size += len(batch[i].frame)
		}
		t.hub.memory.undelivered.Add(-int64(size))
	}
}

// deliver puts a batch in order and fans out what is due: what came together
// leaves together.
func (t *topic) deliver(batch []roomFrame) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return // nobody is here, and nobody would take it off the books
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
	t.scheduleRepair(causeHole)
}

// accept appends to out what the entry makes due: itself and what was held
// for it. Signals pass at any time: they have no place in the order. Caller
// holds mu.
func (t *topic) accept(e *roomFrame, out []protocol.Frame) []protocol.Frame {
	switch {
	case e.seq == 0:
		return append(out, e.frame)
	case !t.open:
		t.recordCommitted(e.epoch, e.seq)
		t.bufferEarly(e)
	case e.epoch != t.epoch:
		t.recordCommitted(e.epoch, e.seq)
	case e.seq <= t.last:
		// A duplicate: a broadcast repeated, a resend of its id, or what a
		// repair has brought already.
	case e.seq > t.last+1:
		t.bufferEarly(e)
	default:
		out = t.drainReorderBuffer(append(out, t.advance(e)))
	}
	return out
}

// drainReorderBuffer appends to out what was held for the position that is now reached, up
// to the next hole. Caller holds mu.
func (t *topic) drainReorderBuffer(out []protocol.Frame) []protocol.Frame {
	for t.reorder.len() > 0 {
		next, ok := t.reorder.pop(t.last+1, t.epoch)
		if !ok {
			break
		}
		t.hub.memory.undelivered.Add(-int64(len(next.frame)))
		out = append(out, t.advance(&next))
	}
	return out
}

// advance moves the position over the next entry and returns its frame, which
// the caller fans out before it lets go of mu: whoever becomes live after that
// finds it in the ring, and whoever was live before gets it. Caller holds mu.
func (t *topic) advance(e *roomFrame) protocol.Frame {
	t.last = e.seq
	before := t.ring.bytes
	t.ring.push(e.frame, t.hub.cfg.bounds.ringFrames, t.hub.ringLimit())
	t.hub.memory.rings.Add(int64(t.ring.bytes - before))
	t.signalAdvanced()
	return e.frame
}

// signalAdvanced tells who waits for the topic to move, in repairAndWait. Caller holds mu.
func (t *topic) signalAdvanced() {
	if t.advanced != nil {
		close(t.advanced)
		t.advanced = nil
	}
}

// bufferEarly holds an entry for later, in bounds. Where it does not fit, that it
// exists is still known, and a repair will bring it. Caller holds mu.
func (t *topic) bufferEarly(e *roomFrame) {
	t.target = max(t.target, e.seq)
	before := t.reorder.bytes
	buffered := t.reorder.put(e, t.hub.cfg.bounds.reorderFrames, t.hub.reorderLimit())
	t.hub.memory.undelivered.Add(int64(t.reorder.bytes - before))
	if !buffered {
		t.hub.metrics.dropped.WithLabelValues(dropReorderBuffer).Inc()
	}
}

// recordCommitted learns that the log has, or had, a seq in an epoch. Which of two epochs
// is the newer only the log knows: it is asked then, and the seq is left out of
// account. Caller holds mu, and mends.
func (t *topic) recordCommitted(epoch message.Epoch, seq message.Seq) {
	mine := t.epoch
	if !t.open {
		if t.epochBeforeOpen == "" {
			t.epochBeforeOpen = epoch
		}
		mine = t.epochBeforeOpen
	}
	if epoch != mine {
		t.epochMismatches++
		return
	}
	t.target = max(t.target, seq)
}

// prune lets go of what is held and not after a position. Caller holds mu.
func (t *topic) prune(last message.Seq) {
	before := t.reorder.bytes
	t.reorder.prune(last, t.epoch)
	t.hub.memory.undelivered.Add(int64(t.reorder.bytes - before))
}

// close ends a topic that nobody holds. What is under way for it, a runner, a
// repair, a page, finds it closed and keeps nothing. The caller holds the shard's
// lock, so that no new topic of this name is there before.
func (t *topic) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	t.resetRing()
	t.hub.memory.undelivered.Add(-int64(t.reorder.bytes))
	t.reorder = reorderBuffer{}
}

// resetRing empties the ring. Caller holds mu.
func (t *topic) resetRing() {
	t.hub.memory.rings.Add(-int64(t.ring.bytes))
	t.ring = ring{}
}

// add makes a member live, after the frames that bring it up to date. Under one
// lock with fanOut: no message falls between the two, and none comes twice.
// Caller holds mu.
func (t *topic) add(m *member, frames []protocol.Frame) {
	m.state = memberLive
	m.index = len(t.members)
	t.members = append(t.members, m)
	t.outlets = append(t.outlets, m.client.out)
	m.sendFrames(frames)
	m.becameLive()
}

// remove takes a live member out; the last one takes its index. Caller holds mu.
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
