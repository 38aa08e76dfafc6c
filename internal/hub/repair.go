package hub

import (
	"time"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// lacking says whether there is more, or other, than was delivered here.
// Caller holds mu.
func (t *topic) lacking() bool {
	return t.open && !t.closed && (t.doubts > t.settled || t.last < t.target)
}

// mend plans a repair where one is due and none is planned: a hole has a
// moment to fill by itself. Caller holds mu.
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
		if t.lacking() && !t.repairing {
			t.repairing = true
			t.hub.spawn(func() { t.repairLoop(cause) })
		}
	})
}

// A want is what a repair was begun for: what of the topic it can settle.
type want struct {
	after  message.Seq // what was delivered
	target message.Seq
	doubts uint64
}

// repairLoop reads from the log until nothing is missing. One a topic runs at
// a time, and on its own goroutine: neither the committer nor the broker's
// reader waits for it. It shares no read with joiners: one begun before the
// target was known would not have it, and say nothing about it.
func (t *topic) repairLoop(cause string) {
	for wait := firstRetry; ; {
		t.mu.Lock()
		if !t.lacking() || t.hub.ctx.Err() != nil {
			t.repairing = false
			t.mu.Unlock()
			return
		}
		w := want{t.last, t.target, t.doubts}
		t.mu.Unlock()
		t.hub.metrics.repairs.WithLabelValues(cause).Inc()
		page, err := t.fetch(w.after)
		if err != nil {
			t.hub.log.Debug("repair failed, will try again", "room", t.room, "error", err)
			t.hub.sleep(wait)
			wait = min(2*wait, 2*time.Second)
			continue
		}
		wait = firstRetry
		t.apply(w, page)
	}
}

// apply takes a page that was read for a want.
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
	t.hold.prune(t.last, t.epoch)
	t.fanOut(t.unhold(nil))
	t.wake()
}

// fill delivers a page that reaches the head. Live messages may have come
// since it was read. Caller holds mu.
func (t *topic) fill(p *page) {
	if p.First > t.last+1 {
		// The log let go of what was never delivered here: say so.
		sendAll(t.outlets, protocol.Gap(t.room, t.epoch, t.last+1, p.First-1, protocol.GapTrimmed))
		t.last = p.First - 1
		t.forgetRing()
	}
	var out []protocol.Frame
	for i := range p.entries {
		if p.entries[i].seq == t.last+1 {
			out = append(out, t.advance(&p.entries[i]))
		}
	}
	t.fanOut(out)
	t.hub.observeDelivery(p.entries)
}

// skip jumps to the head when more is missing than memory should carry: every
// member then catches up from the log at its own pace, sharing the pages.
// Caller holds mu.
func (t *topic) skip(p *page) {
	from := progress{seq: t.last, epoch: t.epoch, result: resumeLog}
	for _, m := range t.members {
		m.state, m.reached = memberPending, place{from.seq, from.epoch}
		t.hub.spawn(func() { t.catchUp(m, from) })
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
		t.hub.log.Warn("the log has a new epoch", "room", t.room, "epoch", p.Epoch, "head", p.Head)
		t.target = p.Head
	}
	t.epoch, t.last, t.first = p.Epoch, p.Head, p.First
	t.forgetRing()
	sendAll(t.outlets, protocol.Gap(t.room, p.Epoch, 1, p.Head, protocol.GapEpoch))
}

// disown gives up positions that the log does not have in this epoch, though it
// was read after they were known. It went back without a new epoch, which only
// a copy of its files under a running service can do. What became known since
// stays wanted. Caller holds mu.
func (t *topic) disown(w want, p *page) {
	t.hub.log.Error("the log is behind what was delivered, and its epoch is the same",
		"room", t.room, "head", p.Head, "known", w.target)
	t.hold.prune(w.target, t.epoch)
	if t.target == w.target {
		t.target = p.Head
	}
}
