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

// A follow goes after one subscriber in one room, event by event.
type follow struct {
	sub    string
	ledger *ledger
	report *Report
	found  func(Finding)

	joined   bool     // ever
	present  bool     // and neither left nor began anew
	at       position // the last one delivered or declared
	missing  []span   // skipped so far
	declared []span   // before its beginning, or in a gap
	required *position

	beganAt, heardAt time.Duration
	deliveries       int
	pauses           []Milliseconds  // the longest of each phase
	marks            []time.Duration // that are still to come
	phase            int
}

// take goes one event further. The order of the cases matters: who never joined
// is a stranger, who left is not followed.
func (f *follow) take(e event) {
	at := position{e.Epoch, e.Seq}
	switch {
	case e.Kind == joined:
		// It begins anew, from a position of its own: what it skipped before stays
		// skipped, what lies up to the position is not expected.
		f.joined, f.present, f.required, f.at = true, true, nil, at
		f.declared = append(f.declared, span{e.Epoch, 0, e.Seq})
		f.beganAt, f.heardAt = e.At, e.At
	case !f.joined && (e.Kind == delivered || e.Kind == declared):
		f.tell(WrongRoom, at, e.ID, fmt.Sprintf("%s got %d there without having joined", f.sub, e.Seq))
	case !f.present: // its handler may be in its last call while it leaves
	case e.Kind == rejoined:
		if f.at.seq == 0 { // before the first is the same place in every epoch
			f.at.epoch = e.Epoch
		}
	case e.Kind == delivered:
		f.deliver(e, at)
	case e.Kind == declared:
		f.gap(e)
	case e.Kind == skipped && e.Reason == "epoch":
		f.tell(SilentEpoch, at, e.ID, fmt.Sprintf("%s was sent %d of epoch %s right after %d of another", f.sub, e.Seq, e.Epoch, e.To))
	case e.Kind == skipped:
		f.tell(SilentGap, at, e.ID, fmt.Sprintf("%s was sent %d right after %d", f.sub, e.Seq, e.To))
	case e.Kind == repeated:
		f.tell(Doubled, at, e.ID, fmt.Sprintf("%s was sent %d again after %d", f.sub, e.Seq, e.To))
	case e.Kind == left:
		f.present = false
	case e.Kind == ended:
		f.required = &at
	}
}

// deliver compares a message with the position.
func (f *follow) deliver(e event, at position) {
	f.deliveries++
	f.time(e) // before the position moves
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
	case f.fill(at):
		f.tell(Reordered, at, e.ID, fmt.Sprintf("%s got %s as %d after %d", f.sub, e.ID, at.seq, f.at.seq))
	case slices.ContainsFunc(f.declared, func(s span) bool { return s.has(at) }):
		f.tell(Reordered, at, e.ID, fmt.Sprintf("%s got %s as %d, from before its beginning or out of a declared gap", f.sub, e.ID, at.seq))
	default:
		f.tell(Doubled, at, e.ID, fmt.Sprintf("%s got %s as %d again, after %d", f.sub, e.ID, at.seq, f.at.seq))
	}
}

// fill says whether a seq was skipped before, and forgets that.
func (f *follow) fill(at position) bool {
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

// gap moves the position over what the service declared. A range that begins
// further on than the next seq leaves something undeclared.
func (f *follow) gap(e event) {
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
func (f *follow) moveTo(at position, told bool) {
	if !told {
		f.tell(SilentEpoch, at, "", fmt.Sprintf("%s was moved from epoch %s at %d to epoch %s at %d without a word",
			f.sub, f.at.epoch, f.at.seq, at.epoch, at.seq))
	}
	f.declared = append(f.declared, span{at.epoch, 0, at.seq})
	f.at = at
}

// time measures how long the subscriber heard nothing although something was
// acked, and how long this message took.
func (f *follow) time(e event) {
	m := f.ledger.messages[messageKey{e.User, e.ID}]
	if len(m.attempts) > 0 && m.began >= f.beganAt {
		f.report.PublishToDelivery.Add(e.At - m.began)
		if len(m.acks) > 0 {
			f.report.AckToDelivery.Add(e.At - m.ackedAt)
		}
	}
	if len(m.acks) > 0 {
		pause := e.At - max(f.heardAt, m.ackedAt)
		for len(f.marks) > 0 && e.At >= f.marks[0] {
			f.marks, f.phase = f.marks[1:], f.phase+1
		}
		f.pauses[f.phase] = max(f.pauses[f.phase], Milliseconds(pause))
	}
	f.heardAt = e.At
}

// close names what never came.
func (f *follow) close() {
	for _, s := range f.missing {
		f.lost(s, "never got it")
	}
	if !f.present {
		return
	}
	// How far it had to come: as it was told, else as far as anybody knows. Missed
	// says that it is in an older epoch than that.
	target, missed := f.ledger.last(), false
	if f.required != nil {
		target = *f.required
		missed = target.epoch != f.at.epoch && !f.ledger.newer(f.at.epoch, target.epoch)
	} else {
		missed = f.ledger.newer(target.epoch, f.at.epoch)
	}
	if missed {
		f.tell(SilentEpoch, target, "", fmt.Sprintf("%s never heard of epoch %s", f.sub, target.epoch))
		f.lost(span{target.epoch, 1, target.seq}, "never got it")
	}
	if target.epoch != f.at.epoch {
		// Nobody voided its position, so that the rest of its own epoch counts.
		target = f.ledger.head(f.at.epoch)
	}
	f.lost(span{target.epoch, f.at.seq + 1, target.seq}, fmt.Sprintf("never got beyond %d", f.at.seq))
}

// lost names the messages of a span one by one, and the span itself where
// nobody knows what it holds.
func (f *follow) lost(s span, how string) {
	if s.from > s.to {
		return
	}
	seqs := f.ledger.between(s.epoch, s.from, s.to)
	for _, seq := range seqs {
		m := f.ledger.known[position{s.epoch, seq}]
		m.missed++
		was := "delivered to others"
		if len(m.acks) > 0 {
			was = "acked"
		}
		f.tell(Lost, position{s.epoch, seq}, m.id, fmt.Sprintf("%s was %s as %d, and %s %s", m, was, seq, f.sub, how))
	}
	if message.Seq(len(seqs)) < s.to-s.from+1 {
		f.tell(SilentGap, position{s.epoch, s.from}, "", fmt.Sprintf("%s was not told what became of %d to %d", f.sub, s.from, s.to))
	}
}

func (f *follow) tell(fault Fault, at position, id, text string) {
	f.found(Finding{
		Fault: fault, Room: f.ledger.room, Epoch: at.epoch, Seq: at.seq, ID: id, Subscriber: f.sub,
		Text: fmt.Sprintf("room %s: %s", f.ledger.room, text),
	})
}
