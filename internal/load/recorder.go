package load

import (
	"errors"
	"sync"

	"switchyard/internal/client"
	"switchyard/internal/message"
)

// An Attempt is a publish that waits for its outcome. The zero Attempt records
// nothing.
type Attempt struct {
	history *History
	event   event
}

// Publish records that a publish begins. by names the publisher, whose publishes
// must be recorded in the order in which they are sent; "" names none. user is
// the publisher's user, "" if it is anonymous.
func (h *History) Publish(room message.Room, by, user, id string, data []byte) Attempt {
	e := event{Kind: published, Room: room, Publisher: by, User: user, ID: id, Hash: hashOf(data)}
	h.record(e)
	e.Publisher = ""
	return Attempt{h, e}
}

// Done records the outcome. Its parameters are those of a client.Send callback.
func (a Attempt) Done(ack client.Ack, err error) {
	if a.history == nil {
		return
	}
	e := a.event
	var answer *client.Error
	switch {
	case err == nil:
		e.Kind, e.Epoch, e.Seq, e.Duplicate = acked, ack.Epoch, ack.Seq, ack.Duplicate
	case errors.Is(err, client.ErrOutcomeUnknown):
		e.Kind, e.Reason = unknown, "no answer"
	case errors.As(err, &answer):
		e.Kind, e.Reason = refused, answer.Code
	default: // too large, too many publishes under way, closed before it was sent
		e.Kind, e.Reason = refused, "not sent"
	}
	a.history.record(e)
}

// A Subscription records the events of one subscriber in one room. It is safe for
// concurrent use.
type Subscription struct {
	history *History
	name    string
	room    message.Room
	from    client.Position

	mu     sync.Mutex // Protects following.
	joined bool
	at     position
}

// Subscribe returns the subscription of a subscriber that is about to join a room
// from a position. A subscriber may join several rooms under one name.
func (h *History) Subscribe(name string, room message.Room, from client.Position) *Subscription {
	s := &Subscription{history: h, name: name, room: room, from: from}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.open[s] = true
	return s
}

// Handler returns a handler for client.Join that records all events.
func (s *Subscription) Handler() client.Handler {
	return client.Handler{Message: s.Deliver, Gap: s.Gap, Joined: s.Joined}
}

// record records an event of the subscriber, in its room unless the event has
// another one.
func (s *Subscription) record(k kind, at position, e event) {
	e.Kind, e.Sub, e.Epoch, e.Seq = k, s.name, at.epoch, at.seq
	if e.Room == "" {
		e.Room = s.room
	}
	s.history.record(e)
}

// Joined records that the subscriber has joined or rejoined its room.
func (s *Subscription) Joined(j client.Joined) {
	s.mu.Lock()
	first := !s.joined
	if first {
		s.joined = true
		// A start is in the epoch of the service. A position has an epoch of its
		// own; if the service is in another one by now, a gap must follow.
		s.at = position{j.Epoch, s.from.After}
		switch {
		case s.from == client.Now():
			s.at.seq = j.Head
		case s.from.Epoch != "":
			s.at.epoch = s.from.Epoch
		}
	}
	at := s.at
	s.mu.Unlock()
	if first {
		s.record(joined, at, event{})
	}
	if !first || at.epoch != j.Epoch {
		s.record(rejoined, position{j.Epoch, j.Head}, event{})
	}
}

// Deliver records a message.
func (s *Subscription) Deliver(m message.Message) {
	s.setPosition(position{m.Epoch, m.Seq})
	s.record(delivered, position{m.Epoch, m.Seq}, event{Room: m.Room, User: m.From, ID: m.ID, Hash: hashOf(m.Data)})
}

// Gap records that the service declared a gap.
func (s *Subscription) Gap(g client.Gap) {
	s.setPosition(position{g.Epoch, g.To})
	s.record(gapDeclared, position{g.Epoch, g.From}, event{To: g.To, Reason: g.Reason})
}

// setPosition sets the position without a check of the move, which is for Check.
func (s *Subscription) setPosition(to position) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = to
}

// Left records that the subscriber has left: it expects nothing more.
func (s *Subscription) Left() {
	s.record(left, position{}, event{})
	s.close()
}

// close takes the subscription out of Behind.
func (s *Subscription) close() {
	s.history.mu.Lock()
	defer s.history.mu.Unlock()
	delete(s.history.open, s)
}

// isAtHead reports whether the subscriber is at its room's head, as far as the
// history knows it.
func (s *Subscription) isAtHead() bool {
	s.history.mu.Lock()
	head, known := s.history.heads[s.room]
	s.history.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	return !known || s.at.epoch == head.epoch && s.at.seq >= head.seq
}

// CaughtUp reports whether every subscriber that has not left is at its room's
// head, as far as the history knows it. If no publish is under way, the history
// is then complete.
func (h *History) CaughtUp() bool { return h.Behind() == 0 }

// Behind returns how many subscribers that have not left are before their room's
// head.
func (h *History) Behind() (n int) {
	h.mu.Lock()
	open := make([]*Subscription, 0, len(h.open))
	for s := range h.open {
		open = append(open, s)
	}
	h.mu.Unlock()
	for _, s := range open {
		if !s.isAtHead() {
			n++
		}
	}
	return n
}
