package hub

import (
	"sync"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// A roomFrame is an encoded message or signal. The ring, the shared pages and
// all members use the same frame; nobody writes to it.
type roomFrame struct {
	seq       message.Seq // 0: a signal
	epoch     message.Epoch
	frame     protocol.Frame
	createdAt int64 // time of the commit, Unix microseconds by the clock of the node that committed
}

// A topic is a room's live state on one node. Only the topic has the seq of the
// last delivered message, so only the topic orders and repairs.
type topic struct {
	hub   *Hub
	room  message.Room
	inbox inbox[roomFrame]

	// Guarded by the shard's lock. A topic without references is kept until it
	// is swept.
	refCount  int // the members
	createdAt time.Time
	idleSince time.Time

	// mu protects the fields below.
	mu     sync.Mutex
	open   bool // a read of the log has returned the room's epoch and head
	closed bool // swept: nothing is delivered or kept any more

	// The delivered position. Within an epoch last only grows. The seqs from
	// last+1 to knownHead are missing here.
	epoch           message.Epoch
	last            message.Seq   // everything up to here was sent to the members
	first           message.Seq   // oldest stored, as of the last read
	knownHead       message.Seq   // the highest seq known to exist
	epochBeforeOpen message.Epoch // the first epoch that was seen before the topic opened

	ring    ring          // the newest frames that were sent to the members
	reorder reorderBuffer // frames that arrived before an earlier one did

	// A member that is joining or catching up is in neither members nor
	// outlets.
	members []*member          // the live ones
	outlets []Outlet           // outlets[i] belongs to members[i]
	waiters map[*member]waiter // joins that wait for the topic to open

	// A repair is scheduled, queued or in progress while repairScheduled or
	// repairing is set.
	epochMismatches    uint64        // how often another epoch was seen
	mismatchesResolved uint64        // how many of them a read of the log has resolved
	repairScheduled    bool          // the repair timer runs
	repairing          bool          // queued, reading, or waiting for the next try
	repairCause        string        // label in metrics
	repairBackoff      time.Duration // before the next try, after a failed read

	advanced      chan struct{} // closed when last advances, nil if no member waits for that
	pages         map[message.Seq]*sharedPage
	scratch       []protocol.Frame // deliver's buffer, reused
	commitTimes   []int64          // in Unix microseconds: of the messages that advanced and fanOut has not sent; reused
	presenceWatch presenceWatch

	presenceLock chan struct{} // holds a token while the room's presence is queried
}

func newTopic(h *Hub, room message.Room) *topic {
	return &topic{hub: h, room: room, presenceLock: make(chan struct{}, 1), createdAt: time.Now()}
}

// receive adds a committed message or a signal to the inbox; deliverLoop does
// the rest. It never blocks.
func (t *topic) receive(f roomFrame) {
	// Count the bytes first: deliverLoop may have subtracted them before put
	// returns.
	limit := t.hub.inboxLimit()
	t.hub.memory.undelivered.Add(int64(len(f.frame)))
	if t.inbox.put(f, len(f.frame), limit, t.deliverLoop) {
		return
	}
	t.hub.memory.undelivered.Add(-int64(len(f.frame)))
	t.hub.metrics.dropped.WithLabelValues(dropInbox).Inc()
	if f.seq > 0 { // a message can still be read from the log; a signal is lost
		t.mu.Lock()
		t.recordCommitted(f.epoch, f.seq)
		t.scheduleRepair(causeOverflow)
		t.mu.Unlock()
	}
}

// deliverLoop delivers while there is work. The inbox runs at most one
// deliverLoop, so frames are delivered in the order of the inbox.
func (t *topic) deliverLoop() {
	for {
		frames, ok := t.inbox.dequeueAll()
		if !ok {
			return
		}
		t.deliver(frames)
		size := 0
		for i := range frames {
			size += len(frames[i].frame)
		}
		t.hub.memory.undelivered.Add(-int64(size))
	}
}

// deliver puts the frames in order and sends those that are next in order.
// Frames that were dequeued together are fanned out together.
func (t *topic) deliver(frames []roomFrame) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return // there are no members, and nothing would subtract the bytes of a buffered frame
	}
	out := t.scratch[:0]
	for i := range frames {
		out = t.accept(&frames[i], out)
	}
	t.fanOut(out)
	clear(out)
	t.scratch = out[:0]
	if cap(t.scratch) > 64 {
		t.scratch = nil
	}
	t.scheduleRepair(causeHole)
}

// accept appends to out the frames that are next in order: f, and the buffered
// frames that follow it. A signal has no seq and is never held back. Caller
// holds mu.
func (t *topic) accept(f *roomFrame, out []protocol.Frame) []protocol.Frame {
	switch {
	case f.seq == 0:
		return append(out, f.frame)
	case !t.open:
		t.recordCommitted(f.epoch, f.seq)
		t.bufferEarly(f)
	case f.epoch != t.epoch:
		t.recordCommitted(f.epoch, f.seq)
	case f.seq <= t.last:
		// A duplicate: a repeated broadcast, an id that was sent again, or a
		// message that a repair has already delivered.
	case f.seq > t.last+1:
		t.bufferEarly(f)
	default:
		out = t.releaseBuffered(append(out, t.advance(f)))
	}
	return out
}

// releaseBuffered appends to out the buffered frames that follow last, up to
// the next hole. Caller holds mu.
func (t *topic) releaseBuffered(out []protocol.Frame) []protocol.Frame {
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

// advance moves last to the next frame and returns it. The caller fans it out
// before it releases mu, so that a member that was live before gets it, and a
// member that becomes live later gets it from the ring. Caller holds mu.
func (t *topic) advance(f *roomFrame) protocol.Frame {
	t.last = f.seq
	t.commitTimes = append(t.commitTimes, f.createdAt)
	before := t.ring.bytes
	t.ring.push(f.frame, t.hub.cfg.bounds.ringFrames, t.hub.ringLimit())
	t.hub.memory.rings.Add(int64(t.ring.bytes - before))
	t.wakeRepairWaiters()
	return f.frame
}

// wakeRepairWaiters wakes the members that wait in repairAndWait. Caller holds mu.
func (t *topic) wakeRepairWaiters() {
	if t.advanced != nil {
		close(t.advanced)
		t.advanced = nil
	}
}

// bufferEarly keeps a frame in the reorder buffer. If it does not fit,
// knownHead records that the message exists, and a repair reads it from the
// log. Caller holds mu.
func (t *topic) bufferEarly(f *roomFrame) {
	t.knownHead = max(t.knownHead, f.seq)
	before := t.reorder.bytes
	buffered := t.reorder.put(f, t.hub.cfg.bounds.reorderFrames, t.hub.reorderLimit())
	t.hub.memory.undelivered.Add(int64(t.reorder.bytes - before))
	if !buffered {
		t.hub.metrics.dropped.WithLabelValues(dropReorderBuffer).Inc()
	}
}

// recordCommitted records that the log has, or had, a seq in an epoch. Only the
// log shows which of two epochs is newer: after a mismatch the topic reads the
// log, and the seq is ignored. The caller holds mu and then calls
// scheduleRepair.
func (t *topic) recordCommitted(epoch message.Epoch, seq message.Seq) {
	current := t.epoch
	if !t.open {
		if t.epochBeforeOpen == "" {
			t.epochBeforeOpen = epoch
		}
		current = t.epochBeforeOpen
	}
	if epoch != current {
		t.epochMismatches++
		return
	}
	t.knownHead = max(t.knownHead, seq)
}

// prune removes the frames that do not follow last from the reorder buffer.
// Caller holds mu.
func (t *topic) prune(last message.Seq) {
	before := t.reorder.bytes
	t.reorder.prune(last, t.epoch)
	t.hub.memory.undelivered.Add(int64(t.reorder.bytes - before))
}

// close ends a topic without references. Goroutines that still use the topic
// see closed and store nothing. The caller holds the shard's lock, so that no
// new topic of this room is created before close returns.
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

// add sends a member the frames that it still misses, and makes it live. fanOut
// needs the same lock, so no message is missed or sent twice in between. Caller
// holds mu.
func (t *topic) add(m *member, frames []protocol.Frame) {
	m.state = memberLive
	m.index = len(t.members)
	t.members = append(t.members, m)
	t.outlets = append(t.outlets, m.client.out)
	m.sendFrames(frames)
	m.becameLive()
}

// remove removes a live member; the last one takes its index. Caller holds mu.
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
