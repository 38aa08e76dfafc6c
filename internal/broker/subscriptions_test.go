package broker

import (
	"errors"
	"testing"

	"pgregory.net/rapid"

	"switchyard/internal/message"
)

// A wire is Redis at the other end of one connection: it follows commands one
// by one and in order.
type wire struct {
	commands []wireCommand
	on       map[message.Room]bool
}

type wireCommand struct {
	room      message.Room
	subscribe bool
}

func (w *wire) holds(room message.Room) bool {
	for _, c := range w.commands {
		if c.room == room && !c.subscribe {
			return false // it is about to go
		}
	}
	return w.on[room]
}

// A drill is a subscriptions, the Redis it talks to, and those who wait.
type drill struct {
	subs    *subscriptions
	wire    *wire
	wanted  map[message.Room]bool
	waiting map[message.Room][]<-chan error
}

// told checks what those who wait for the room have been told.
func (d *drill) told(t *rapid.T, room message.Room) {
	var still []<-chan error
	for _, wait := range d.waiting[room] {
		select {
		case err := <-wait:
			if err == nil && (!d.wire.holds(room) || !d.wanted[room]) {
				t.Fatalf("%s is confirmed, but wanted %v, on the wire %v then %v",
					room, d.wanted[room], d.wire.on[room], d.wire.commands)
			}
		default:
			still = append(still, wait)
		}
	}
	d.waiting[room] = still
}

func (d *drill) want(t *rapid.T, room message.Room) {
	wait, err := d.subs.want(room)
	d.wanted[room] = true
	if err != nil {
		t.Fatal(err)
	}
	if wait == nil && !d.wire.holds(room) {
		t.Fatalf("%s is confirmed at once, but is not on the wire", room)
	}
	if wait != nil {
		d.waiting[room] = append(d.waiting[room], wait)
	}
	d.told(t, room)
}

func (d *drill) unwant(t *rapid.T, room message.Room) {
	d.subs.unwant(room)
	d.wanted[room] = false
	d.told(t, room)
}

func (d *drill) write(t *rapid.T, limit int) {
	subscribe, rooms := d.subs.next(limit)
	if len(rooms) > limit {
		t.Fatalf("a command of %d rooms, the limit is %d", len(rooms), limit)
	}
	for _, room := range rooms {
		d.wire.commands = append(d.wire.commands, wireCommand{room, subscribe})
	}
	for room := range d.waiting {
		d.told(t, room)
	}
}

func (d *drill) answer(t *rapid.T) {
	if len(d.wire.commands) == 0 {
		return
	}
	c := d.wire.commands[0]
	d.wire.commands = d.wire.commands[1:]
	d.wire.on[c.room] = c.subscribe
	d.subs.answered(c.room)
	d.told(t, c.room)
}

func (d *drill) breakDown(t *rapid.T) {
	d.subs.end()
	for room := range d.waiting {
		d.told(t, room)
		if len(d.waiting[room]) > 0 {
			t.Fatalf("%s still waits for an answer of a broken connection", room)
		}
	}
	d.wire = &wire{on: map[message.Room]bool{}}
	d.subs.begin()
}

// settled lets everything be written and answered, and compares.
func (d *drill) settled(t *rapid.T) {
	for range 10 {
		d.write(t, 3)
		for len(d.wire.commands) > 0 {
			d.answer(t)
		}
	}
	left := 0
	for room, want := range d.wanted {
		if d.wire.on[room] != want {
			t.Fatalf("%s: wanted %v, on the wire %v", room, want, d.wire.on[room])
		}
		if want {
			left++
		}
		if len(d.waiting[room]) > 0 {
			t.Fatalf("%s: somebody still waits", room)
		}
	}
	if len(d.subs.rooms) != left {
		t.Fatalf("%d rooms are remembered, %d wanted", len(d.subs.rooms), left)
	}
}

// Whatever the order of wishes, writes, answers and breaks: who is told that
// the room is subscribed is right at that moment.
func TestAConfirmationIsTrue(t *testing.T) {
	room := rapid.SampledFrom([]message.Room{"a", "b", "c"})
	rapid.Check(t, func(t *rapid.T) {
		d := &drill{
			subs: newSubscriptions(), wire: &wire{on: map[message.Room]bool{}},
			wanted: map[message.Room]bool{}, waiting: map[message.Room][]<-chan error{},
		}
		d.subs.begin()
		t.Repeat(map[string]func(*rapid.T){
			"want":   func(t *rapid.T) { d.want(t, room.Draw(t, "room")) },
			"unwant": func(t *rapid.T) { d.unwant(t, room.Draw(t, "room")) },
			"write":  func(t *rapid.T) { d.write(t, rapid.IntRange(1, 3).Draw(t, "limit")) },
			"answer": d.answer,
			"break":  d.breakDown,
		})
		d.settled(t)
	})
}

func TestRoomsLeftWhileDownAreForgotten(t *testing.T) {
	subs := newSubscriptions()
	subs.end()
	for _, room := range manyRooms(100) {
		if _, err := subs.want(room); !errors.Is(err, ErrDown) {
			t.Fatalf("want = %v", err)
		}
		subs.unwant(room)
	}
	if len(subs.rooms) != 0 || len(subs.dirty) != 0 {
		t.Errorf("%d rooms, %d dirty", len(subs.rooms), len(subs.dirty))
	}
}

func TestWhoGivesUpIsForgotten(t *testing.T) {
	subs := newSubscriptions()
	wait, err := subs.want("r")
	if err != nil {
		t.Fatal(err)
	}
	subs.giveUp("r", wait)
	if n := len(subs.rooms["r"].waiters); n != 0 {
		t.Errorf("%d still wait", n)
	}
	if !subs.rooms["r"].wanted {
		t.Error("the room is no longer wanted")
	}
}

// A connection that nobody needed has ended; who comes now waits for the next.
func TestWhoComesWhileThereIsNoConnectionWaitsForOne(t *testing.T) {
	subs := newSubscriptions()
	subs.begin()
	subs.end()
	subs.rest()
	wait, err := subs.want("r")
	if err != nil || wait == nil {
		t.Fatalf("want = %v, %v; want a channel", wait, err)
	}
	subs.begin()
	if on, rooms := subs.next(1); !on || len(rooms) != 1 || subs.holds("r") {
		t.Fatalf("next = %v %v, holds %v", on, rooms, subs.holds("r"))
	}
	subs.answered("r")
	if err := <-wait; err != nil || !subs.holds("r") {
		t.Errorf("told %v, holds %v", err, subs.holds("r"))
	}
}
