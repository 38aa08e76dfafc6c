package sharedstate

import (
	"context"
	"encoding/json"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"switchyard/internal/message"
)

// isAnyRoomEvent is the notice that in any room somebody may have come or gone.
func isAnyRoomEvent(n message.NodeEvent) bool {
	return n.Kind == message.EventPresenceChanged && n.Rooms == nil
}

// A node's death is noticed once, by each of the others, and so is its return.
func TestNodeDeathAndReturnAreNoticedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := startMemoryNodes(t, 3, nil)
		a, b, c := peers[0], peers[1], peers[2]
		time.Sleep(3 * time.Second)
		if !a.seesNodes(3) || !b.seesNodes(3) || !c.seesNodes(3) {
			t.Fatal("they don't see each other")
		}
		before := a.countEvents(isAnyRoomEvent)
		time.Sleep(time.Minute)
		if got := a.countEvents(isAnyRoomEvent); got != before {
			t.Errorf("told %d times in a quiet minute", got-before)
		}
		c.cancel()
		time.Sleep(nodeExpiry - 2*heartbeatInterval)
		if !a.seesNodes(3) {
			t.Error("gone before its time")
		}
		time.Sleep(4 * heartbeatInterval)
		if !a.seesNodes(2) || !b.seesNodes(2) {
			t.Error("not gone in time")
		}
		for _, p := range []*testNode{a, b} {
			if got := p.countEvents(isAnyRoomEvent) - before; got < 1 || got > 2 {
				t.Errorf("%s was told %d times of the death", p.cfg.Node, got)
			}
		}
		// Another process under another name takes its place.
		d := &testNode{logs: &logs{}}
		n, err := NewMemory(a.backend.(*nodeView).MemoryBackend, Config{Node: "node-d"})
		if err != nil {
			t.Fatal(err)
		}
		d.Node = n
		n.Start(Hooks{Notify: d.onEvent})
		defer n.Close(t.Context())
		time.Sleep(2 * heartbeatInterval)
		if !a.seesNodes(3) || !d.seesNodes(3) {
			t.Error("the new one is not seen")
		}
	})
}

// Members of a node that has just started count as soon as it tells of them,
// though it is not on the board that was read last.
func TestSessionsOfANewNodeCountAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startMemoryNodes(t, 1, nil)[0]
		time.Sleep(10*time.Second + heartbeatInterval/10) // just after a beat
		n, err := NewMemory(a.backend.(*nodeView).MemoryBackend, Config{Node: "node-new"})
		if err != nil {
			t.Fatal(err)
		}
		n.Start(Hooks{})
		defer n.Close(t.Context())
		n.Change([]message.PresenceChange{{Room: "lobby", Session: "s1", User: "ada", Generation: 1}})
		a.waitPresenceEvent(t, "lobby", 1)
		if got := a.usersIn(t, "lobby"); got != "ada" {
			t.Errorf("when it is told it sees %q", got)
		}
		if got := len(a.nodeNames(t)); got != 1 {
			t.Errorf("%d nodes have a status", got)
		}
	})
}

// What is dead is swept after a while, by one of the living each shard, and
// one that was only away for a moment is not swept at all.
func TestDeadNodesAreSweptOnceAfterADelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := startMemoryNodes(t, 3, nil)
		a, b, c := peers[0], peers[1], peers[2]
		time.Sleep(2 * time.Second)
		for i := range 200 {
			c.changePresence(message.PresenceJoined, message.Room(fmt.Sprintf("r%d", i)), "ada")
		}
		time.Sleep(2 * time.Second)
		swept := func() (float64, float64) {
			return a.metric(t, "presence_sweeps_total", ""), b.metric(t, "presence_sweeps_total", "")
		}
		c.cancel()
		time.Sleep(nodeExpiry + sweepAfter - 2*time.Second)
		if x, y := swept(); x+y != 0 {
			t.Errorf("%v shards swept before their time", x+y)
		}
		time.Sleep(6 * time.Second)
		if x, y := swept(); x+y != shardCount || x != shardCount/2 {
			t.Errorf("swept %v and %v shards, want half of %d each", x, y, shardCount)
		}
		m := a.backend.(*nodeView)
		m.mu.Lock()
		defer m.mu.Unlock()
		if len(m.rooms) != 0 {
			t.Errorf("%d rooms are left", len(m.rooms))
		}
	})
}

// A node that cannot reach the others for a while, but lives, comes back with
// all of its members, swept or not.
func TestAPartitionedNodeRecovers(t *testing.T) {
	for _, away := range []time.Duration{3 * time.Second, 8 * time.Second, time.Minute} {
		t.Run(away.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var cut *partitionedBackend
				peers := startMemoryNodesWith(t, 2, nil, func(n *Node) {
					if n.cfg.Node == "node-1" {
						cut = &partitionedBackend{backend: n.backend}
						n.backend = cut
					}
				})
				a, b := peers[0], peers[1]
				time.Sleep(2 * time.Second)
				a.changePresence(message.PresenceJoined, "lobby", "ada")
				b.changePresence(message.PresenceJoined, "lobby", "bob", "cyd")
				time.Sleep(time.Second)
				cut.partitioned.Store(true)
				b.changePresence(message.PresenceLeft, "lobby", "cyd")
				time.Sleep(away)
				if _, err := b.Room(t.Context(), "lobby", 10); err == nil && away > nodeExpiry {
					t.Error("who is cut off says that it knows")
				}
				cut.partitioned.Store(false)
				time.Sleep(5 * time.Second)
				for _, p := range peers {
					if got := p.usersIn(t, "lobby"); got != "ada bob" {
						t.Errorf("%s sees %q", p.cfg.Node, got)
					}
				}
			})
		})
	}
}

// A partitionedBackend node reaches nobody while it is off.
type partitionedBackend struct {
	backend
	partitioned atomic.Bool
}

func (c *partitionedBackend) heartbeat(ctx context.Context, b heartbeat) (heartbeatReply, error) {
	if c.partitioned.Load() {
		return heartbeatReply{}, message.ErrSharedStateUnavailable
	}
	return c.backend.heartbeat(ctx, b)
}

func (c *partitionedBackend) applyPresence(ctx context.Context, batches []*presenceBatch) {
	if !c.partitioned.Load() {
		c.backend.applyPresence(ctx, batches)
		return
	}
	for _, l := range batches {
		l.err = message.ErrSharedStateUnavailable
	}
}

func (c *partitionedBackend) tags(ctx context.Context) ([]map[string]int64, error) {
	if c.partitioned.Load() {
		return make([]map[string]int64, shardCount), message.ErrSharedStateUnavailable
	}
	return c.backend.tags(ctx)
}

// A whole node is emptied into another while somebody watches all the time: at
// no moment is anybody missing or there twice.
func TestADrainDoesNotChangePresence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := startMemoryNodes(t, 3, nil)
		a, b, watcher := peers[0], peers[1], peers[2]
		time.Sleep(2 * time.Second)
		var users []string
		for i := range 150 {
			users = append(users, fmt.Sprintf("u%03d", i))
		}
		a.changePresence(message.PresenceJoined, "lobby", users...)
		time.Sleep(time.Second)
		before := watcher.countEvents(isPresenceEventOf("lobby"))
		checkRoom := func(when string) {
			t.Helper()
			got, err := watcher.Room(t.Context(), "lobby", 200)
			if err != nil || got.Count != 150 || len(got.Entries) != 150 {
				t.Fatalf("%s: %d are there, %v", when, got.Count, err)
			}
		}
		for _, user := range users { // each connects there, rejoins, and closes the old one
			b.changePresenceAs(2, message.PresenceJoined, "lobby", user)
			time.Sleep(10 * time.Millisecond)
			a.changePresence(message.PresenceDisconnected, "lobby", user)
			checkRoom("while " + user + " moves")
		}
		if err := a.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		for range 300 {
			checkRoom("after the old node has gone")
			time.Sleep(100 * time.Millisecond)
		}
		if got := watcher.countEvents(isPresenceEventOf("lobby")); got != before {
			t.Errorf("watchers were told %d times", got-before)
		}
	})
}

// When Redis was emptied, watchers are told to look once all nodes have told it
// again who is there: nobody is seen to go and come back.
func TestAnEmptiedRedisDoesNotChangePresence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := startMemoryNodes(t, 3, nil)
		a, b, watcher := peers[0], peers[1], peers[2]
		time.Sleep(2 * time.Second)
		a.changePresence(message.PresenceJoined, "lobby", "ada", "bob")
		time.Sleep(300 * time.Millisecond) // the two nodes look at different times
		b.changePresence(message.PresenceJoined, "lobby", "cyd")
		time.Sleep(5 * time.Second)
		shared := a.backend.(*nodeView).MemoryBackend
		shared.mu.Lock()
		shared.memoryPresence = memoryPresence{rooms: make(map[message.Room]map[message.SessionID]memoryPresenceEntry)}
		for i := range shared.revisions {
			shared.revisions[i] = make(map[string]int64)
		}
		shared.mu.Unlock()
		a.changePresence(message.PresenceJoined, "lobby", "dee") // and so it is the first to notice
		seen := watcher.countEvents(isPresenceEventOf("lobby"))
		notified := 0
		for range 600 {
			time.Sleep(10 * time.Millisecond)
			now := watcher.countEvents(isPresenceEventOf("lobby"))
			if now == seen {
				continue
			}
			seen = now
			notified++
			if got, err := watcher.Room(t.Context(), "lobby", 200); err != nil || got.Count != 4 {
				t.Errorf("a watcher that was told to look sees %+v, %v, want four", got, err)
			}
		}
		if notified == 0 {
			t.Error("no watcher was told to look")
		}
	})
}

// What a node can say of the others is bounded, whatever is on the board.
func TestTheNumberOfNodesIsBounded(t *testing.T) {
	var f nodeRegistry
	if _, known := f.alive(); known {
		t.Error("known before it was read")
	}
	var got heartbeatReply
	status, err := json.Marshal(wireStatus{NodeStatus: message.NodeStatus{Ready: true}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxNodes {
		got.nodes = append(got.nodes, nodeReport{node: fmt.Sprintf("n%d", i), status: status})
	}
	f.update(got)
	for i := range 100 {
		f.markSeen(fmt.Sprintf("x%d", i))
	}
	if alive, known := f.alive(); len(alive) != maxNodes || !known {
		t.Errorf("%d alive, known %v", len(alive), known)
	}
	for i := range maxNodes + 100 {
		f.addReturned(fmt.Sprintf("n%d", i), 1)
		f.addReturned("n0", 1)
	}
	if len(f.pending) != maxNodes || f.pending["n0"] != maxNodes+101 {
		t.Errorf("%d nodes counted, n0 %d times", len(f.pending), f.pending["n0"])
	}
}

// Nodes of all versions must agree on where a room is.
func TestARoomsShardNeverChanges(t *testing.T) {
	for room, want := range map[message.Room]int{"": 5, "a": 12, "lobby": 3, "orders:12345": 9} {
		if got := shardOf(room); got != want {
			t.Errorf("%q is in shard %d, was in %d", room, got, want)
		}
	}
	used := map[int]int{}
	for i := range 1600 {
		used[shardOf(message.Room(fmt.Sprintf("room-%d", i)))]++
	}
	for shard := range shardCount {
		if used[shard] < 50 {
			t.Errorf("shard %d has %d of 1,600 rooms", shard, used[shard])
		}
	}
}
