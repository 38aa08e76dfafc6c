package hub

import (
	"maps"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// doubt makes the topic ask the log which epoch it is in. Caller holds mu.
func (t *topic) doubt() {
	t.suspect = true
	t.mend(causeEpoch)
}

// lacking says whether there is more, or other, than was delivered here.
// Caller holds mu.
func (t *topic) lacking() bool {
	return t.open && !t.closed && (t.suspect || t.last < t.target)
}

// mend plans a repair where one is due and none is planned: a hole has a
// moment to fill by itself. Caller holds mu.
func (t *topic) mend(cause string) {
	if !t.lacking() || t.repairing || t.waiting {
		return
	}
	wait := t.hub.cfg.RepairWait
	if t.suspect {
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

// repairLoop reads from the log until nothing is missing. One a topic runs at
// a time, and on its own goroutine: neither the committer nor the broker's
// reader waits for it.
func (t *topic) repairLoop(cause string) {
	for wait := firstRetry; ; {
		t.mu.Lock()
		if !t.lacking() || t.hub.ctx.Err() != nil {
			t.repairing = false
			t.mu.Unlock()
			return
		}
		after, target := t.last, t.target
		t.mu.Unlock()
		t.hub.metrics.repairs.WithLabelValues(cause).Inc()
		page, err := t.page(after)
		if err != nil {
			t.hub.log.Warn("repair failed, will try again", "room", t.room, "error", err)
			t.hub.sleep(wait)
			wait = min(2*wait, 2*time.Second)
			continue
		}
		wait = firstRetry
		t.apply(target, page)
	}
}

// apply takes a page that was read when target was known to exist.
func (t *topic) apply(target message.Seq, p *page) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.suspect = false
	switch {
	case p.Epoch != t.epoch:
		t.restart(p)
	case p.Head < target:
		t.disown(p, target)
	case p.More:
		t.skip(p)
	default:
		t.fill(p)
	}
	maps.DeleteFunc(t.hold, func(seq message.Seq, e entry) bool {
		return seq <= t.last || e.epoch != t.epoch
	})
	t.fanOut(t.unhold(nil))
	t.wake()
}

// fill delivers a page that reaches the head. Live messages may have come
// since it was read. Caller holds mu.
func (t *topic) fill(p *page) {
	if p.First > t.last+1 {
		// The log let go of what was never delivered here: say so.
		sendAll(t.outlets, protocol.Gap(t.room, t.epoch, t.last+1, p.First-1, protocol.GapTrimmed))
		t.last, t.first = p.First-1, p.First
		t.ring.reset()
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
		m.state = memberPending
		t.hub.spawn(func() { t.catchUp(m, from) })
	}
	t.members, t.outlets = nil, nil
	t.last, t.first = max(t.last, p.Head), p.First
	t.ring.reset()
}

// restart begins a new epoch: positions are void, and the members are told.
// Caller holds mu.
func (t *topic) restart(p *page) {
	t.hub.log.Warn("the log has a new epoch", "room", t.room, "epoch", p.Epoch, "head", p.Head)
	t.epoch, t.last, t.first, t.target = p.Epoch, p.Head, p.First, p.Head
	t.ring.reset()
	sendAll(t.outlets, protocol.Gap(t.room, p.Epoch, 1, p.Head, protocol.GapEpoch))
}

// disown gives up a position that the log does not have in this epoch. It went
// back without a new epoch, which only a copy of its files under a running
// service can do. Caller holds mu.
func (t *topic) disown(p *page, target message.Seq) {
	t.hub.log.Error("the log is behind what was delivered, and its epoch is the same",
		"room", t.room, "head", p.Head, "known", target)
	maps.DeleteFunc(t.hold, func(seq message.Seq, _ entry) bool { return seq <= target })
	t.target = t.last
}
