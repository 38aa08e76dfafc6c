package sharedstate

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

// A unavailableBackend space takes nothing, as Redis that is away, until it is revived.
type unavailableBackend struct {
	backend
	available atomic.Bool
}

func (d *unavailableBackend) applyPresence(ctx context.Context, batches []*presenceBatch) {
	if d.available.Load() {
		d.backend.applyPresence(ctx, batches)
		return
	}
	for _, l := range batches {
		l.err = errBackingOff
	}
}

func TestUnsentPresenceChangesAreBounded(t *testing.T) {
	const most = 1000
	synctest.Test(t, func(t *testing.T) {
		var unavailable *unavailableBackend
		p := startMemoryNodesWith(t, 1, nil, func(n *Node) {
			unavailable = &unavailableBackend{backend: n.backend}
			n.backend, n.presence.tombstoneLimit = unavailable, most
		})[0]
		p.changePresence(message.PresenceJoined, "lobby", "ada")
		// Far more come and go than are ever told.
		for round := range 3 {
			var users []string
			for i := range most / 2 {
				users = append(users, fmt.Sprintf("u%d-%d", round, i))
			}
			p.changePresence(message.PresenceJoined, "lobby", users...)
			p.changePresence(message.PresenceLeft, "lobby", users...)
			time.Sleep(time.Second)
		}
		p.presence.mu.Lock()
		entries, tombstones, dirty := len(p.presence.entries), p.presence.tombstones, len(p.presence.dirty)
		p.presence.mu.Unlock()
		if tombstones > most || entries != tombstones+1 || dirty > entries {
			t.Errorf("%d seats, %d vacant, %d to tell", entries, tombstones, dirty)
		}
		if got := p.metric(t, "session_dropped_total", "vacant_full"); got <= most {
			t.Errorf("%v counted as dropped", got)
		}
		if got := p.metric(t, "presence_seats", ""); got != 1 {
			t.Errorf("%v seats counted", got)
		}
		// Who asks meanwhile is not kept waiting.
		began := time.Now()
		p.usersIn(t, "lobby")
		if took := time.Since(began); took > maxFlushWait+100*time.Millisecond {
			t.Errorf("a reader waited %v", took)
		}
		// And when the space is back it learns who is there, no more.
		unavailable.available.Store(true)
		time.Sleep(5 * time.Second)
		if got := p.usersIn(t, "lobby"); got != "ada" {
			t.Errorf("then there is %q", got)
		}
		began = time.Now()
		p.usersIn(t, "lobby")
		if took := time.Since(began); took > 0 {
			t.Errorf("a reader waited %v though nothing is to be told", took)
		}
	})
}

func TestPresenceEntriesAreBounded(t *testing.T) {
	const most = 1000
	synctest.Test(t, func(t *testing.T) {
		p := startMemoryNodesWith(t, 1, nil, func(n *Node) { n.presence.entryLimit = most })[0]
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

func TestALeaveGraceIsCancelledAndEndsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startMemoryNodes(t, 1, nil)[0]
		time.Sleep(time.Second) // the first beat
		step := func(d time.Duration, want string) {
			t.Helper()
			time.Sleep(d)
			if got := p.usersIn(t, "lobby"); got != want {
				t.Errorf("%q is there, want %q", got, want)
			}
		}
		p.changePresence(message.PresenceJoined, "lobby", "ada")
		step(0, "ada")
		p.changePresence(message.PresenceDisconnected, "lobby", "ada")
		step(2*time.Second, "ada")
		p.changePresence(message.PresenceJoined, "lobby", "ada") // back in time
		step(2*time.Second, "ada")                               // the first grace would be over
		p.changePresence(message.PresenceDisconnected, "lobby", "ada")
		step(time.Second, "ada")
		p.changePresence(message.PresenceDisconnected, "lobby", "ada") // told twice: the first one counts
		step(1900*time.Millisecond, "ada")
		step(200*time.Millisecond, "")
		p.changePresence(message.PresenceJoined, "lobby", "ada")
		p.changePresence(message.PresenceDisconnected, "lobby", "ada")
		p.changePresence(message.PresenceLeft, "lobby", "ada") // in the grace it says goodbye
		step(0, "")
		p.changePresence(message.PresenceJoined, "lobby", "ada")
		step(4*time.Second, "ada") // nothing of the old grace is left
	})
}

// For each room one notice a second, however often it changes, and the first
// one soon.
func TestPresenceEventsAreCoalesced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := startMemoryNodes(t, 2, nil)
		a, b := peers[0], peers[1]
		time.Sleep(3 * time.Second)
		began := time.Now()
		a.changePresence(message.PresenceJoined, "lobby", "ada")
		b.waitPresenceEvent(t, "lobby", 1)
		if took := time.Since(began); took > 2*coalesceDelay {
			t.Errorf("told after %v", took)
		}
		for i := range 400 {
			a.changePresence(message.PresenceJoined, "lobby", fmt.Sprint("u", i))
			a.changePresence(message.PresenceLeft, "lobby", fmt.Sprint("u", i-1))
			a.changePresence(message.PresenceJoined, "den", fmt.Sprint("u", i))
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(2 * time.Second)
		for _, p := range peers {
			if got := p.countEvents(isPresenceEventOf("lobby")); got < 5 || got > 7 {
				t.Errorf("%s was told %d times of 4 s of changes", p.cfg.Node, got)
			}
			if got := p.countEvents(isPresenceEventOf("den")); got < 4 || got > 6 {
				t.Errorf("%s was told %d times of the other room", p.cfg.Node, got)
			}
		}
		// What changes nothing is not told.
		before := b.countEvents(isPresenceEventOf("lobby"))
		a.changePresence(message.PresenceJoined, "lobby", "ada")
		a.changePresenceAs(2, message.PresenceJoined, "lobby", "ada")
		time.Sleep(3 * time.Second)
		if got := b.countEvents(isPresenceEventOf("lobby")); got != before {
			t.Errorf("told %d times of nothing", got-before)
		}
	})
}

func (p *testNode) waitPresenceEvent(t *testing.T, room message.Room, count int) {
	t.Helper()
	for range 100 {
		if p.countEvents(isPresenceEventOf(room)) >= count {
			return
		}
		time.Sleep(5 * time.Millisecond) // of the bubble
	}
	t.Fatalf("%s was not told of %s", p.cfg.Node, room)
}

func TestTooManyPendingRoomsBecomeOneEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := startMemoryNodes(t, 2, nil)
		a, b := peers[0], peers[1]
		time.Sleep(3 * time.Second)
		isAnyRoom := func(n message.NodeEvent) bool { return n.Kind == message.EventPresenceChanged && n.Rooms == nil }
		before := b.countEvents(isAnyRoom)
		for round := range 3 {
			var rooms []message.Room
			for i := range maxPendingRooms + 1 {
				rooms = append(rooms, message.Room(fmt.Sprintf("r%d-%d", round, i)))
			}
			a.presence.coalescer.add(0, rooms...)
			time.Sleep(2 * coalesceDelay)
		}
		time.Sleep(3 * time.Second)
		if got := b.countEvents(isAnyRoom) - before; got < 1 || got > 2 {
			t.Errorf("told %d times that any room may have changed, want once a second", got)
		}
		if got := a.metric(t, "session_dropped_total", "pokes_full"); got < 3*maxPendingRooms {
			t.Errorf("%v counted", got)
		}
		// Many rooms, but not too many, are told in parts.
		var rooms []message.Room
		for i := range 1000 {
			rooms = append(rooms, message.Room(fmt.Sprintf("x%d", i)))
		}
		a.presence.coalescer.add(0, rooms...)
		time.Sleep(time.Second)
		named := map[message.Room]bool{}
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, n := range b.events {
			if len(n.Rooms) > roomsPerEvent {
				t.Errorf("%d rooms in one notice", len(n.Rooms))
			}
			for _, room := range n.Rooms {
				named[room] = strings.HasPrefix(string(room), "x") || named[room]
			}
		}
		if len(named) != 1000 {
			t.Errorf("told of %d rooms, want 1000", len(named))
		}
	})
}
