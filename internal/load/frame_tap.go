package load

import (
	"slices"
	"sync"

	"switchyard/internal/client"
	"switchyard/internal/message"
)

// A frameTap records the faults that a client corrects before its handlers see
// them: the client drops duplicates, asks again for skipped messages, follows a
// message into a new epoch, and accepts its own message as an ack. The tap gets
// each frame of one client before the client acts on it. It is safe for
// concurrent use.
type frameTap struct {
	history *History
	user    func() string // whose publishes the acks confirm

	mu            sync.Mutex // Protects following.
	streams       []*roomStream
	subs          map[message.Room]*Subscription
	openPublishes map[publishKey]bool // publishes without an outcome yet
}

// A publishKey identifies a publish of the client.
type publishKey struct {
	room message.Room
	id   string
}

// A roomStream holds the position of a room on one connection. During a move a
// room has two.
type roomStream struct {
	connection uint64
	room       message.Room
	fresh      bool // no message or gap has come since the join
	at         position
}

func newFrameTap(h *History, user func() string) *frameTap {
	return &frameTap{history: h, user: user, subs: map[message.Room]*Subscription{}, openPublishes: map[publishKey]bool{}}
}

// watch makes the tap record faults of a subscription.
func (t *frameTap) watch(s *Subscription) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.subs[s.room] = s
}

// publishStarted is called before a publish is sent. An ack that comes between it
// and publishAnswered is the outcome of the publish.
func (t *frameTap) publishStarted(room message.Room, id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.openPublishes[publishKey{room, id}] = true
}

// publishAnswered is called when the publish has its outcome.
func (t *frameTap) publishAnswered(room message.Room, id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.openPublishes, publishKey{room, id})
}

// onFrame records the faults that a frame shows.
func (t *frameTap) onFrame(f client.Frame) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f.Type == "ack" {
		if !t.openPublishes[publishKey{f.Room, f.ID}] {
			t.history.record(event{Kind: lateAck, Room: f.Room, User: t.user(), ID: f.ID, Epoch: f.Epoch, Seq: f.Seq})
		}
		return
	}
	i := slices.IndexFunc(t.streams, func(s *roomStream) bool { return s.connection == f.Connection && s.room == f.Room })
	sub := t.subs[f.Room]
	switch {
	case f.Type == "left" && i >= 0:
		t.streams = slices.Delete(t.streams, i, i+1)
	case f.Type == "joined" && sub != nil:
		// All connections before the last one have ended.
		t.streams = slices.DeleteFunc(t.streams, func(s *roomStream) bool {
			return s.room == f.Room && (s.connection == f.Connection || s.connection+1 < f.Connection)
		})
		t.streams = append(t.streams, &roomStream{connection: f.Connection, room: f.Room, fresh: true})
	case i >= 0 && sub != nil:
		t.streams[i].check(f, sub)
	}
}

// check compares a message or a gap with the one before it on its connection, or
// the first one after a join with the subscriber's position.
func (s *roomStream) check(f client.Frame, sub *Subscription) {
	last, current := s.at, position{f.Epoch, f.Seq}
	if s.fresh {
		last = sub.position() // the client joined there, or before it
	}
	if f.Type == "gap" {
		current.seq = f.To
	}
	switch {
	case f.Type == "gap":
	case last.seq > 0 && last.epoch != current.epoch:
		// The handlers may see a gap that the client makes up, or nothing.
		sub.record(skipped, current, event{To: last.seq, Reason: "epoch"})
	case current.seq > last.seq+1:
		sub.record(skipped, current, event{To: last.seq})
	case current.seq <= last.seq && !s.fresh:
		sub.record(repeated, current, event{To: last.seq})
	}
	s.at, s.fresh = current, false
}

// position returns the position of the last message or gap.
func (s *Subscription) position() position {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at
}
