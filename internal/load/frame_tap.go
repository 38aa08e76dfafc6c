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
type frameTap struct {
	history *History
	user    func() string

	mu            sync.Mutex // Protects following.
	streams       []*roomStream
	subs          map[message.Room]*Subscription
	openPublishes map[publishKey]bool // publishes whose outcome was not told yet
}

type publishKey struct {
	room message.Room
	id   string
}

// A roomStream is a room on one connection. Two are there during a move.
type roomStream struct {
	connection uint64
	room       message.Room
	fresh      bool // nothing came since joined
	at         position
}

func newFrameTap(h *History, user func() string) *frameTap {
	return &frameTap{history: h, user: user, subs: map[message.Room]*Subscription{}, openPublishes: map[publishKey]bool{}}
}

// watch has the ear listen for a subscription.
func (e *frameTap) watch(s *Subscription) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.subs[s.room] = s
}

// publishStarted and answered tell of a publish; an ack in between is its answer.
func (e *frameTap) publishStarted(room message.Room, id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.openPublishes[publishKey{room, id}] = true
}

func (e *frameTap) publishAnswered(room message.Room, id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.openPublishes, publishKey{room, id})
}

// onFrame takes a frame before the client acts on it.
func (e *frameTap) onFrame(f client.Frame) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if f.Type == "ack" {
		if !e.openPublishes[publishKey{f.Room, f.ID}] {
			e.history.record(event{Kind: confirmed, Room: f.Room, User: e.user(), ID: f.ID, Epoch: f.Epoch, Seq: f.Seq})
		}
		return
	}
	i := slices.IndexFunc(e.streams, func(s *roomStream) bool { return s.connection == f.Connection && s.room == f.Room })
	sub := e.subs[f.Room]
	switch {
	case f.Type == "left" && i >= 0:
		e.streams = slices.Delete(e.streams, i, i+1)
	case f.Type == "joined" && sub != nil:
		// The connections before the last one are over.
		e.streams = slices.DeleteFunc(e.streams, func(s *roomStream) bool {
			return s.room == f.Room && (s.connection == f.Connection || s.connection+1 < f.Connection)
		})
		e.streams = append(e.streams, &roomStream{connection: f.Connection, room: f.Room, fresh: true})
	case i >= 0 && sub != nil:
		e.streams[i].check(f, sub)
	}
}

// check compares a message or a gap with what came before it on its connection;
// the first after a join with where the subscriber is.
func (s *roomStream) check(f client.Frame, sub *Subscription) {
	last, current := s.at, position{f.Epoch, f.Seq}
	if s.fresh {
		last = sub.position() // it joined after that, or after an earlier one
	}
	if f.Type == "gap" {
		current.seq = f.To
	}
	switch {
	case f.Type == "gap":
	case last.seq > 0 && last.epoch != current.epoch:
		// The client makes a gap of its own out of this, or none at all.
		sub.record(skipped, current, event{To: last.seq, Reason: "epoch"})
	case current.seq > last.seq+1:
		sub.record(skipped, current, event{To: last.seq})
	case current.seq <= last.seq && !s.fresh:
		sub.record(repeated, current, event{To: last.seq})
	}
	s.at, s.fresh = current, false
}

func (s *Subscription) position() position {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at
}
