package broker

import (
	"errors"
	"testing"

	"pgregory.net/rapid"

	"switchyard/internal/message"
)

// A fakeConnection is Redis at the other end of one connection: it executes
// commands one by one, in order.
type fakeConnection struct {
	commands []fakeCommand // not executed yet
	on       map[message.Room]bool
}

type fakeCommand struct {
	room      message.Room
	subscribe bool
}

func (c *fakeConnection) isConfirmed(room message.Room) bool {
	for _, command := range c.commands {
		if command.room == room && !command.subscribe {
			return false // it is about to be unsubscribed
		}
	}
	return c.on[room]
}

// A harness drives a subscriptions against a fake connection, and checks each
// outcome that it reports.
type harness struct {
	subs    *subscriptions
	conn    *fakeConnection
	wanted  map[message.Room]bool
	waiting map[message.Room][]<-chan error
}

// checkWaiters checks the outcomes that the room's waiters have received.
func (h *harness) checkWaiters(t *rapid.T, room message.Room) {
	var still []<-chan error
	for _, wait := range h.waiting[room] {
		select {
		case err := <-wait:
			if err == nil && (!h.conn.isConfirmed(room) || !h.wanted[room]) {
				t.Fatalf("%s is confirmed, but wanted %v, subscribed in Redis %v, commands under way %v",
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
		t.Fatalf("%s is confirmed at once, but not subscribed in Redis", room)
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
			t.Fatalf("%s still waits for an answer from a broken connection", room)
		}
	}
	h.conn = &fakeConnection{on: map[message.Room]bool{}}
	h.subs.connected()
}

// checkFinalState writes and answers everything, and compares Redis with what is
// wanted.
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
			t.Fatalf("%s: wanted %v, subscribed in Redis %v", room, want, h.conn.on[room])
		}
		if want {
			left++
		}
		if len(h.waiting[room]) > 0 {
			t.Fatalf("%s: %d still wait", room, len(h.waiting[room]))
		}
	}
	if len(h.subs.byRoom) != left {
		t.Fatalf("%d rooms are remembered, %d wanted", len(h.subs.byRoom), left)
	}
}

// In any order of calls, writes, answers and reconnects: when a waiter learns
// that the room is subscribed, it is.
func TestASubscriptionIsConfirmedOnlyWhenItHolds(t *testing.T) {
	room := rapid.SampledFrom([]message.Room{"a", "b", "c"})
	rapid.Check(t, func(t *rapid.T) {
		h := &harness{
			subs: newSubscriptions(), conn: &fakeConnection{on: map[message.Room]bool{}},
			wanted: map[message.Room]bool{}, waiting: map[message.Room][]<-chan error{},
		}
		h.subs.connected()
		t.Repeat(map[string]func(*rapid.T){
			"add":       func(t *rapid.T) { h.add(t, room.Draw(t, "room")) },
			"remove":    func(t *rapid.T) { h.remove(t, room.Draw(t, "room")) },
			"write":     func(t *rapid.T) { h.write(t, rapid.IntRange(1, 3).Draw(t, "limit")) },
			"answer":    h.answer,
			"reconnect": h.reconnect,
		})
		h.checkFinalState(t)
	})
}

func TestRoomsLeftWhileDownAreForgotten(t *testing.T) {
	subs := newSubscriptions()
	subs.disconnected()
	for _, room := range manyRooms(100) {
		if _, err := subs.add(room); !errors.Is(err, ErrDown) {
			t.Fatalf("add = %v, want ErrDown", err)
		}
		subs.remove(room)
	}
	if len(subs.byRoom) != 0 || len(subs.dirty) != 0 {
		t.Errorf("%d rooms, %d dirty", len(subs.byRoom), len(subs.dirty))
	}
}

func TestACanceledWaitIsForgotten(t *testing.T) {
	subs := newSubscriptions()
	wait, err := subs.add("r")
	if err != nil {
		t.Fatal(err)
	}
	subs.cancelWait("r", wait)
	if n := len(subs.byRoom["r"].waiters); n != 0 {
		t.Errorf("%d still wait", n)
	}
	if !subs.byRoom["r"].wanted {
		t.Error("the room is no longer wanted")
	}
}

// After an idle connection has ended, a new subscription waits for the next one.
func TestASubscriptionWaitsForTheNextConnection(t *testing.T) {
	subs := newSubscriptions()
	subs.connected()
	subs.disconnected()
	subs.disconnectedIdle()
	wait, err := subs.add("r")
	if err != nil || wait == nil {
		t.Fatalf("add = %v, %v; want a channel", wait, err)
	}
	subs.connected()
	if isSubscribe, rooms := subs.nextCommand(1); !isSubscribe || len(rooms) != 1 || subs.isConfirmed("r") {
		t.Fatalf("nextCommand = %v %v, isConfirmed %v", isSubscribe, rooms, subs.isConfirmed("r"))
	}
	subs.answered("r")
	if err := <-wait; err != nil || !subs.isConfirmed("r") {
		t.Errorf("outcome %v, isConfirmed %v", err, subs.isConfirmed("r"))
	}
}
