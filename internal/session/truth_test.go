package session

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"switchyard/internal/message"
)

// A dead space takes nothing, as Redis that is away, until it is revived.
type dead struct {
	space
	revived atomic.Bool
}

func (d *dead) present(ctx context.Context, rolls []*roll) {
	if d.revived.Load() {
		d.space.present(ctx, rolls)
		return
	}
	for _, l := range rolls {
		l.err = errResting
	}
}

func TestWhatIsNotToldIsBounded(t *testing.T) {
	const most = 1000
	synctest.Test(t, func(t *testing.T) {
		var away *dead
		p := bubbleWith(t, 1, nil, func(n *Node) {
			away = &dead{space: n.space}
			n.space, n.presence.vacantLimit = away, most
		})[0]
		p.does(message.PresenceJoined, "lobby", "ada")
		// Far more come and go than are ever told.
		for round := range 3 {
			var users []string
			for i := range most / 2 {
				users = append(users, fmt.Sprintf("u%d-%d", round, i))
			}
			p.does(message.PresenceJoined, "lobby", users...)
			p.does(message.PresenceLeft, "lobby", users...)
			time.Sleep(time.Second)
		}
		p.presence.mu.Lock()
		seats, vacant, dirty := len(p.presence.seats), p.presence.vacant, len(p.presence.dirty)
		p.presence.mu.Unlock()
		if vacant > most || seats != vacant+1 || dirty > seats {
			t.Errorf("%d seats, %d vacant, %d to tell", seats, vacant, dirty)
		}
		if got := p.metric(t, "session_dropped_total", "vacant_full"); got <= most {
			t.Errorf("%v counted as dropped", got)
		}
		if got := p.metric(t, "presence_seats", ""); got != 1 {
			t.Errorf("%v seats counted", got)
		}
		// Who asks meanwhile is not kept waiting.
		began := time.Now()
		p.in(t, "lobby")
		if took := time.Since(began); took > toldWait+100*time.Millisecond {
			t.Errorf("a reader waited %v", took)
		}
		// And when the space is back it learns who is there, no more.
		away.revived.Store(true)
		time.Sleep(5 * time.Second)
		if got := p.in(t, "lobby"); got != "ada" {
			t.Errorf("then there is %q", got)
		}
		began = time.Now()
		p.in(t, "lobby")
		if took := time.Since(began); took > 0 {
			t.Errorf("a reader waited %v though nothing is to be told", took)
		}
	})
}

func TestSeatsAreBounded(t *testing.T) {
	const most = 1000
	synctest.Test(t, func(t *testing.T) {
		p := bubbleWith(t, 1, nil, func(n *Node) { n.presence.seatLimit = most })[0]
		batch := make([]message.PresenceChange, 0, most+10)
		for i := range most + 10 {
			batch = append(batch, message.PresenceChange{Room: "lobby", Session: message.SessionID(fmt.Sprint(i)), Generation: 1})
		}
		p.Change(batch)
		if got := p.metric(t, "session_dropped_total", "seats_full"); got != 10 {
			t.Errorf("%v dropped, want 10", got)
		}
		// Those who have a seat may still come back and leave.
		p.Change([]message.PresenceChange{
			{Kind: message.PresenceJoined, Room: "lobby", Session: "0", Generation: 2},
			{Kind: message.PresenceLeft, Room: "lobby", Session: "1", Generation: 1},
		})
		if got := p.metric(t, "presence_seats", ""); got != most-1 {
			t.Errorf("%v seats", got)
		}
	})
}

func TestAGraceIsTakenBackAndEndsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := bubble(t, 1, nil)[0]
		time.Sleep(time.Second) // the first beat
		step := func(d time.Duration, want string) {
			t.Helper()
			time.Sleep(d)
			if got := p.in(t, "lobby"); got != want {
				t.Errorf("%q is there, want %q", got, want)
			}
		}
		p.does(message.PresenceJoined, "lobby", "ada")
		step(0, "ada")
		p.does(message.PresenceLost, "lobby", "ada")
		step(2*time.Second, "ada")
		p.does(message.PresenceJoined, "lobby", "ada") // back in time
		step(2*time.Second, "ada")                     // the first grace would be over
		p.does(message.PresenceLost, "lobby", "ada")
		step(time.Second, "ada")
		p.does(message.PresenceLost, "lobby", "ada") // told twice: the first one counts
		step(1900*time.Millisecond, "ada")
		step(200*time.Millisecond, "")
		p.does(message.PresenceJoined, "lobby", "ada")
		p.does(message.PresenceLost, "lobby", "ada")
		p.does(message.PresenceLeft, "lobby", "ada") // in the grace it says goodbye
		step(0, "")
		p.does(message.PresenceJoined, "lobby", "ada")
		step(4*time.Second, "ada") // nothing of the old grace is left
	})
}

// For each room one notice a second, however often it changes, and the first
// one soon.
func TestPokesAreGathered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := bubble(t, 2, nil)
		a, b := peers[0], peers[1]
		time.Sleep(3 * time.Second)
		began := time.Now()
		a.does(message.PresenceJoined, "lobby", "ada")
		b.waitPoke(t, "lobby", 1)
		if took := time.Since(began); took > 2*pokeTick {
			t.Errorf("told after %v", took)
		}
		for i := range 400 {
			a.does(message.PresenceJoined, "lobby", fmt.Sprint("u", i))
			a.does(message.PresenceLeft, "lobby", fmt.Sprint("u", i-1))
			a.does(message.PresenceJoined, "den", fmt.Sprint("u", i))
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(2 * time.Second)
		for _, p := range peers {
			if got := p.heard(pokedAbout("lobby")); got < 5 || got > 7 {
				t.Errorf("%s was told %d times of 4 s of changes", p.cfg.Node, got)
			}
			if got := p.heard(pokedAbout("den")); got < 4 || got > 6 {
				t.Errorf("%s was told %d times of the other room", p.cfg.Node, got)
			}
		}
		// What changes nothing is not told.
		before := b.heard(pokedAbout("lobby"))
		a.does(message.PresenceJoined, "lobby", "ada")
		a.doesAs(2, message.PresenceJoined, "lobby", "ada")
		time.Sleep(3 * time.Second)
		if got := b.heard(pokedAbout("lobby")); got != before {
			t.Errorf("told %d times of nothing", got-before)
		}
	})
}

func (p *peer) waitPoke(t *testing.T, room message.Room, count int) {
	t.Helper()
	for range 100 {
		if p.heard(pokedAbout(room)) >= count {
			return
		}
		time.Sleep(5 * time.Millisecond) // of the bubble
	}
	t.Fatalf("%s was not told of %s", p.cfg.Node, room)
}

func TestMorePokesThanMayWaitBecomeOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := bubble(t, 2, nil)
		a, b := peers[0], peers[1]
		time.Sleep(3 * time.Second)
		all := func(n message.Notice) bool { return n.Kind == message.NoticePresence && n.Rooms == nil }
		before := b.heard(all)
		for round := range 3 {
			var rooms []message.Room
			for i := range maxPokes + 1 {
				rooms = append(rooms, message.Room(fmt.Sprintf("r%d-%d", round, i)))
			}
			a.presence.pokes.add(0, rooms...)
			time.Sleep(2 * pokeTick)
		}
		time.Sleep(3 * time.Second)
		if got := b.heard(all) - before; got < 1 || got > 2 {
			t.Errorf("told %d times that any room may have changed, want once a second", got)
		}
		if got := a.metric(t, "session_dropped_total", "pokes_full"); got < 3*maxPokes {
			t.Errorf("%v counted", got)
		}
		// Many rooms, but not too many, are told in parts.
		var rooms []message.Room
		for i := range 1000 {
			rooms = append(rooms, message.Room(fmt.Sprintf("x%d", i)))
		}
		a.presence.pokes.add(0, rooms...)
		time.Sleep(time.Second)
		told := map[message.Room]bool{}
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, n := range b.notices {
			if len(n.Rooms) > pokeRooms {
				t.Errorf("%d rooms in one notice", len(n.Rooms))
			}
			for _, room := range n.Rooms {
				told[room] = strings.HasPrefix(string(room), "x") || told[room]
			}
		}
		if len(told) != 1000 {
			t.Errorf("told of %d rooms, want 1000", len(told))
		}
	})
}
