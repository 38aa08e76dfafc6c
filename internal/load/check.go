package load

import (
	"slices"
	"time"

	"switchyard/internal/message"
)

// MaxFindings is how many findings a report spells out; all are counted.
const MaxFindings = 50

// Check judges a history. It is a pure function: the same history gets the same
// report, now or from a file. Subscribers are held to all that anybody was told
// of their rooms, from where they joined to where they left; those that did not
// leave, to the end.
func Check(h *History) *Report {
	// First what is known of each room, from everybody; then each subscriber
	// against that; then the acks that nobody bears out.
	c := &check{report: newReport(), marks: h.phases(), ledgers: map[message.Room]*ledger{}, follows: map[seat]*follow{}}
	for e := range h.all() {
		c.count(e)
		c.ledger(e.Room).hear(e, c.found)
	}
	for _, l := range c.rooms {
		l.close(c.found)
	}
	for e := range h.all() {
		if e.Sub != "" {
			c.follow(e).take(e)
		}
	}
	for _, f := range c.order {
		f.close()
	}
	for _, l := range c.rooms {
		l.nobody(c.found)
	}
	c.report.Dropped = h.Counts().Dropped
	c.sum()
	return c.report
}

// A seat is a subscriber in a room.
type seat struct {
	sub  string
	room message.Room
}

// A check is a judgement under way.
type check struct {
	report  *Report
	marks   []time.Duration
	ledgers map[message.Room]*ledger
	rooms   []*ledger // as first heard of
	follows map[seat]*follow
	order   []*follow // as first heard of
}

// ledger returns a room's ledger, a new one where there was none.
func (c *check) ledger(room message.Room) *ledger {
	l := c.ledgers[room]
	if l == nil {
		l = newLedger(room)
		c.ledgers[room] = l
		c.rooms = append(c.rooms, l)
	}
	return l
}

// follow returns who goes after the subscriber of an event, in the event's room:
// that of a message may be another than the subscriber joined.
func (c *check) follow(e event) *follow {
	key := seat{e.Sub, e.Room}
	f := c.follows[key]
	if f == nil {
		f = &follow{sub: e.Sub, ledger: c.ledger(e.Room), report: c.report, found: c.found, marks: c.marks, pauses: make([]Milliseconds, len(c.marks)+1)}
		c.follows[key] = f
		c.order = append(c.order, f)
	}
	return f
}

// found counts a finding, and keeps the first ones.
func (c *check) found(f Finding) {
	c.report.Faults[f.Fault]++
	if len(c.report.Findings) < MaxFindings {
		c.report.Findings = append(c.report.Findings, f)
	}
}

func (c *check) count(e event) {
	r := c.report
	r.Took = max(r.Took, Milliseconds(e.At))
	switch e.Kind {
	case published:
		r.Published++
	case acked:
		r.Acked++
		if e.Duplicate {
			r.Duplicates++
		}
		if m := c.ledger(e.Room).messages[messageKey{e.User, e.ID}]; m != nil {
			r.PublishToAck.Add(e.At - m.began)
		}
	case refused:
		r.Refused[e.Reason]++
	case unknown:
		r.Unknown++
	case delivered:
		r.Delivered++
	case declared:
		r.Gaps++
		r.GapMessages += int(max(e.To-e.Seq+1, 0))
	}
}

// sum adds what can be told only at the end.
func (c *check) sum() {
	r := c.report
	r.Rooms = len(c.rooms)
	for _, l := range c.rooms {
		r.Epochs = max(r.Epochs, len(l.heard))
		r.Overtaken += l.overtaken()
		for _, m := range l.order {
			if len(m.acks) == 0 && len(m.copies) > 0 && slices.ContainsFunc(m.attempts, func(a attempt) bool { return a.outcome == unknown }) {
				r.UnknownFound++
			}
		}
	}
	for _, f := range c.order {
		if !f.joined {
			continue
		}
		s := Subscriber{Name: f.sub, Room: f.ledger.room, Delivered: f.deliveries, WorstPause: slices.Max(f.pauses)}
		if len(c.marks) > 0 {
			s.Pauses = f.pauses
		}
		r.Subscribers = append(r.Subscribers, s)
		if s.WorstPause > r.WorstPause.WorstPause {
			r.WorstPause = s
		}
	}
	r.Verdict = r.verdict()
}
