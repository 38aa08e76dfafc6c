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
	c := &checker{report: newReport(), phaseStarts: h.phases(), ledgers: map[message.Room]*ledger{}, subscribers: map[subscriberKey]*subscriberCheck{}}
	for e := range h.all() {
		c.count(e)
		c.ledger(e.Room).apply(e, c.found)
	}
	for _, l := range c.rooms {
		l.finish(c.found)
	}
	for e := range h.all() {
		if e.Sub != "" {
			c.subscriber(e).apply(e)
		}
	}
	for _, f := range c.order {
		f.finish()
	}
	for _, l := range c.rooms {
		l.reportUndelivered(c.found)
	}
	c.report.Dropped = h.Counts().Dropped
	c.finish()
	return c.report
}

// A subscriberKey is a subscriber in a room.
type subscriberKey struct {
	sub  string
	room message.Room
}

// A checker is a judgement under way.
type checker struct {
	report      *Report
	phaseStarts []time.Duration
	ledgers     map[message.Room]*ledger
	rooms       []*ledger // as first heard of
	subscribers map[subscriberKey]*subscriberCheck
	order       []*subscriberCheck // as first heard of
}

// ledger returns a room's ledger, a new one where there was none.
func (c *checker) ledger(room message.Room) *ledger {
	l := c.ledgers[room]
	if l == nil {
		l = newLedger(room)
		c.ledgers[room] = l
		c.rooms = append(c.rooms, l)
	}
	return l
}

// subscriber returns who goes after the subscriber of an event, in the event's room:
// that of a message may be another than the subscriber joined.
func (c *checker) subscriber(e event) *subscriberCheck {
	key := subscriberKey{e.Sub, e.Room}
	f := c.subscribers[key]
	if f == nil {
		f = &subscriberCheck{sub: e.Sub, ledger: c.ledger(e.Room), report: c.report, found: c.found, phaseStarts: c.phaseStarts, pauses: make([]Milliseconds, len(c.phaseStarts)+1)}
		c.subscribers[key] = f
		c.order = append(c.order, f)
	}
	return f
}

// found counts a finding, and keeps the first ones.
func (c *checker) found(f Finding) {
	c.report.Faults[f.Fault]++
	if len(c.report.Findings) < MaxFindings {
		c.report.Findings = append(c.report.Findings, f)
	}
}

func (c *checker) count(e event) {
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
	case gapDeclared:
		r.Gaps++
		r.GapMessages += int(max(e.To-e.Seq+1, 0))
	}
}

// finish adds what can be told only at the end.
func (c *checker) finish() {
	r := c.report
	r.Rooms = len(c.rooms)
	for _, l := range c.rooms {
		r.Epochs = max(r.Epochs, len(l.epochSeenAt))
		r.Overtaken += l.overtaken()
		for _, m := range l.order {
			if len(m.acks) == 0 && len(m.deliveries) > 0 && slices.ContainsFunc(m.attempts, func(a publishAttempt) bool { return a.outcome == unknown }) {
				r.UnknownFound++
			}
		}
	}
	for _, f := range c.order {
		if !f.joined {
			continue
		}
		s := Subscriber{Name: f.sub, Room: f.ledger.room, Delivered: f.deliveries, WorstPause: slices.Max(f.pauses)}
		if len(c.phaseStarts) > 0 {
			s.Pauses = f.pauses
		}
		r.Subscribers = append(r.Subscribers, s)
		if s.WorstPause > r.WorstPause.WorstPause {
			r.WorstPause = s
		}
	}
	r.Verdict = r.verdict()
}
