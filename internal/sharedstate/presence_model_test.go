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

// A faultyBackend space does to presence what networks and failovers do: changes do
// not arrive, their answer does not, they arrive much later, or the space goes
// back to what it was some time ago.
type faultyBackend struct {
	backend

	mu      sync.Mutex
	rnd     *rand.Rand
	enabled bool
	delayed []*presenceBatch // sent, and not arrived
}

func (f *faultyBackend) applyPresence(ctx context.Context, batches []*presenceBatch) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range batches {
		outcome := 9
		if f.enabled {
			outcome = f.rnd.IntN(10)
		}
		switch outcome {
		case 0:
			l.err = message.ErrSharedStateUnavailable
		case 1:
			l.err = errBackingOff
		case 2: // it arrives, and the answer is lost
			copied := *l
			f.backend.applyPresence(ctx, []*presenceBatch{&copied})
			l.err = message.ErrSharedStateUnavailable
		case 3: // it arrives when it is too late
			copied := *l
			f.delayed = append(f.delayed, &copied)
			l.err = message.ErrSharedStateUnavailable
		default:
			f.backend.applyPresence(ctx, []*presenceBatch{l})
		}
	}
	if len(f.delayed) > 0 && f.enabled && f.rnd.IntN(3) == 0 {
		f.deliverDelayed(ctx)
	}
}

// deliverDelayed lets one through that was held back. Caller holds mu.
func (f *faultyBackend) deliverDelayed(ctx context.Context) {
	i := f.rnd.IntN(len(f.delayed))
	f.backend.applyPresence(ctx, []*presenceBatch{f.delayed[i]})
	f.delayed = slices.Delete(f.delayed, i, i+1)
}

// snapshot returns what brings the presence back to what it is now.
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

// TestPresenceConvergesAfterFaults: sessions come, go and move between nodes
// while the space does all it can. When it has been quiet for a while, every
// node sees exactly who is there.
func TestPresenceConvergesAfterFaults(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { runPresenceFaults(t, rand.New(rand.NewPCG(seed, 7))) })
		})
	}
}

// A modelSession is a session as the test knows it.
type modelSession struct {
	id         message.SessionID
	generation int64
	node       int // where its newest socket is
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
		v := sessions[rnd.IntN(len(sessions))]
		room := rooms[rnd.IntN(len(rooms))]
		switch rnd.IntN(12) {
		case 0, 1, 2, 3:
			v.changePresence(peers, message.PresenceJoined, room)
			v.rooms[room] = true
		case 4, 5:
			v.changePresence(peers, message.PresenceLeft, room)
			delete(v.rooms, room)
		case 6, 7, 8: // to another node, or the same; the old socket ends before or after
			v.move(peers, rnd)
		case 9:
			time.Sleep(time.Duration(rnd.IntN(4000)) * time.Millisecond)
		case 10:
			restore = base.snapshot()
		case 11:
			if rnd.IntN(3) == 0 {
				restore() // a snapshot is used once, or it would be shared
				restore = base.snapshot()
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
	time.Sleep(30 * time.Second) // graces, checks, sweeps
	want := map[message.Room][]string{}
	for _, v := range sessions {
		for room := range v.rooms {
			want[room] = append(want[room], string(v.id))
		}
	}
	for _, p := range peers {
		for _, room := range rooms {
			got, err := p.Room(t.Context(), room, 100)
			if err != nil {
				t.Fatal(err)
			}
			var ids []string
			for _, m := range got.Entries {
				ids = append(ids, string(m.Session))
			}
			slices.Sort(want[room])
			if !slices.Equal(ids, want[room]) {
				t.Errorf("%s sees in %s\n%v, want\n%v", p.cfg.Node, room, ids, want[room])
			}
		}
	}
	checkNoStateLeaked(t, peers, base)
}

// checkNoStateLeaked: each node has one tag a shard, and remembers nobody who
// is gone.
func checkNoStateLeaked(t *testing.T, peers []*testNode, base *MemoryBackend) {
	t.Helper()
	for _, p := range peers {
		p.presence.mu.Lock()
		if p.presence.tombstones != 0 || len(p.presence.dirty) != 0 || len(p.presence.graces) != 0 {
			t.Errorf("%s: %d vacant seats, %d to tell, %d graces", p.cfg.Node, p.presence.tombstones, len(p.presence.dirty), len(p.presence.graces))
		}
		p.presence.mu.Unlock()
	}
	base.mu.Lock()
	defer base.mu.Unlock()
	for i, tags := range base.revisions {
		seen := map[string]bool{}
		for tag := range tags {
			if seen[nodeOf(tag)] {
				t.Errorf("shard %d has %v", i, tags)
			}
			seen[nodeOf(tag)] = true
		}
	}
}

func (v *modelSession) changePresence(peers []*testNode, kind message.PresenceKind, room message.Room) {
	peers[v.node].Change([]message.PresenceChange{{Kind: kind, Room: room, Session: v.id, Generation: v.generation}})
}

// move opens a newer socket, which rejoins the rooms, and ends the older one.
func (v *modelSession) move(peers []*testNode, rnd *rand.Rand) {
	old := *v
	v.generation++
	v.node = rnd.IntN(len(peers))
	end := func() {
		for room := range old.rooms {
			old.changePresence(peers, message.PresenceDisconnected, room)
		}
	}
	first := rnd.IntN(2) == 0
	if first {
		end()
	}
	for room := range v.rooms {
		v.changePresence(peers, message.PresenceJoined, room)
	}
	if !first {
		end()
	}
}
