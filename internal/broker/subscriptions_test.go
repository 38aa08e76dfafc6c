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

// Whatever the order of wishes, writes, answers and breaks: who is told that
// the room is subscribed is right at that moment.
func TestAConfirmationIsTrue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		subs := newSubscriptions()
		subs.begin()
		w := &wire{on: map[message.Room]bool{}}
		wanted := map[message.Room]bool{}
		waiting := map[message.Room][]<-chan error{}
		room := rapid.SampledFrom([]message.Room{"a", "b", "c"})

		told := func(r message.Room) {
			var still []<-chan error
			for _, wait := range waiting[r] {
				select {
				case err := <-wait:
					if err == nil && (!w.holds(r) || !wanted[r]) {
						t.Fatalf("%s is confirmed, but wanted %v, on the wire %v then %v", r, wanted[r], w.on[r], w.commands)
					}
				default:
					still = append(still, wait)
				}
			}
			waiting[r] = still
		}
		write := func(t *rapid.T) {
			subscribe, rooms := subs.next(rapid.IntRange(1, 3).Draw(t, "limit"))
			for _, r := range rooms {
				w.commands = append(w.commands, wireCommand{r, subscribe})
			}
			for r := range waiting {
				told(r)
			}
		}
		answer := func(*rapid.T) {
			if len(w.commands) == 0 {
				return
			}
			c := w.commands[0]
			w.commands = w.commands[1:]
			w.on[c.room] = c.subscribe
			subs.answered(c.room)
			told(c.room)
		}
		t.Repeat(map[string]func(*rapid.T){
			"want": func(t *rapid.T) {
				r := room.Draw(t, "room")
				wait, err := subs.want(r)
				wanted[r] = true
				if err != nil {
					t.Fatal(err)
				}
				if wait == nil && !w.holds(r) {
					t.Fatalf("%s is confirmed at once, but is not on the wire", r)
				}
				if wait != nil {
					waiting[r] = append(waiting[r], wait)
				}
				told(r)
			},
			"unwant": func(t *rapid.T) {
				r := room.Draw(t, "room")
				subs.unwant(r)
				wanted[r] = false
				told(r)
			},
			"write":  write,
			"answer": answer,
			"break": func(t *rapid.T) {
				subs.end()
				for r := range waiting {
					told(r)
					if len(waiting[r]) > 0 {
						t.Fatalf("%s still waits for an answer of a broken connection", r)
					}
				}
				w.commands, w.on = nil, map[message.Room]bool{}
				subs.begin()
			},
		})
		for range 10 { // all is followed in the end
			write(t)
			for len(w.commands) > 0 {
				answer(t)
			}
		}
		left := 0
		for r, want := range wanted {
			if w.on[r] != want {
				t.Fatalf("%s: wanted %v, on the wire %v", r, want, w.on[r])
			}
			if want {
				left++
			}
			if len(waiting[r]) > 0 {
				t.Fatalf("%s: somebody still waits", r)
			}
		}
		if len(subs.rooms) != left {
			t.Fatalf("%d rooms are remembered, %d wanted", len(subs.rooms), left)
		}
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
