package hub

import (
	"time"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// needsRepair says whether there is more, or other, than was delivered here: only
// then is the log asked. Caller holds mu.
func (t *topic) needsRepair() bool {
	return t.open && !t.closed && (t.epochMismatches > t.mismatchesResolved || t.last < t.target)
}

// scheduleRepair plans a repair where one is due and none is planned: a hole has a
// moment to fill by itself, since most are two broadcasts that overtook each
// other. Another epoch is asked about at once. Caller holds mu.
func (t *topic) scheduleRepair(cause string) {
	if !t.needsRepair() || t.repairing || t.repairScheduled {
		return
	}
	wait := t.hub.cfg.RepairWait
	if t.epochMismatches > t.mismatchesResolved {
		cause, wait = causeEpoch, 0
	}
	t.repairScheduled = true
	time.AfterFunc(wait, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.repairScheduled = false
		// The moment may have been enough.
		if t.needsRepair() && !t.repairing {
			t.repairing, t.repairCause = true, cause
			t.hub.enqueueRepair(t)
		}
	})
}

// A gapRequest is what a repair was begun for. Its page is younger: it can settle
// this much of what the topic lacks, and nothing that was heard since.
type gapRequest struct {
	after           message.Seq // what was delivered
	target          message.Seq
	epochMismatches uint64
}

// repair reads one page from the log. One a topic is under way at a time, on a
// goroutine of the hub's: neither the committer nor the broker's reader waits for
// it. It shares no read with joiners: one begun before the target was known
// would not have it, and say nothing about it.
func (t *topic) repair() {
	t.mu.Lock()
	if !t.needsRepair() {
		t.repairing = false
		t.mu.Unlock()
		return
	}
	req := gapRequest{t.last, t.target, t.epochMismatches}
	t.hub.metrics.repairs.WithLabelValues(t.repairCause).Inc()
	t.mu.Unlock()
	page, err := t.fetch(t.hub.ctx, nil, req.after, t.hub.repairPageLimit)
	if err == nil {
		t.apply(req, page)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case err != nil:
		// It keeps its claim, so that no second one begins, but not a worker.
		t.hub.logger.Debug("repair failed, will try again", "room", t.room, "error", err)
		t.repairBackoff = min(max(2*t.repairBackoff, minRetry), maxRetry)
		time.AfterFunc(t.repairBackoff, func() { t.hub.enqueueRepair(t) })
		return
	case t.needsRepair():
		t.hub.enqueueRepair(t) // behind those who wait already
	default:
		t.repairing = false
	}
	t.repairBackoff = 0
}

// apply takes a page that was read for a want. Live messages may have come
// meanwhile: the page fills what is still missing, and nothing else.
func (t *topic) apply(req gapRequest, p *encodedPage) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	t.mismatchesResolved = req.epochMismatches // those that came meanwhile are open
	if p.Epoch == t.epoch && p.Head < req.target {
		t.abandonTarget(req, p)
	}
	switch {
	case p.Epoch != t.epoch || p.Head < req.after:
		t.restartAtHead(p)
	case p.More:
		t.skipToHead(p)
	default:
		t.deliverPage(p)
	}
	t.first = max(t.first, p.First)
	t.prune(t.last)
	t.fanOut(t.drainReorderBuffer(nil))
	t.signalAdvanced() // also where nothing moved: who waits reads for itself then
}

// deliverPage delivers a page that reaches the head. Caller holds mu.
func (t *topic) deliverPage(p *encodedPage) {
	if p.First > t.last+1 {
		// The log let go of what was never delivered here: say so. Members
		// who catch up are told by their own page.
		sendAll(t.outlets, protocol.Gap(t.room, t.epoch, t.last+1, p.First-1, protocol.GapTrimmed))
		t.last = p.First - 1
		t.resetRing()
	}
	var out []protocol.Frame
	for i := range p.frames {
		// What came live since the read is behind us already.
		if p.frames[i].seq == t.last+1 {
			out = append(out, t.advance(&p.frames[i]))
		}
	}
	t.fanOut(out)
	t.hub.observeDelivery(p.frames)
}

// skipToHead jumps to the head when more is missing than one page: every member then
// catches up from the log at its own pace, sharing the pages. So a repair is one
// read and a page of memory, however far behind the room is, and a member that
// reads slowly does not fill its queue with an hour of messages. Caller holds mu.
func (t *topic) skipToHead(p *encodedPage) {
	from := progress{seq: t.last, epoch: t.epoch, result: resumeLog}
	// They were all at the same position, so they begin with the same page.
	for _, m := range t.members {
		m.state, m.caughtUpTo = memberPending, position{from.seq, from.epoch}
		m.client.enqueueCatchUp(catchUpTask{member: m, progress: from})
	}
	t.members, t.outlets = nil, nil
	t.last = max(t.last, p.Head)
	t.resetRing()
}

// restartAtHead begins at the log's head, in a new epoch or where the log has gone
// back: positions are void, and the members are told.
// Caller holds mu.
func (t *topic) restartAtHead(p *encodedPage) {
	if t.epoch != p.Epoch {
		t.hub.logNewEpoch(p.Epoch)
		t.target = p.Head // of the old one it says nothing here
	}
	t.epoch, t.last, t.first = p.Epoch, p.Head, p.First
	t.resetRing()
	t.pages = nil // those who have one keep it
	sendAll(t.outlets, protocol.Gap(t.room, p.Epoch, 1, p.Head, protocol.GapEpoch))
}

// abandonTarget gives up positions that the log does not have in this epoch, though it
// was read after they were known. It went back without a new epoch, which only
// a copy of its files under a running service can do. What became known since
// stays wanted. Caller holds mu.
func (t *topic) abandonTarget(req gapRequest, p *encodedPage) {
	t.hub.logger.Error("the log is behind what was delivered, and its epoch is the same",
		"room", t.room, "head", p.Head, "known", req.target)
	t.prune(req.target)
	if t.target == req.target {
		t.target = p.Head
	}
}
