package load

import (
	"fmt"
	"slices"
	"time"

	"switchyard/internal/message"
)

// A span is a range of seqs of an epoch, both ends included.
type span struct {
	epoch    message.Epoch
	from, to message.Seq
}

// has reports whether a position is in the span.
func (s span) has(at position) bool { return s.epoch == at.epoch && s.from <= at.seq && at.seq <= s.to }

// A subscriberCheck follows one subscriber through one room, event by event.
type subscriberCheck struct {
	sub    string
	ledger *ledger
	report *Report
	found  func(Finding)

	joined   bool      // the subscriber has joined at least once
	isMember bool      // it has joined, and not left since
	at       position  // of the last message or gap
	missing  []span    // skipped without a gap, and not delivered so far
	declared []span    // before the start, or in a gap
	required *position // what it must have reached, if an ended event says so

	joinedAt, lastDeliveryAt time.Duration
	deliveries               int
	pauses                   []Milliseconds  // the longest of each phase
	phaseStarts              []time.Duration // of the phases that are still to come
	phase                    int
}

// apply applies one event. The order of the cases matters: a delivery before the
// first join is a fault, and one after the end of a membership is ignored.
func (c *subscriberCheck) apply(e event) {
	at := position{e.Epoch, e.Seq}
	switch {
	case e.Kind == joined:
		// The subscriber starts at a new position, and expects nothing up to it.
		// Messages that it skipped before stay missing.
		c.joined, c.isMember, c.required, c.at = true, true, nil, at
		c.declared = append(c.declared, span{e.Epoch, 0, e.Seq})
		c.joinedAt, c.lastDeliveryAt = e.At, e.At
	case !c.joined && (e.Kind == delivered || e.Kind == gapDeclared):
		c.addFinding(WrongRoom, at, e.ID, fmt.Sprintf("%s got %d there without having joined", c.sub, e.Seq))
	case !c.isMember: // its handler may still be running when it leaves
	case e.Kind == rejoined:
		if c.at.seq == 0 { // before the first message all epochs are equal
			c.at.epoch = e.Epoch
		}
	case e.Kind == delivered:
		c.deliver(e, at)
	case e.Kind == gapDeclared:
		c.applyGap(e)
	case e.Kind == skipped && e.Reason == "epoch":
		c.addFinding(SilentEpoch, at, e.ID, fmt.Sprintf("%s was sent %d of epoch %s right after %d of another", c.sub, e.Seq, e.Epoch, e.To))
	case e.Kind == skipped:
		c.addFinding(SilentGap, at, e.ID, fmt.Sprintf("%s was sent %d right after %d", c.sub, e.Seq, e.To))
	case e.Kind == repeated:
		c.addFinding(Doubled, at, e.ID, fmt.Sprintf("%s was sent %d again after %d", c.sub, e.Seq, e.To))
	case e.Kind == left:
		c.isMember = false
	case e.Kind == ended:
		c.required = &at
	}
}

// deliver compares the position of a message with the subscriber's.
func (c *subscriberCheck) deliver(e event, at position) {
	c.deliveries++
	c.measurePause(e) // before the position moves
	if at.epoch != c.at.epoch {
		// No gap announced the epoch, which is right only before the first message.
		c.moveTo(position{at.epoch, at.seq - 1}, at.seq == 1 && c.at.seq == 0)
	}
	switch next := c.at.seq + 1; {
	case at.seq == next:
		c.at = at
	case at.seq > next:
		// The messages between are lost or late; later events decide.
		c.missing = append(c.missing, span{at.epoch, next, at.seq - 1})
		c.at = at
	case c.fillGap(at):
		c.addFinding(Reordered, at, e.ID, fmt.Sprintf("%s got %s as %d after %d", c.sub, e.ID, at.seq, c.at.seq))
	case slices.ContainsFunc(c.declared, func(s span) bool { return s.has(at) }):
		c.addFinding(Reordered, at, e.ID, fmt.Sprintf("%s got %s as %d, from before its beginning or out of a declared gap", c.sub, e.ID, at.seq))
	default:
		c.addFinding(Doubled, at, e.ID, fmt.Sprintf("%s got %s as %d again, after %d", c.sub, e.ID, at.seq, c.at.seq))
	}
}

// fillGap reports whether a position was missing, and removes it from missing.
func (c *subscriberCheck) fillGap(at position) bool {
	i := slices.IndexFunc(c.missing, func(s span) bool { return s.has(at) })
	if i < 0 {
		return false
	}
	s := c.missing[i]
	c.missing = slices.Delete(c.missing, i, i+1)
	if at.seq > s.from {
		c.missing = append(c.missing, span{s.epoch, s.from, at.seq - 1})
	}
	if at.seq < s.to {
		c.missing = append(c.missing, span{s.epoch, at.seq + 1, s.to})
	}
	return true
}

// applyGap moves the position over a declared gap. If the gap begins after the
// next seq, the seqs before it are missing.
func (c *subscriberCheck) applyGap(e event) {
	switch {
	case e.Reason == "epoch":
		// The epoch may be the same: a position above the head is invalid too.
		c.moveTo(position{e.Epoch, e.To}, true)
	case e.Epoch != c.at.epoch:
		// As for a message: the gap must begin where the subscriber's position is.
		c.moveTo(position{e.Epoch, e.To}, e.Seq == 1 && c.at.seq == 0)
	case e.To > c.at.seq:
		if e.Seq > c.at.seq+1 {
			c.missing = append(c.missing, span{e.Epoch, c.at.seq + 1, e.Seq - 1})
		}
		c.declared = append(c.declared, span{e.Epoch, e.Seq, e.To})
		c.at.seq = e.To
	}
}

// moveTo moves the subscriber to another epoch, or back. It then expects nothing
// more of the old epoch.
func (c *subscriberCheck) moveTo(at position, announced bool) {
	if !announced {
		c.addFinding(SilentEpoch, at, "", fmt.Sprintf("%s was moved from epoch %s at %d to epoch %s at %d without a gap",
			c.sub, c.at.epoch, c.at.seq, at.epoch, at.seq))
	}
	c.declared = append(c.declared, span{at.epoch, 0, at.seq})
	c.at = at
}

// measurePause measures the time since the last delivery while this message was
// acked, and how long the message took.
func (c *subscriberCheck) measurePause(e event) {
	m := c.ledger.messages[messageKey{e.User, e.ID}]
	if len(m.attempts) > 0 && m.began >= c.joinedAt {
		c.report.PublishToDelivery.Add(e.At - m.began)
		if len(m.acks) > 0 {
			c.report.AckToDelivery.Add(e.At - m.ackedAt)
		}
	}
	if len(m.acks) > 0 {
		pause := e.At - max(c.lastDeliveryAt, m.ackedAt)
		for len(c.phaseStarts) > 0 && e.At >= c.phaseStarts[0] {
			c.phaseStarts, c.phase = c.phaseStarts[1:], c.phase+1
		}
		c.pauses[c.phase] = max(c.pauses[c.phase], Milliseconds(pause))
	}
	c.lastDeliveryAt = e.At
}

// finish reports the messages that the subscriber never got.
func (c *subscriberCheck) finish() {
	for _, s := range c.missing {
		c.reportLost(s, "never got it")
	}
	if !c.isMember {
		return
	}
	// The target is what the subscriber must have reached: the required position,
	// otherwise the head of the latest epoch. missed means that it never reached
	// the target's epoch, which is a newer one.
	target, missed := c.ledger.latestHead(), false
	if c.required != nil {
		target = *c.required
		missed = target.epoch != c.at.epoch && !c.ledger.newer(c.at.epoch, target.epoch)
	} else {
		missed = c.ledger.newer(target.epoch, c.at.epoch)
	}
	if missed {
		c.addFinding(SilentEpoch, target, "", fmt.Sprintf("%s never reached epoch %s", c.sub, target.epoch))
		c.reportLost(span{target.epoch, 1, target.seq}, "never got it")
	}
	if target.epoch != c.at.epoch {
		// Its position is still valid, so it must reach the head of its own epoch.
		target = c.ledger.head(c.at.epoch)
	}
	c.reportLost(span{target.epoch, c.at.seq + 1, target.seq}, fmt.Sprintf("never got beyond %d", c.at.seq))
}

// reportLost reports the messages of a span one by one, and the span itself if
// some of its seqs are unknown.
func (c *subscriberCheck) reportLost(s span, how string) {
	if s.from > s.to {
		return
	}
	seqs := c.ledger.between(s.epoch, s.from, s.to)
	for _, seq := range seqs {
		m := c.ledger.byPosition[position{s.epoch, seq}]
		m.missed++
		was := "delivered to others"
		if len(m.acks) > 0 {
			was = "acked"
		}
		c.addFinding(Lost, position{s.epoch, seq}, m.id, fmt.Sprintf("%s was %s as %d, and %s %s", m, was, seq, c.sub, how))
	}
	if message.Seq(len(seqs)) < s.to-s.from+1 {
		c.addFinding(SilentGap, position{s.epoch, s.from}, "", fmt.Sprintf("%s missed %d to %d without a gap", c.sub, s.from, s.to))
	}
}

// addFinding reports a fault of this subscriber.
func (c *subscriberCheck) addFinding(fault Fault, at position, id, text string) {
	c.found(Finding{
		Fault: fault, Room: c.ledger.room, Epoch: at.epoch, Seq: at.seq, ID: id, Subscriber: c.sub,
		Text: fmt.Sprintf("room %s: %s", c.ledger.room, text),
	})
}
