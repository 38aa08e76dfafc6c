package load

import (
	"slices"
	"sync"

	"switchyard/internal/client"
	"switchyard/internal/message"
)

// A client puts right what the service does wrong: it drops doubles, asks again
// for what was skipped, takes the word for a new epoch from a message, and its
// own message for an ack. An ear hears the wire itself, so that the history
// tells of all that, too.
type ear struct {
	history *History
	user    func() string

	mu    sync.Mutex // Protects following.
	seats []*seatHeard
	subs  map[message.Room]*Subscription
	open  map[messageAt]bool // publishes whose outcome was not told yet
}

type messageAt struct {
	room message.Room
	id   string
}

// A seatHeard is a room on one connection. Two are there during a move.
type seatHeard struct {
	connection uint64
	room       message.Room
	fresh      bool // nothing came since joined
	at         position
}

func newEar(h *History, user func() string) *ear {
	return &ear{history: h, user: user, subs: map[message.Room]*Subscription{}, open: map[messageAt]bool{}}
}

// follow has the ear listen for a subscription.
func (e *ear) follow(s *Subscription) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.subs[s.room] = s
}

// sending and answered tell of a publish; an ack in between is its answer.
func (e *ear) sending(room message.Room, id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.open[messageAt{room, id}] = true
}

func (e *ear) answered(room message.Room, id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.open, messageAt{room, id})
}

// hear takes a frame before the client acts on it.
func (e *ear) hear(f client.Frame) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if f.Type == "ack" {
		if !e.open[messageAt{f.Room, f.ID}] {
			e.history.tell(event{Kind: confirmed, Room: f.Room, User: e.user(), ID: f.ID, Epoch: f.Epoch, Seq: f.Seq})
		}
		return
	}
	i := slices.IndexFunc(e.seats, func(s *seatHeard) bool { return s.connection == f.Connection && s.room == f.Room })
	sub := e.subs[f.Room]
	switch {
	case f.Type == "left" && i >= 0:
		e.seats = slices.Delete(e.seats, i, i+1)
	case f.Type == "joined" && sub != nil:
		// The connections before the last one are over.
		e.seats = slices.DeleteFunc(e.seats, func(s *seatHeard) bool {
			return s.room == f.Room && (s.connection == f.Connection || s.connection+1 < f.Connection)
		})
		e.seats = append(e.seats, &seatHeard{connection: f.Connection, room: f.Room, fresh: true})
	case i >= 0 && sub != nil:
		e.seats[i].take(f, sub)
	}
}

// take compares a message or a gap with what came before it on its connection;
// the first after a join with where the subscriber is.
func (s *seatHeard) take(f client.Frame, sub *Subscription) {
	last, came := s.at, position{f.Epoch, f.Seq}
	if s.fresh {
		last = sub.position() // it joined after that, or after an earlier one
	}
	if f.Type == "gap" {
		came.seq = f.To
	}
	switch {
	case f.Type == "gap":
	case last.seq > 0 && last.epoch != came.epoch:
		// The client makes a gap of its own out of this, or none at all.
		sub.tell(skipped, came, event{To: last.seq, Reason: "epoch"})
	case came.seq > last.seq+1:
		sub.tell(skipped, came, event{To: last.seq})
	case came.seq <= last.seq && !s.fresh:
		sub.tell(repeated, came, event{To: last.seq})
	}
	s.at, s.fresh = came, false
}

func (s *Subscription) position() position {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at
}
