package broker

import (
	"errors"
	"testing"

	"pgregory.net/rapid"

	"switchyard/internal/message"
)

// A fakeConnection is Redis at the other end of one connection: it follows commands one
// by one and in order.
type fakeConnection struct {
	commands []fakeCommand
	on       map[message.Room]bool
}

type fakeCommand struct {
	room      message.Room
	subscribe bool
}

func (c *fakeConnection) isConfirmed(room message.Room) bool {
	for _, command := range c.commands {
		if command.room == room && !command.subscribe {
			return false // it is about to go
		}
	}
	return c.on[room]
}

// A harness is a subscriptions, the Redis it talks to, and those who wait.
type harness struct {
	subs    *subscriptions
	conn    *fakeConnection
	wanted  map[message.Room]bool
	waiting map[message.Room][]<-chan error
}

// checkWaiters checks what those who wait for the room have been told.
func (h *harness) checkWaiters(t *rapid.T, room message.Room) {
	var still []<-chan error
	for _, wait := range h.waiting[room] {
		select {
		case err := <-wait:
			if err == nil && (!h.conn.isConfirmed(room) || !h.wanted[room]) {
				t.Fatalf("%s is confirmed, but wanted %v, on the wire %v then %v",
					room, h.wanted[room], h.conn.on[room], h.conn.commands)
			}
		default:
			still = append(still, wait)
		}
	}
	h.waiting[room] = still
}

func (h *harness) add(t *rapid.T, room message.Room) {
	wait, err := h.subs.add(room)
	h.wanted[room] = true
	if err != nil {
		t.Fatal(err)
	}
	if wait == nil && !h.conn.isConfirmed(room) {
		t.Fatalf("%s is confirmed at once, but is not on the wire", room)
	}
	if wait != nil {
		h.waiting[room] = append(h.waiting[room], wait)
	}
	h.checkWaiters(t, room)
}

func (h *harness) remove(t *rapid.T, room message.Room) {
	h.subs.remove(room)
	h.wanted[room] = false
	h.checkWaiters(t, room)
}

func (h *harness) write(t *rapid.T, limit int) {
	subscribe, rooms := h.subs.nextCommand(limit)
	if len(rooms) > limit {
		t.Fatalf("a command of %d rooms, the limit is %d", len(rooms), limit)
	}
	for _, room := range rooms {
		h.conn.commands = append(h.conn.commands, fakeCommand{room, subscribe})
	}
	for room := range h.waiting {
		h.checkWaiters(t, room)
	}
}

func (h *harness) answer(t *rapid.T) {
	if len(h.conn.commands) == 0 {
		return
	}
	c := h.conn.commands[0]
	h.conn.commands = h.conn.commands[1:]
	h.conn.on[c.room] = c.subscribe
	h.subs.answered(c.room)
	h.checkWaiters(t, c.room)
}

func (h *harness) reconnect(t *rapid.T) {
	h.subs.disconnected()
	for room := range h.waiting {
		h.checkWaiters(t, room)
		if len(h.waiting[room]) > 0 {
			t.Fatalf("%s still waits for an answer of a broken connection", room)
		}
	}
	h.conn = &fakeConnection{on: map[message.Room]bool{}}
	h.subs.connected()
}

// checkFinalState lets everything be written and answered, and compares.
func (h *harness) checkFinalState(t *rapid.T) {
	for range 10 {
		h.write(t, 3)
		for len(h.conn.commands) > 0 {
			h.answer(t)
		}
	}
	left := 0
	for room, want := range h.wanted {
		if h.conn.on[room] != want {
			t.Fatalf("%s: wanted %v, on the wire %v", room, want, h.conn.on[room])
		}
		if want {
			left++
		}
		if len(h.waiting[room]) > 0 {
			t.Fatalf("%s: somebody still waits", room)
		}
	}
	if len(h.subs.rooms) != left {
		t.Fatalf("%d rooms are remembered, %d wanted", len(h.subs.rooms), left)
	}
}

// Whatever the order of wishes, writes, answers and breaks: who is told that
// the room is subscribed is right at that moment.
func TestASubscriptionIsConfirmedOnlyWhenItHolds(t *testing.T) {
	room := rapid.SampledFrom([]message.Room{"a", "b", "c"})
	rapid.Check(t, func(t *rapid.T) {
		h := &harness{
			subs: newSubscriptions(), conn: &fakeConnection{on: map[message.Room]bool{}},
			wanted: map[message.Room]bool{}, waiting: map[message.Room][]<-chan error{},
		}
		h.subs.connected()
		t.Repeat(map[string]func(*rapid.T){
			"want":   func(t *rapid.T) { h.add(t, room.Draw(t, "room")) },
			"unwant": func(t *rapid.T) { h.remove(t, room.Draw(t, "room")) },
			"write":  func(t *rapid.T) { h.write(t, rapid.IntRange(1, 3).Draw(t, "limit")) },
			"answer": h.answer,
			"break":  h.reconnect,
		})
		h.checkFinalState(t)
	})
}

func TestRoomsLeftWhileDownAreForgotten(t *testing.T) {
	subs := newSubscriptions()
	subs.disconnected()
	for _, room := range manyRooms(100) {
		if _, err := subs.add(room); !errors.Is(err, ErrDown) {
			t.Fatalf("want = %v", err)
		}
		subs.remove(room)
	}
	if len(subs.rooms) != 0 || len(subs.dirty) != 0 {
		t.Errorf("%d rooms, %d dirty", len(subs.rooms), len(subs.dirty))
	}
}

func TestACanceledWaitIsForgotten(t *testing.T) {
	subs := newSubscriptions()
	wait, err := subs.add("r")
	if err != nil {
		t.Fatal(err)
	}
	subs.cancelWait("r", wait)
	if n := len(subs.rooms["r"].waiters); n != 0 {
		t.Errorf("%d still wait", n)
	}
	if !subs.rooms["r"].wanted {
		t.Error("the room is no longer wanted")
	}
}

// A connection that nobody needed has ended; who comes now waits for the next.
func TestASubscriptionWaitsForTheNextConnection(t *testing.T) {
	subs := newSubscriptions()
	subs.connected()
	subs.disconnected()
	subs.disconnectedIdle()
	wait, err := subs.add("r")
	if err != nil || wait == nil {
		t.Fatalf("want = %v, %v; want a channel", wait, err)
	}
	subs.connected()
	if isSubscribe, rooms := subs.nextCommand(1); !isSubscribe || len(rooms) != 1 || subs.isConfirmed("r") {
		t.Fatalf("next = %v %v, holds %v", isSubscribe, rooms, subs.isConfirmed("r"))
	}
	subs.answered("r")
	if err := <-wait; err != nil || !subs.isConfirmed("r") {
		t.Errorf("told %v, holds %v", err, subs.isConfirmed("r"))
	}
}
