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

// An unavailableBackend accepts no presence changes until available is true, as a
// Redis that is down.
type unavailableBackend struct {
	backend
	available atomic.Bool
}

func (d *unavailableBackend) applyPresence(ctx context.Context, batches []*presenceBatch) {
	if d.available.Load() {
		d.backend.applyPresence(ctx, batches)
		return
	}
	for _, b := range batches {
		b.err = errBackingOff
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
		// Far more users join and leave than can be sent.
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
			t.Errorf("%d entries, %d tombstones, %d to send", entries, tombstones, dirty)
		}
		if got := p.metric(t, "session_dropped_total", "vacant_full"); got <= most {
			t.Errorf("%v tombstones are counted as dropped", got)
		}
		if got := p.metric(t, "presence_seats", ""); got != 1 {
			t.Errorf("%v entries are counted, want 1", got)
		}
		// A reader does not wait for what cannot be sent.
		began := time.Now()
		p.usersIn(t, "lobby")
		if took := time.Since(began); took > maxFlushWait+100*time.Millisecond {
			t.Errorf("a reader waited %v", took)
		}
		// Once the backend is available again it gets the present entries, no more.
		unavailable.available.Store(true)
		time.Sleep(5 * time.Second)
		if got := p.usersIn(t, "lobby"); got != "ada" {
			t.Errorf("after the outage the room has %q, want ada", got)
		}
		began = time.Now()
		p.usersIn(t, "lobby")
		if took := time.Since(began); took > 0 {
			t.Errorf("a reader waited %v though nothing is to be sent", took)
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
			t.Errorf("%v entries were dropped, want 10", got)
		}
		// Sessions with an entry can still rejoin and leave.
		p.Change([]message.PresenceChange{
			{Kind: message.PresenceJoined, Room: "lobby", Session: "0", Generation: 2},
			{Kind: message.PresenceLeft, Room: "lobby", Session: "1", Generation: 1},
		})
		if got := p.metric(t, "presence_seats", ""); got != most-1 {
			t.Errorf("%v entries, want %d", got, most-1)
		}
	})
}

func TestALeaveGraceIsCancelledAndEndsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startMemoryNodes(t, 1, nil)[0]
		time.Sleep(time.Second) // for the first heartbeat
		step := func(d time.Duration, want string) {
			t.Helper()
			time.Sleep(d)
			if got := p.usersIn(t, "lobby"); got != want {
				t.Errorf("the room has %q, want %q", got, want)
			}
		}
		p.changePresence(message.PresenceJoined, "lobby", "ada")
		step(0, "ada")
		p.changePresence(message.PresenceDisconnected, "lobby", "ada")
		step(2*time.Second, "ada")
		p.changePresence(message.PresenceJoined, "lobby", "ada") // within the grace
		step(2*time.Second, "ada")                               // when the first grace would be over
		p.changePresence(message.PresenceDisconnected, "lobby", "ada")
		step(time.Second, "ada")
		p.changePresence(message.PresenceDisconnected, "lobby", "ada") // again: the first grace counts
		step(1900*time.Millisecond, "ada")
		step(200*time.Millisecond, "")
		p.changePresence(message.PresenceJoined, "lobby", "ada")
		p.changePresence(message.PresenceDisconnected, "lobby", "ada")
		p.changePresence(message.PresenceLeft, "lobby", "ada") // within the grace
		step(0, "")
		p.changePresence(message.PresenceJoined, "lobby", "ada")
		step(4*time.Second, "ada") // the old grace has no effect
		// Each disconnect has a whole grace, although an older one ends meanwhile.
		p.changePresence(message.PresenceDisconnected, "lobby", "ada")
		step(time.Second, "ada")
		p.changePresence(message.PresenceJoined, "lobby", "ada")
		step(time.Second, "ada")
		p.changePresence(message.PresenceDisconnected, "lobby", "ada")
		step(2900*time.Millisecond, "ada") // the older grace ended two seconds ago
		step(200*time.Millisecond, "")
	})
}

// However often a room changes, there is one event a second about it, and the
// first one comes soon.
func TestPresenceEventsAreCoalesced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := startMemoryNodes(t, 2, nil)
		a, b := peers[0], peers[1]
		time.Sleep(3 * time.Second)
		began := time.Now()
		a.changePresence(message.PresenceJoined, "lobby", "ada")
		b.waitPresenceEvent(t, "lobby", 1)
		if took := time.Since(began); took > 2*coalesceDelay {
			t.Errorf("the event came after %v", took)
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
				t.Errorf("%s got %d events about 4 s of changes, want 5 to 7", p.cfg.Node, got)
			}
			if got := p.countEvents(isPresenceEventOf("den")); got < 4 || got > 6 {
				t.Errorf("%s got %d events about the other room, want 4 to 6", p.cfg.Node, got)
			}
		}
		// A join that changes nothing makes no event.
		before := b.countEvents(isPresenceEventOf("lobby"))
		a.changePresence(message.PresenceJoined, "lobby", "ada")
		a.changePresenceAs(2, message.PresenceJoined, "lobby", "ada")
		time.Sleep(3 * time.Second)
		if got := b.countEvents(isPresenceEventOf("lobby")); got != before {
			t.Errorf("%d events although nothing has changed", got-before)
		}
	})
}

// waitPresenceEvent waits half a second of virtual time for count events about a
// room.
func (p *testNode) waitPresenceEvent(t *testing.T, room message.Room, count int) {
	t.Helper()
	for range 100 {
		if p.countEvents(isPresenceEventOf(room)) >= count {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("%s got no event about %s", p.cfg.Node, room)
}

func TestTooManyPendingRoomsBecomeOneEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := startMemoryNodes(t, 2, nil)
		a, b := peers[0], peers[1]
		time.Sleep(3 * time.Second)
		before := b.countEvents(isAnyRoomEvent)
		for round := range 3 {
			var rooms []message.Room
			for i := range maxPendingRooms + 1 {
				rooms = append(rooms, message.Room(fmt.Sprintf("r%d-%d", round, i)))
			}
			a.presence.coalescer.add(0, rooms...)
			time.Sleep(2 * coalesceDelay)
		}
		time.Sleep(3 * time.Second)
		if got := b.countEvents(isAnyRoomEvent) - before; got < 1 || got > 2 {
			t.Errorf("%d events about all rooms, want one a second", got)
		}
		if got := a.metric(t, "session_dropped_total", "pokes_full"); got < 3*maxPendingRooms {
			t.Errorf("%v rooms are counted as dropped, want %d or more", got, 3*maxPendingRooms)
		}
		// Many rooms within the bound are spread over several events.
		var rooms []message.Room
		for i := range 1000 {
			rooms = append(rooms, message.Room(fmt.Sprintf("x%d", i)))
		}
		a.presence.coalescer.add(0, rooms...)
		time.Sleep(time.Second)
		named := map[message.Room]bool{}
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, e := range b.events {
			if len(e.Rooms) > roomsPerEvent {
				t.Errorf("one event names %d rooms", len(e.Rooms))
			}
			for _, room := range e.Rooms {
				named[room] = strings.HasPrefix(string(room), "x") || named[room]
			}
		}
		if len(named) != 1000 {
			t.Errorf("the events name %d rooms, want 1000", len(named))
		}
	})
}
