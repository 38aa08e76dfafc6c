package hub

import (
	"time"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// lacking says whether there is more, or other, than was delivered here: only
// then is the log asked. Caller holds mu.
func (t *topic) lacking() bool {
	return t.open && !t.closed && (t.doubts > t.settled || t.last < t.target)
}

// mend plans a repair where one is due and none is planned: a hole has a
// moment to fill by itself, since most are two broadcasts that overtook each
// other. Another epoch is asked about at once. Caller holds mu.
func (t *topic) mend(cause string) {
	if !t.lacking() || t.repairing || t.waiting {
		return
	}
	wait := t.hub.cfg.RepairWait
	if t.doubts > t.settled {
		cause, wait = causeEpoch, 0
	}
	t.waiting = true
	time.AfterFunc(wait, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.waiting = false
		// The moment may have been enough.
		if t.lacking() && !t.repairing {
			t.repairing, t.cause = true, cause
			t.hub.repair(t)
		}
	})
}

// A want is what a repair was begun for. Its page is younger: it can settle
// this much of what the topic lacks, and nothing that was heard since.
type want struct {
	after  message.Seq // what was delivered
	target message.Seq
	doubts uint64
}

// repair reads one page from the log. One a topic is under way at a time, on a
// goroutine of the hub's: neither the committer nor the broker's reader waits for
// it. It shares no read with joiners: one begun before the target was known
// would not have it, and say nothing about it.
func (t *topic) repair() {
	t.mu.Lock()
	if !t.lacking() {
		t.repairing = false
		t.mu.Unlock()
		return
	}
	w := want{t.last, t.target, t.doubts}
	t.hub.metrics.repairs.WithLabelValues(t.cause).Inc()
	t.mu.Unlock()
	page, err := t.fetch(t.hub.ctx, nil, w.after, t.hub.wholePage)
	if err == nil {
		t.apply(w, page)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case err != nil:
		// It keeps its claim, so that no second one begins, but not a worker.
		t.hub.log.Debug("repair failed, will try again", "room", t.room, "error", err)
		t.backoff = min(max(2*t.backoff, firstRetry), lastRetry)
		time.AfterFunc(t.backoff, func() { t.hub.repair(t) })
		return
	case t.lacking():
		t.hub.repair(t) // behind those who wait already
	default:
		t.repairing = false
	}
	t.backoff = 0
}

// apply takes a page that was read for a want. Live messages may have come
// meanwhile: the page fills what is still missing, and nothing else.
func (t *topic) apply(w want, p *page) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	t.settled = w.doubts // those that came meanwhile are open
	if p.Epoch == t.epoch && p.Head < w.target {
		t.disown(w, p)
	}
	switch {
	case p.Epoch != t.epoch || p.Head < w.after:
		t.restart(p)
	case p.More:
		t.skip(p)
	default:
		t.fill(p)
	}
	t.first = max(t.first, p.First)
	t.prune(t.last)
	t.fanOut(t.unhold(nil))
	t.wake() // also where nothing moved: who waits reads for itself then
}

// fill delivers a page that reaches the head. Caller holds mu.
func (t *topic) fill(p *page) {
	if p.First > t.last+1 {
		// The log let go of what was never delivered here: say so. Members
		// who catch up are told by their own page.
		sendAll(t.outlets, protocol.Gap(t.room, t.epoch, t.last+1, p.First-1, protocol.GapTrimmed))
		t.last = p.First - 1
		t.forgetRing()
	}
	var out []protocol.Frame
	for i := range p.entries {
		// What came live since the read is behind us already.
		if p.entries[i].seq == t.last+1 {
			out = append(out, t.advance(&p.entries[i]))
		}
	}
	t.fanOut(out)
	t.hub.observeDelivery(p.entries)
}

// skip jumps to the head when more is missing than one page: every member then
// catches up from the log at its own pace, sharing the pages. So a repair is one
// read and a page of memory, however far behind the room is, and a member that
// reads slowly does not fill its queue with an hour of messages. Caller holds mu.
func (t *topic) skip(p *page) {
	from := progress{seq: t.last, epoch: t.epoch, result: resumeLog}
	// They were all at the same position, so they begin with the same page.
	for _, m := range t.members {
		m.state, m.reached = memberPending, place{from.seq, from.epoch}
		m.client.lineUp(turn{member: m, progress: from})
	}
	t.members, t.outlets = nil, nil
	t.last = max(t.last, p.Head)
	t.forgetRing()
}

// restart begins at the log's head, in a new epoch or where the log has gone
// back: positions are void, and the members are told.
// Caller holds mu.
func (t *topic) restart(p *page) {
	if t.epoch != p.Epoch {
		t.hub.noteEpoch(p.Epoch)
		t.target = p.Head // of the old one it says nothing here
	}
	t.epoch, t.last, t.first = p.Epoch, p.Head, p.First
	t.forgetRing()
	t.pages = nil // those who have one keep it
	sendAll(t.outlets, protocol.Gap(t.room, p.Epoch, 1, p.Head, protocol.GapEpoch))
}

// disown gives up positions that the log does not have in this epoch, though it
// was read after they were known. It went back without a new epoch, which only
// a copy of its files under a running service can do. What became known since
// stays wanted. Caller holds mu.
func (t *topic) disown(w want, p *page) {
	t.hub.log.Error("the log is behind what was delivered, and its epoch is the same",
		"room", t.room, "head", p.Head, "known", w.target)
	t.prune(w.target)
	if t.target == w.target {
		t.target = p.Head
	}
}
