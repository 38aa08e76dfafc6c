package hub

import (
	"time"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// needsRepair reports whether the log may have messages that were not delivered
// here, or another epoch. Only then is the log read. Caller holds mu.
func (t *topic) needsRepair() bool {
	return t.open && !t.closed && (t.epochMismatches > t.mismatchesResolved || t.last < t.knownHead)
}

// scheduleRepair schedules a repair if one is due and none is scheduled. It
// waits RepairWait first: most holes are two broadcasts in the wrong order, and
// fill by themselves. A mismatch of epochs is repaired at once. Caller holds
// mu.
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
		// The hole may have filled meanwhile.
		if t.needsRepair() && !t.repairing {
			t.repairing, t.repairCause = true, cause
			t.hub.enqueueRepair(t)
		}
	})
}

// A repairRequest is what a topic lacks when a repair begins. The page is read
// after the request is made. It answers the request, but nothing that is
// recorded after the request.
type repairRequest struct {
	after           message.Seq // delivered so far
	knownHead       message.Seq
	epochMismatches uint64
}

// repair reads one page from the log, on a goroutine of repairLoop, so that
// neither the append worker nor the broker's reader waits. A topic has at most
// one repair at a time. A repair shares no read with members that catch up: a
// read that began before knownHead was raised may not include that message.
func (t *topic) repair() {
	t.mu.Lock()
	if !t.needsRepair() {
		t.repairing = false
		t.mu.Unlock()
		return
	}
	request := repairRequest{t.last, t.knownHead, t.epochMismatches}
	t.hub.metrics.repairs.WithLabelValues(t.repairCause).Inc()
	t.mu.Unlock()
	page, err := t.fetch(t.hub.ctx, nil, request.after, t.hub.repairPageLimit)
	if err == nil {
		t.apply(request, page)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case err != nil:
		// repairing stays true, so that no second repair begins; this goroutine
		// is free for other topics.
		t.hub.logger.Debug("repair failed, will retry", "room", t.room, "error", err)
		t.repairBackoff = min(max(2*t.repairBackoff, minRetry), maxRetry)
		time.AfterFunc(t.repairBackoff, func() { t.hub.enqueueRepair(t) })
		return
	case t.needsRepair():
		t.hub.enqueueRepair(t) // behind the topics that are queued already
	default:
		t.repairing = false
	}
	t.repairBackoff = 0
}

// apply uses the page that was read for a repairRequest. Live messages may have
// arrived meanwhile: the page fills only what is still missing.
func (t *topic) apply(req repairRequest, p *encodedPage) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	t.mismatchesResolved = req.epochMismatches // later mismatches remain unresolved
	if p.Epoch == t.epoch && p.Head < req.knownHead {
		t.lowerKnownHead(req, p)
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
	t.fanOut(t.releaseBuffered(nil))
	t.wakeRepairWaiters() // even if nothing advanced: then the waiting members read the log themselves
}

// deliverPage delivers a page that reaches the head. Caller holds mu.
func (t *topic) deliverPage(p *encodedPage) {
	if p.First > t.last+1 {
		// The log deleted messages that were never delivered here. Members that
		// catch up get the gap with their own page.
		sendAll(t.outlets, protocol.Gap(t.room, t.epoch, t.last+1, p.First-1, protocol.GapTrimmed))
		t.last = p.First - 1
		t.resetRing()
	}
	var out []protocol.Frame
	for i := range p.frames {
		// Messages that arrived live since the read are delivered already.
		if p.frames[i].seq == t.last+1 {
			out = append(out, t.advance(&p.frames[i]))
		}
	}
	t.fanOut(out)
}

// skipToHead jumps to the head when more than one page is missing. Every member
// then catches up from the log at its own pace, with shared pages. So a repair
// is one read and one page of memory however far the topic is behind, and a
// slow member does not fill its outlet with an hour of messages. Caller holds
// mu.
func (t *topic) skipToHead(p *encodedPage) {
	from := catchUpProgress{position: position{t.last, t.epoch}, result: resumeLog}
	// All members are at the same position, so they begin with the same page.
	for _, m := range t.members {
		m.state, m.caughtUpTo = memberPending, from.position
		m.client.enqueueCatchUp(catchUpTask{member: m, catchUpProgress: from})
	}
	t.members, t.outlets = nil, nil
	t.last = max(t.last, p.Head)
	t.resetRing()
}

// restartAtHead continues at the log's head, in a new epoch or after the log
// was replaced by an older copy. Positions are invalid, and the members get a gap
// that says so. Caller holds mu.
func (t *topic) restartAtHead(p *encodedPage) {
	if t.epoch != p.Epoch {
		t.hub.logNewEpoch(p.Epoch)
		t.knownHead = p.Head // the known head of the old epoch means nothing here
	}
	t.epoch, t.last, t.first = p.Epoch, p.Head, p.First
	t.resetRing()
	t.pages = nil // members that use one keep it
	sendAll(t.outlets, protocol.Gap(t.room, p.Epoch, 1, p.Head, protocol.GapEpoch))
}

// lowerKnownHead gives up messages that the log does not have, though it was
// read in the same epoch after they were recorded. The log was replaced by an
// older copy without a new epoch, which only happens if its files are replaced
// under a running service. A higher knownHead that was recorded since stays.
// Caller holds mu.
func (t *topic) lowerKnownHead(req repairRequest, p *encodedPage) {
	t.hub.logger.Error("the log has lost messages without a new epoch: its files were replaced while the service ran",
		"room", t.room, "head", p.Head, "expected_head", req.knownHead)
	t.prune(req.knownHead)
	if t.knownHead == req.knownHead {
		t.knownHead = p.Head
	}
}
