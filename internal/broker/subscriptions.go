package broker

import (
	"slices"
	"sync"

	"switchyard/internal/message"
)

// A connState is what is known of the connection that receives.
type connState int

const (
	connUnknown connState = iota // not tried yet: a subscriber waits
	connUp
	connDown
)

// subscriptions is what is wanted of each room, and how far Redis has followed
// on the present connection. It does no input or output: a connection asks
// next what to write and reports what was answered. Safe for concurrent use.
type subscriptions struct {
	// kick holds a token when next may have something. Never closed.
	wake chan struct{}

	mu     sync.Mutex // Protects following.
	state  connState
	closed bool
	rooms  map[message.Room]*subscription
	// dirty are the rooms where what is wanted may differ from what was last
	// written, each once.
	dirty []message.Room
}

// A subscription is one room's part. Redis answers each command once and in
// order, so only when no answer is outstanding does the last command written
// hold: this is how the answer to an earlier SUBSCRIBE confirms nothing.
type subscription struct {
	wanted        bool
	dirty         bool
	subscribeSent bool // the last command written on this connection was SUBSCRIBE
	unanswered    int  // commands written on this connection and not answered
	waiters       []chan error
}

func newSubscriptions() *subscriptions {
	return &subscriptions{
		wake:  make(chan struct{}, 1),
		rooms: make(map[message.Room]*subscription),
	}
}

// add notes that the room is wanted. It returns a nil channel when there is
// nothing to wait for, else one that gets the outcome.
func (s *subscriptions) add(room message.Room) (<-chan error, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	sub := s.rooms[room]
	if sub == nil {
		sub = &subscription{}
		s.rooms[room] = sub
	}
	sub.wanted = true
	if s.state == connDown {
		return nil, ErrDown
	}
	if sub.subscribeSent && sub.unanswered == 0 {
		return nil, nil
	}
	s.markDirty(room, sub)
	wait := make(chan error, 1)
	sub.waiters = append(sub.waiters, wait)
	return wait, nil
}

// cancelWait takes back a channel that want returned; the room stays wanted.
func (s *subscriptions) cancelWait(room message.Room, wait <-chan error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sub := s.rooms[room]; sub != nil {
		sub.waiters = slices.DeleteFunc(sub.waiters, func(w chan error) bool { return w == wait })
	}
}

func (s *subscriptions) remove(room message.Room) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sub := s.rooms[room]
	if sub == nil {
		return
	}
	sub.wanted = false
	sub.notifyWaiters(ErrUnsubscribed)
	s.markDirty(room, sub)
	s.resolve(room, sub)
}

// markDirty has next look at the room; without a connection, begin will.
func (s *subscriptions) markDirty(room message.Room, sub *subscription) {
	if s.state != connUp || sub.wanted == sub.subscribeSent {
		return
	}
	if !sub.dirty {
		sub.dirty = true
		s.dirty = append(s.dirty, room)
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (sub *subscription) notifyWaiters(err error) {
	for _, w := range sub.waiters {
		w <- err
	}
	sub.waiters = nil
}

// nextCommand returns the rooms of the next command to write, limit at most, and
// counts their answers as pending; none means that all is written.
func (s *subscriptions) nextCommand(limit int) (subscribe bool, rooms []message.Room) {
	s.mu.Lock()
	defer s.mu.Unlock()
	done := 0
	for _, room := range s.dirty {
		sub := s.rooms[room]
		if sub.wanted != sub.subscribeSent {
			if len(rooms) == limit || (len(rooms) > 0 && sub.wanted != subscribe) {
				break // the next command's
			}
			subscribe = sub.wanted
			rooms = append(rooms, room)
			sub.subscribeSent = sub.wanted
			sub.unanswered++
		}
		sub.dirty = false
		s.resolve(room, sub) // nothing was left to write, perhaps
		done++
	}
	s.dirty = s.dirty[done:]
	return subscribe, rooms
}

// answered takes Redis' answer to the oldest unanswered command for the room.
func (s *subscriptions) answered(room message.Room) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sub := s.rooms[room]; sub != nil && sub.unanswered > 0 {
		sub.unanswered--
		s.resolve(room, sub)
	}
}

// isConfirmed says whether Redis has confirmed the room and nothing is under way.
func (s *subscriptions) isConfirmed(room message.Room) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	sub := s.rooms[room]
	return sub != nil && sub.subscribeSent && sub.unanswered == 0
}

// len is how many rooms are wanted or not yet done with.
func (s *subscriptions) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.rooms)
}

// resolve tells the waiters when the room is subscribed to, and forgets a room
// with which all is done.
func (s *subscriptions) resolve(room message.Room, sub *subscription) {
	switch {
	case sub.unanswered > 0 || sub.wanted != sub.subscribeSent:
	case sub.wanted:
		sub.notifyWaiters(nil)
	case !sub.dirty:
		delete(s.rooms, room)
	}
}

// connected starts a connection's life: all that is wanted must be written.
func (s *subscriptions) connected() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reset()
	s.state = connUp
	for room, sub := range s.rooms {
		s.markDirty(room, sub)
	}
}

// disconnected ends it: no answer will come any more.
func (s *subscriptions) disconnected() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = connDown
	s.reset()
	for _, sub := range s.rooms {
		sub.notifyWaiters(ErrDown)
	}
}

// disconnectedIdle ends it because nobody needs it: who comes next waits for another one.
func (s *subscriptions) disconnectedIdle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = connUnknown
	s.reset()
}

// reset forgets what an earlier connection knew.
func (s *subscriptions) reset() {
	s.dirty = nil
	for room, sub := range s.rooms {
		sub.dirty, sub.subscribeSent, sub.unanswered = false, false, 0
		if !sub.wanted {
			delete(s.rooms, room)
		}
	}
}

func (s *subscriptions) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, sub := range s.rooms {
		sub.notifyWaiters(ErrClosed)
	}
}

func (s *subscriptions) isUp() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state == connUp
}
