package load

import (
	"fmt"
	"slices"
	"time"

	"switchyard/internal/message"
)

// A span is a range of seqs, both ends included.
type span struct {
	epoch    message.Epoch
	from, to message.Seq
}

func (s span) has(at position) bool { return s.epoch == at.epoch && s.from <= at.seq && at.seq <= s.to }

// A subscriberCheck goes after one subscriber in one room, event by event.
type subscriberCheck struct {
	sub    string
	ledger *ledger
	report *Report
	found  func(Finding)

	joined   bool     // ever
	isMember bool     // and neither left nor began anew
	at       position // the last one delivered or declared
	missing  []span   // skipped so far
	declared []span   // before its beginning, or in a gap
	required *position

	joinedAt, lastDeliveryAt time.Duration
	deliveries               int
	pauses                   []Milliseconds  // the longest of each phase
	phaseStarts              []time.Duration // that are still to come
	phase                    int
}

// apply goes one event further. The order of the cases matters: who never joined
// is a stranger, who left is not followed.
func (f *subscriberCheck) apply(e event) {
	at := position{e.Epoch, e.Seq}
	switch {
	case e.Kind == joined:
		// It begins anew, from a position of its own: what it skipped before stays
		// skipped, what lies up to the position is not expected.
		f.joined, f.isMember, f.required, f.at = true, true, nil, at
		f.declared = append(f.declared, span{e.Epoch, 0, e.Seq})
		f.joinedAt, f.lastDeliveryAt = e.At, e.At
	case !f.joined && (e.Kind == delivered || e.Kind == gapDeclared):
		f.addFinding(WrongRoom, at, e.ID, fmt.Sprintf("%s got %d there without having joined", f.sub, e.Seq))
	case !f.isMember: // its handler may be in its last call while it leaves
	case e.Kind == rejoined:
		if f.at.seq == 0 { // before the first is the same place in every epoch
			f.at.epoch = e.Epoch
		}
	case e.Kind == delivered:
		f.deliver(e, at)
	case e.Kind == gapDeclared:
		f.applyGap(e)
	case e.Kind == skipped && e.Reason == "epoch":
		f.addFinding(SilentEpoch, at, e.ID, fmt.Sprintf("%s was sent %d of epoch %s right after %d of another", f.sub, e.Seq, e.Epoch, e.To))
	case e.Kind == skipped:
		f.addFinding(SilentGap, at, e.ID, fmt.Sprintf("%s was sent %d right after %d", f.sub, e.Seq, e.To))
	case e.Kind == repeated:
		f.addFinding(Doubled, at, e.ID, fmt.Sprintf("%s was sent %d again after %d", f.sub, e.Seq, e.To))
	case e.Kind == left:
		f.isMember = false
	case e.Kind == ended:
		f.required = &at
	}
}

// deliver compares a message with the position.
func (f *subscriberCheck) deliver(e event, at position) {
	f.deliveries++
	f.measurePause(e) // before the position moves
	if at.epoch != f.at.epoch {
		// No gap came before it. That is fine from the first message on.
		f.moveTo(position{at.epoch, at.seq - 1}, at.seq == 1 && f.at.seq == 0)
	}
	switch next := f.at.seq + 1; {
	case at.seq == next:
		f.at = at
	case at.seq > next:
		// Lost or late: what comes next tells, or the end does.
		f.missing = append(f.missing, span{at.epoch, next, at.seq - 1})
		f.at = at
	case f.fillGap(at):
		f.addFinding(Reordered, at, e.ID, fmt.Sprintf("%s got %s as %d after %d", f.sub, e.ID, at.seq, f.at.seq))
	case slices.ContainsFunc(f.declared, func(s span) bool { return s.has(at) }):
		f.addFinding(Reordered, at, e.ID, fmt.Sprintf("%s got %s as %d, from before its beginning or out of a declared gap", f.sub, e.ID, at.seq))
	default:
		f.addFinding(Doubled, at, e.ID, fmt.Sprintf("%s got %s as %d again, after %d", f.sub, e.ID, at.seq, f.at.seq))
	}
}

// fillGap says whether a seq was skipped before, and forgets that.
func (f *subscriberCheck) fillGap(at position) bool {
	i := slices.IndexFunc(f.missing, func(s span) bool { return s.has(at) })
	if i < 0 {
		return false
	}
	s := f.missing[i]
	f.missing = slices.Delete(f.missing, i, i+1)
	if at.seq > s.from {
		f.missing = append(f.missing, span{s.epoch, s.from, at.seq - 1})
	}
	if at.seq < s.to {
		f.missing = append(f.missing, span{s.epoch, at.seq + 1, s.to})
	}
	return true
}

// applyGap moves the position over what the service declared. A range that begins
// further on than the next seq leaves something undeclared.
func (f *subscriberCheck) applyGap(e event) {
	switch {
	case e.Reason == "epoch":
		// Of the same epoch, too: a position above the head is void.
		f.moveTo(position{e.Epoch, e.To}, true)
	case e.Epoch != f.at.epoch:
		f.moveTo(position{e.Epoch, e.To}, f.at.seq == 0)
	case e.To > f.at.seq:
		if e.Seq > f.at.seq+1 {
			f.missing = append(f.missing, span{e.Epoch, f.at.seq + 1, e.Seq - 1})
		}
		f.declared = append(f.declared, span{e.Epoch, e.Seq, e.To})
		f.at.seq = e.To
	}
}

// moveTo voids the position. What lies beyond it in the old epoch need not come.
func (f *subscriberCheck) moveTo(at position, announced bool) {
	if !announced {
		f.addFinding(SilentEpoch, at, "", fmt.Sprintf("%s was moved from epoch %s at %d to epoch %s at %d without a word",
			f.sub, f.at.epoch, f.at.seq, at.epoch, at.seq))
	}
	f.declared = append(f.declared, span{at.epoch, 0, at.seq})
	f.at = at
}

// measurePause measures how long the subscriber heard nothing although something was
// acked, and how long this message took.
func (f *subscriberCheck) measurePause(e event) {
	m := f.ledger.messages[messageKey{e.User, e.ID}]
	if len(m.attempts) > 0 && m.began >= f.joinedAt {
		f.report.PublishToDelivery.Add(e.At - m.began)
		if len(m.acks) > 0 {
			f.report.AckToDelivery.Add(e.At - m.ackedAt)
		}
	}
	if len(m.acks) > 0 {
		pause := e.At - max(f.lastDeliveryAt, m.ackedAt)
		for len(f.phaseStarts) > 0 && e.At >= f.phaseStarts[0] {
			f.phaseStarts, f.phase = f.phaseStarts[1:], f.phase+1
		}
		f.pauses[f.phase] = max(f.pauses[f.phase], Milliseconds(pause))
	}
	f.lastDeliveryAt = e.At
}

// finish names what never came.
func (f *subscriberCheck) finish() {
	for _, s := range f.missing {
		f.reportLost(s, "never got it")
	}
	if !f.isMember {
		return
	}
	// How far it had to come: as it was told, else as far as anybody knows. Missed
	// says that it is in an older epoch than that.
	target, missed := f.ledger.latestHead(), false
	if f.required != nil {
		target = *f.required
		missed = target.epoch != f.at.epoch && !f.ledger.newer(f.at.epoch, target.epoch)
	} else {
		missed = f.ledger.newer(target.epoch, f.at.epoch)
	}
	if missed {
		f.addFinding(SilentEpoch, target, "", fmt.Sprintf("%s never heard of epoch %s", f.sub, target.epoch))
		f.reportLost(span{target.epoch, 1, target.seq}, "never got it")
	}
	if target.epoch != f.at.epoch {
		// Nobody voided its position, so that the rest of its own epoch counts.
		target = f.ledger.head(f.at.epoch)
	}
	f.reportLost(span{target.epoch, f.at.seq + 1, target.seq}, fmt.Sprintf("never got beyond %d", f.at.seq))
}

// reportLost names the messages of a span one by one, and the span itself where
// nobody knows what it holds.
func (f *subscriberCheck) reportLost(s span, how string) {
	if s.from > s.to {
		return
	}
	seqs := f.ledger.between(s.epoch, s.from, s.to)
	for _, seq := range seqs {
		m := f.ledger.byPosition[position{s.epoch, seq}]
		m.missed++
		was := "delivered to others"
		if len(m.acks) > 0 {
			was = "acked"
		}
		f.addFinding(Lost, position{s.epoch, seq}, m.id, fmt.Sprintf("%s was %s as %d, and %s %s", m, was, seq, f.sub, how))
	}
	if message.Seq(len(seqs)) < s.to-s.from+1 {
		f.addFinding(SilentGap, position{s.epoch, s.from}, "", fmt.Sprintf("%s was not told what became of %d to %d", f.sub, s.from, s.to))
	}
}

func (f *subscriberCheck) addFinding(fault Fault, at position, id, text string) {
	f.found(Finding{
		Fault: fault, Room: f.ledger.room, Epoch: at.epoch, Seq: at.seq, ID: id, Subscriber: f.sub,
		Text: fmt.Sprintf("room %s: %s", f.ledger.room, text),
	})
}
