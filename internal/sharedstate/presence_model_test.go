package sharedstate

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"switchyard/internal/message"
)

// A faultyBackend does to presence what networks do: batches do not arrive, their
// replies do not, or they arrive much later.
type faultyBackend struct {
	backend

	mu      sync.Mutex
	rnd     *rand.Rand
	enabled bool
	delayed []*presenceBatch // sent, but not arrived yet
}

func (f *faultyBackend) applyPresence(ctx context.Context, batches []*presenceBatch) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, b := range batches {
		outcome := 9
		if f.enabled {
			outcome = f.rnd.IntN(10)
		}
		switch outcome {
		case 0:
			b.err = message.ErrSharedStateUnavailable
		case 1:
			b.err = errBackingOff
		case 2: // it arrives, and the reply is lost
			copied := *b
			f.backend.applyPresence(ctx, []*presenceBatch{&copied})
			b.err = message.ErrSharedStateUnavailable
		case 3: // it arrives later
			copied := *b
			f.delayed = append(f.delayed, &copied)
			b.err = message.ErrSharedStateUnavailable
		default:
			f.backend.applyPresence(ctx, []*presenceBatch{b})
		}
	}
	if len(f.delayed) > 0 && f.enabled && f.rnd.IntN(3) == 0 {
		f.deliverDelayed(ctx)
	}
}

// deliverDelayed delivers one of the delayed batches. The caller holds mu.
func (f *faultyBackend) deliverDelayed(ctx context.Context) {
	i := f.rnd.IntN(len(f.delayed))
	f.backend.applyPresence(ctx, []*presenceBatch{f.delayed[i]})
	f.delayed = slices.Delete(f.delayed, i, i+1)
}

// snapshot returns a function that restores the presence as it is now, as a
// failover does.
func (s *MemoryBackend) snapshot() func() {
	copied := func() (rooms map[message.Room]map[message.SessionID]memoryPresenceEntry, revisions [shardCount]map[string]int64) {
		rooms = make(map[message.Room]map[message.SessionID]memoryPresenceEntry)
		for room, sessions := range s.rooms {
			rooms[room] = maps.Clone(sessions)
		}
		for i := range s.revisions {
			revisions[i] = maps.Clone(s.revisions[i])
		}
		return rooms, revisions
	}
	s.mu.Lock()
	rooms, revisions := copied()
	s.mu.Unlock()
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.rooms, s.revisions = rooms, revisions
	}
}

// Sessions join, leave and move between nodes while the backend is faulty. Some
// time after the last fault every node sees exactly the sessions that are in each
// room.
func TestPresenceConvergesAfterFaults(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { runPresenceFaults(t, rand.New(rand.NewPCG(seed, 7))) })
		})
	}
}

// A modelSession is the state of a session that the nodes must agree on.
type modelSession struct {
	id         message.SessionID
	generation int64
	node       int // of its newest connection
	rooms      map[message.Room]bool
}

func runPresenceFaults(t *testing.T, rnd *rand.Rand) {
	const nodes = 3
	var backends []*faultyBackend
	peers := startMemoryNodesWith(t, nodes, nil, func(n *Node) {
		f := &faultyBackend{backend: n.backend, rnd: rand.New(rand.NewPCG(rnd.Uint64(), 1)), enabled: true}
		n.backend = f
		backends = append(backends, f)
	})
	base := backends[0].backend.(*nodeView).MemoryBackend
	rooms := []message.Room{"lobby", "den", "hall", roomInSameShard("lobby")}
	var sessions []*modelSession
	for i := range 12 {
		sessions = append(sessions, &modelSession{
			id: message.SessionID(fmt.Sprintf("s%02d", i)), generation: 1, node: rnd.IntN(nodes), rooms: map[message.Room]bool{},
		})
	}
	restore := base.snapshot()
	for range 150 {
		s := sessions[rnd.IntN(len(sessions))]
		room := rooms[rnd.IntN(len(rooms))]
		switch rnd.IntN(12) {
		case 0, 1, 2, 3:
			s.changePresence(peers, message.PresenceJoined, room)
			s.rooms[room] = true
		case 4, 5:
			s.changePresence(peers, message.PresenceLeft, room)
			delete(s.rooms, room)
		case 6, 7, 8: // to another node or the same one
			s.move(peers, rnd)
		case 9:
			time.Sleep(time.Duration(rnd.IntN(4000)) * time.Millisecond)
		case 10:
			restore = base.snapshot()
		case 11:
			if rnd.IntN(3) == 0 {
				restore()
				restore = base.snapshot() // because the backend now owns the maps of the last one
			}
		}
		time.Sleep(time.Duration(rnd.IntN(300)) * time.Millisecond)
	}
	for _, f := range backends {
		f.mu.Lock()
		for len(f.delayed) > 0 {
			f.deliverDelayed(t.Context())
		}
		f.enabled = false
		f.mu.Unlock()
	}
	time.Sleep(30 * time.Second) // for grace periods, checks and sweeps
	want := map[message.Room][]string{}
	for _, s := range sessions {
		for room := range s.rooms {
			want[room] = append(want[room], string(s.id))
		}
	}
	for _, p := range peers {
		for _, room := range rooms {
			got, err := p.Room(t.Context(), room, 100)
			if err != nil {
				t.Fatal(err)
			}
			var ids []string
			for _, entry := range got.Entries {
				ids = append(ids, string(entry.Session))
			}
			slices.Sort(want[room])
			if !slices.Equal(ids, want[room]) {
				t.Errorf("%s sees in %s\n%v, want\n%v", p.cfg.Node, room, ids, want[room])
			}
		}
	}
	checkNoStateLeaked(t, peers, base)
}

// checkNoStateLeaked checks that the backend has at most one tag of each node in a
// shard, and that the nodes keep nothing of sessions that are gone.
func checkNoStateLeaked(t *testing.T, peers []*testNode, base *MemoryBackend) {
	t.Helper()
	for _, p := range peers {
		p.presence.mu.Lock()
		if p.presence.tombstones != 0 || len(p.presence.dirty) != 0 || len(p.presence.expiries) != 0 {
			t.Errorf("%s: %d tombstones, %d entries to send, %d grace periods", p.cfg.Node, p.presence.tombstones, len(p.presence.dirty), len(p.presence.expiries))
		}
		p.presence.mu.Unlock()
	}
	base.mu.Lock()
	defer base.mu.Unlock()
	for i, tags := range base.revisions {
		seen := map[string]bool{}
		for tag := range tags {
			if seen[nodeOf(tag)] {
				t.Errorf("shard %d has the tags %v", i, tags)
			}
			seen[nodeOf(tag)] = true
		}
	}
}

func (s *modelSession) changePresence(peers []*testNode, kind message.PresenceKind, room message.Room) {
	peers[s.node].Change([]message.PresenceChange{{Kind: kind, Room: room, Session: s.id, Generation: s.generation}})
}

// move opens a newer connection, which rejoins the rooms, and closes the older
// one, before or after that.
func (s *modelSession) move(peers []*testNode, rnd *rand.Rand) {
	old := *s
	s.generation++
	s.node = rnd.IntN(len(peers))
	end := func() {
		for room := range old.rooms {
			old.changePresence(peers, message.PresenceDisconnected, room)
		}
	}
	endFirst := rnd.IntN(2) == 0
	if endFirst {
		end()
	}
	for room := range s.rooms {
		s.changePresence(peers, message.PresenceJoined, room)
	}
	if !endFirst {
		end()
	}
}
