package session

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

// A troubled space does to presence what networks and failovers do: changes do
// not arrive, their answer does not, they arrive much later, or the space goes
// back to what it was some time ago.
type troubled struct {
	space

	mu   sync.Mutex
	rnd  *rand.Rand
	on   bool
	late []*roll // sent, and not arrived
}

func (f *troubled) present(ctx context.Context, rolls []*roll) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range rolls {
		fate := 9
		if f.on {
			fate = f.rnd.IntN(10)
		}
		switch fate {
		case 0:
			l.err = message.ErrAway
		case 1:
			l.err = errResting
		case 2: // it arrives, and the answer is lost
			twin := *l
			f.space.present(ctx, []*roll{&twin})
			l.err = message.ErrAway
		case 3: // it arrives when it is too late
			twin := *l
			f.late = append(f.late, &twin)
			l.err = message.ErrAway
		default:
			f.space.present(ctx, []*roll{l})
		}
	}
	if len(f.late) > 0 && f.on && f.rnd.IntN(3) == 0 {
		f.arrive(ctx)
	}
}

// arrive lets one through that was held back. Caller holds mu.
func (f *troubled) arrive(ctx context.Context) {
	i := f.rnd.IntN(len(f.late))
	f.space.present(ctx, []*roll{f.late[i]})
	f.late = slices.Delete(f.late, i, i+1)
}

// snapshot returns what brings the presence back to what it is now.
func (s *Space) snapshot() func() {
	copied := func() (rooms map[message.Room]map[message.SessionID]spaceSeat, revisions [shardCount]map[string]int64) {
		rooms = make(map[message.Room]map[message.SessionID]spaceSeat)
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

// TestPresenceIsRightAfterAnyTrouble: sessions come, go and move between nodes
// while the space does all it can. When it has been quiet for a while, every
// node sees exactly who is there.
func TestPresenceIsRightAfterAnyTrouble(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { anyTrouble(t, rand.New(rand.NewPCG(seed, 7))) })
		})
	}
}

// A visitor is a session as the test knows it.
type visitor struct {
	id         message.SessionID
	generation int64
	node       int // where its newest socket is
	rooms      map[message.Room]bool
}

func anyTrouble(t *testing.T, rnd *rand.Rand) {
	const nodes = 3
	var faults []*troubled
	peers := bubbleWith(t, nodes, nil, func(n *Node) {
		f := &troubled{space: n.space, rnd: rand.New(rand.NewPCG(rnd.Uint64(), 1)), on: true}
		n.space = f
		faults = append(faults, f)
	})
	base := faults[0].space.(*member).Space
	rooms := []message.Room{"lobby", "den", "hall", roomBeside("lobby")}
	var visitors []*visitor
	for i := range 12 {
		visitors = append(visitors, &visitor{
			id: message.SessionID(fmt.Sprintf("s%02d", i)), generation: 1, node: rnd.IntN(nodes), rooms: map[message.Room]bool{},
		})
	}
	restore := base.snapshot()
	for range 150 {
		v := visitors[rnd.IntN(len(visitors))]
		room := rooms[rnd.IntN(len(rooms))]
		switch rnd.IntN(12) {
		case 0, 1, 2, 3:
			v.tell(peers, message.PresenceJoined, room)
			v.rooms[room] = true
		case 4, 5:
			v.tell(peers, message.PresenceLeft, room)
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
	for _, f := range faults {
		f.mu.Lock()
		for len(f.late) > 0 {
			f.arrive(t.Context())
		}
		f.on = false
		f.mu.Unlock()
	}
	time.Sleep(30 * time.Second) // graces, checks, sweeps
	want := map[message.Room][]string{}
	for _, v := range visitors {
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
			for _, m := range got.Members {
				ids = append(ids, string(m.Session))
			}
			slices.Sort(want[room])
			if !slices.Equal(ids, want[room]) {
				t.Errorf("%s sees in %s\n%v, want\n%v", p.cfg.Node, room, ids, want[room])
			}
		}
	}
	checkNothingIsLeft(t, peers, base)
}

// checkNothingIsLeft: each node has one tag a shard, and remembers nobody who
// is gone.
func checkNothingIsLeft(t *testing.T, peers []*peer, base *Space) {
	t.Helper()
	for _, p := range peers {
		p.presence.mu.Lock()
		if p.presence.vacant != 0 || len(p.presence.dirty) != 0 || len(p.presence.graces) != 0 {
			t.Errorf("%s: %d vacant seats, %d to tell, %d graces", p.cfg.Node, p.presence.vacant, len(p.presence.dirty), len(p.presence.graces))
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

func (v *visitor) tell(peers []*peer, kind message.PresenceKind, room message.Room) {
	peers[v.node].Change([]message.PresenceChange{{Kind: kind, Room: room, Session: v.id, Generation: v.generation}})
}

// move opens a newer socket, which rejoins the rooms, and ends the older one.
func (v *visitor) move(peers []*peer, rnd *rand.Rand) {
	old := *v
	v.generation++
	v.node = rnd.IntN(len(peers))
	end := func() {
		for room := range old.rooms {
			old.tell(peers, message.PresenceLost, room)
		}
	}
	first := rnd.IntN(2) == 0
	if first {
		end()
	}
	for room := range v.rooms {
		v.tell(peers, message.PresenceJoined, room)
	}
	if !first {
		end()
	}
}
