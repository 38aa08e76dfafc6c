package broker

import (
	"slices"
	"sync"

	"switchyard/internal/message"
)

// A connState is the state of a subscriber's connection.
type connState int

const (
	connUnknown connState = iota // no attempt has ended yet: subscriptions wait
	connUp
	connDown
)

// subscriptions records which rooms are wanted, and what Redis has confirmed on
// the present connection. It does no I/O: the connection calls
// nextCommand to learn what to write, and answered for each answer. It is safe
// for concurrent use.
type subscriptions struct {
	// wake holds a token when nextCommand may return a command. It is never
	// closed.
	wake chan struct{}

	// mu protects the fields below.
	mu     sync.Mutex
	state  connState
	closed bool
	byRoom map[message.Room]*subscription
	// dirty lists, once each, the rooms whose wanted state may differ from the
	// last command written.
	dirty []message.Room
}

// A subscription is the state of one room. Redis answers the commands in order,
// each once. So the last command has taken effect only when no answer is
// outstanding, and the answer to an earlier SUBSCRIBE confirms nothing.
type subscription struct {
	wanted        bool
	dirty         bool
	subscribeSent bool // the last command written on this connection was SUBSCRIBE
	unanswered    int  // commands written on this connection and not answered yet
	waiters       []chan error
}

func newSubscriptions() *subscriptions {
	return &subscriptions{
		wake:   make(chan struct{}, 1),
		byRoom: make(map[message.Room]*subscription),
	}
}

// add marks the room as wanted. It returns a channel that receives the outcome,
// or nil when the room is subscribed already.
func (s *subscriptions) add(room message.Room) (<-chan error, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	sub := s.byRoom[room]
	if sub == nil {
		sub = &subscription{}
		s.byRoom[room] = sub
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

// cancelWait removes a channel that add returned. The room stays wanted.
func (s *subscriptions) cancelWait(room message.Room, wait <-chan error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sub := s.byRoom[room]; sub != nil {
		sub.waiters = slices.DeleteFunc(sub.waiters, func(w chan error) bool { return w == wait })
	}
}

// remove marks the room as not wanted, and fails its waiters.
func (s *subscriptions) remove(room message.Room) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sub := s.byRoom[room]
	if sub == nil {
		return
	}
	sub.wanted = false
	sub.notifyWaiters(ErrUnsubscribed)
	s.markDirty(room, sub)
	s.resolve(room, sub)
}

// markDirty makes nextCommand consider the room. Without a connection it does
// nothing: connected marks all rooms.
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

// notifyWaiters sends the outcome to everyone who waits for the room. It never
// blocks, since each channel has room for one.
func (sub *subscription) notifyWaiters(err error) {
	for _, w := range sub.waiters {
		w <- err
	}
	sub.waiters = nil
}

// nextCommand returns the rooms of the next command to write, at most limit, and
// counts their answers as outstanding. It returns none when all is written.
func (s *subscriptions) nextCommand(limit int) (subscribe bool, rooms []message.Room) {
	s.mu.Lock()
	defer s.mu.Unlock()
	done := 0
	for _, room := range s.dirty {
		sub := s.byRoom[room]
		if sub.wanted != sub.subscribeSent {
			if len(rooms) == limit || (len(rooms) > 0 && sub.wanted != subscribe) {
				break // the rest is for the next command
			}
			subscribe = sub.wanted
			rooms = append(rooms, room)
			sub.subscribeSent = sub.wanted
			sub.unanswered++
		}
		sub.dirty = false
		s.resolve(room, sub) // its wanted state may have changed back, so that there is nothing to write
		done++
	}
	s.dirty = s.dirty[done:]
	return subscribe, rooms
}

// answered records Redis' answer to the oldest unanswered command for the room.
func (s *subscriptions) answered(room message.Room) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sub := s.byRoom[room]; sub != nil && sub.unanswered > 0 {
		sub.unanswered--
		s.resolve(room, sub)
	}
}

// isConfirmed reports whether Redis has confirmed the room's subscription and no
// other command for it is under way.
func (s *subscriptions) isConfirmed(room message.Room) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	sub := s.byRoom[room]
	return sub != nil && sub.subscribeSent && sub.unanswered == 0
}

// len returns the number of rooms that are wanted, or whose unsubscription is
// not confirmed yet.
func (s *subscriptions) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.byRoom)
}

// resolve notifies the waiters when the room is subscribed, and removes a room
// when it is unsubscribed. The caller holds mu.
func (s *subscriptions) resolve(room message.Room, sub *subscription) {
	switch {
	case sub.unanswered > 0 || sub.wanted != sub.subscribeSent:
	case sub.wanted:
		sub.notifyWaiters(nil)
	case !sub.dirty:
		delete(s.byRoom, room)
	}
}

// connected is called when a connection has begun: all wanted rooms must be
// subscribed on it.
func (s *subscriptions) connected() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reset()
	s.state = connUp
	for room, sub := range s.byRoom {
		s.markDirty(room, sub)
	}
}

// disconnected is called when the connection has failed: no more answers will
// arrive.
func (s *subscriptions) disconnected() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = connDown
	s.reset()
	for _, sub := range s.byRoom {
		sub.notifyWaiters(ErrDown)
	}
}

// disconnectedIdle is called when the connection has ended because it was idle:
// a new subscription waits for the next connection.
func (s *subscriptions) disconnectedIdle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = connUnknown
	s.reset()
}

// reset clears the state of the earlier connection. The caller holds mu.
func (s *subscriptions) reset() {
	s.dirty = nil
	for room, sub := range s.byRoom {
		sub.dirty, sub.subscribeSent, sub.unanswered = false, false, 0
		if !sub.wanted {
			delete(s.byRoom, room)
		}
	}
}

// close fails all waiters and all later calls of add.
func (s *subscriptions) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, sub := range s.byRoom {
		sub.notifyWaiters(ErrClosed)
	}
}

func (s *subscriptions) isUp() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state == connUp
}
