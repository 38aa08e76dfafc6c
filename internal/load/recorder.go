package load

import (
	"errors"
	"sync"

	"switchyard/internal/client"
	"switchyard/internal/message"
)

// An Attempt is one publish whose outcome is not told yet. The zero Attempt
// belongs to no history.
type Attempt struct {
	history *History
	event   event
}

// Publish tells that a publish begins. by names the publisher; the publishes
// of one publisher are told in the order in which they are sent, or by is "".
// user is who publishes, "" for anonymous ones.
func (h *History) Publish(room message.Room, by, user, id string, data []byte) Attempt {
	e := event{Kind: published, Room: room, Publisher: by, User: user, ID: id, Hash: hashOf(data)}
	h.record(e)
	e.Publisher = ""
	return Attempt{h, e}
}

// Done tells the outcome; it fits what client.Send wants to be told by.
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
	default: // too large, too much under way, closed before it was sent
		e.Kind, e.Reason = refused, "not sent"
	}
	a.history.record(e)
}

// A Subscription is one subscriber in one room.
type Subscription struct {
	history *History
	name    string
	room    message.Room
	from    client.Position

	mu     sync.Mutex // Protects following.
	joined bool
	at     position
}

// Subscribe returns a subscription that is about to join its room from there.
// name is the subscriber's; one may be in several rooms.
func (h *History) Subscribe(name string, room message.Room, from client.Position) *Subscription {
	s := &Subscription{history: h, name: name, room: room, from: from}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.open[s] = true
	return s
}

// Handler returns a handler that tells all that happens to the subscriber.
func (s *Subscription) Handler() client.Handler {
	return client.Handler{Message: s.Deliver, Gap: s.Gap, Joined: s.Joined}
}

// record tells of something that happened to the subscriber; the room is its own
// unless the event has another.
func (s *Subscription) record(k kind, at position, e event) {
	e.Kind, e.Sub, e.Epoch, e.Seq = k, s.name, at.epoch, at.seq
	if e.Room == "" {
		e.Room = s.room
	}
	s.history.record(e)
}

// Joined tells that the service let the subscriber in, or in again.
func (s *Subscription) Joined(j client.Joined) {
	s.mu.Lock()
	first := !s.joined
	if first {
		s.joined = true
		// A start has the epoch that the service is in; a kept position its own,
		// which may be another by now: then a gap must follow.
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

// Deliver tells of a message.
func (s *Subscription) Deliver(m message.Message) {
	s.setPosition(position{m.Epoch, m.Seq})
	s.record(delivered, position{m.Epoch, m.Seq}, event{Room: m.Room, User: m.From, ID: m.ID, Hash: hashOf(m.Data)})
}

// Gap tells that the service declared a range to be missing.
func (s *Subscription) Gap(g client.Gap) {
	s.setPosition(position{g.Epoch, g.To})
	s.record(gapDeclared, position{g.Epoch, g.From}, event{To: g.To, Reason: g.Reason})
}

// setPosition keeps the position for Behind; whether it may move so is not asked here.
func (s *Subscription) setPosition(to position) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = to
}

// Left tells that the subscriber goes away: nothing more is expected.
func (s *Subscription) Left() {
	s.record(left, position{}, event{})
	s.close()
}

func (s *Subscription) close() {
	s.history.mu.Lock()
	defer s.history.mu.Unlock()
	delete(s.history.open, s)
}

// isAtHead says whether the subscriber is at its room's head, as far as acks and
// the other subscribers tell.
func (s *Subscription) isAtHead() bool {
	s.history.mu.Lock()
	head, known := s.history.heads[s.room]
	s.history.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	return !known || s.at.epoch == head.epoch && s.at.seq >= head.seq
}

// CaughtUp says whether every subscriber that has not left is at its room's
// head, as far as is known. Once nobody publishes any more and it holds, a
// history is complete.
func (h *History) CaughtUp() bool { return h.Behind() == 0 }

// Behind returns how many subscribers that have not left are not at their room's
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
