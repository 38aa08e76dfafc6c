package load

import (
	"slices"
	"time"

	"switchyard/internal/message"
)

// MaxFindings bounds the findings that a report lists; it counts all of them.
const MaxFindings = 50

// Check checks a history and reports every broken promise. It is a pure
// function: the same history gets the same report, now or from a file. A
// subscriber must get everything that any ack or delivery names in its room, from
// where it joined to where it left, or to the end.
func Check(h *History) *Report {
	// First the ledger of each room, from all events; then each subscriber against
	// it; then the acked messages that no subscriber got.
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
	for _, s := range c.order {
		s.finish()
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

// A checker holds the state of one Check.
type checker struct {
	report      *Report
	phaseStarts []time.Duration
	ledgers     map[message.Room]*ledger
	rooms       []*ledger // in order of first appearance
	subscribers map[subscriberKey]*subscriberCheck
	order       []*subscriberCheck // in order of first appearance
}

// ledger returns a room's ledger, and makes it if there is none.
func (c *checker) ledger(room message.Room) *ledger {
	l := c.ledgers[room]
	if l == nil {
		l = newLedger(room)
		c.ledgers[room] = l
		c.rooms = append(c.rooms, l)
	}
	return l
}

// subscriber returns the check of an event's subscriber in the event's room. The
// room of a delivery may be another one than the subscriber joined.
func (c *checker) subscriber(e event) *subscriberCheck {
	key := subscriberKey{e.Sub, e.Room}
	s := c.subscribers[key]
	if s == nil {
		s = &subscriberCheck{
			sub: e.Sub, ledger: c.ledger(e.Room), report: c.report, found: c.found,
			phaseStarts: c.phaseStarts, pauses: make([]Milliseconds, len(c.phaseStarts)+1),
		}
		c.subscribers[key] = s
		c.order = append(c.order, s)
	}
	return s
}

// found counts a finding, and lists the first ones.
func (c *checker) found(f Finding) {
	c.report.Faults[f.Fault]++
	if len(c.report.Findings) < MaxFindings {
		c.report.Findings = append(c.report.Findings, f)
	}
}

// count updates the counts of the report, and the latencies of acks.
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

// finish adds the parts of the report that need the whole history.
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
	for _, check := range c.order {
		if !check.joined {
			continue
		}
		s := Subscriber{Name: check.sub, Room: check.ledger.room, Delivered: check.deliveries, WorstPause: slices.Max(check.pauses)}
		if len(c.phaseStarts) > 0 {
			s.Pauses = check.pauses
		}
		r.Subscribers = append(r.Subscribers, s)
		if s.WorstPause > r.WorstPause.WorstPause {
			r.WorstPause = s
		}
	}
	r.Verdict = r.verdict()
}
