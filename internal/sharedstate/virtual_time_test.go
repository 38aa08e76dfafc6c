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

// isAnyRoomEvent matches the event that the presence of any room may have
// changed.
func isAnyRoomEvent(e message.NodeEvent) bool {
	return e.Kind == message.EventPresenceChanged && e.Rooms == nil
}

// Each node notices once that another has died, and once that a new one has
// started.
func TestNodeDeathAndReturnAreNoticedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := startMemoryNodes(t, 3, nil)
		a, b, c := peers[0], peers[1], peers[2]
		time.Sleep(3 * time.Second)
		if !a.seesNodes(3) || !b.seesNodes(3) || !c.seesNodes(3) {
			t.Fatal("the nodes do not see each other")
		}
		before := a.countEvents(isAnyRoomEvent)
		time.Sleep(time.Minute)
		if got := a.countEvents(isAnyRoomEvent); got != before {
			t.Errorf("%d events in a minute without changes", got-before)
		}
		c.cancel()
		time.Sleep(nodeExpiry - 2*heartbeatInterval)
		if !a.seesNodes(3) {
			t.Error("the dead node is gone too early")
		}
		time.Sleep(4 * heartbeatInterval)
		if !a.seesNodes(2) || !b.seesNodes(2) {
			t.Error("the dead node is still seen after its expiry")
		}
		for _, p := range []*testNode{a, b} {
			if got := p.countEvents(isAnyRoomEvent) - before; got < 1 || got > 2 {
				t.Errorf("%s got %d events about the death, want 1 or 2", p.cfg.Node, got)
			}
		}
		// A new process with another name replaces it.
		d := new(testNode)
		n, err := NewMemory(a.backend.(*nodeView).MemoryBackend, Config{Node: "node-d"})
		if err != nil {
			t.Fatal(err)
		}
		d.Node = n
		n.Start(Hooks{Notify: d.onEvent})
		defer n.Close(t.Context())
		time.Sleep(2 * heartbeatInterval)
		if !a.seesNodes(3) || !d.seesNodes(3) {
			t.Error("the new node is not seen")
		}
	})
}

// A node sees its own changes at once: a reader waits until they are sent.
func TestANodeSeesItsOwnChangesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startMemoryNodes(t, 1, nil)[0]
		time.Sleep(time.Second) // until it knows the nodes
		for range 20 {
			a.changePresence(message.PresenceJoined, "lobby", "ada", "bob")
			if got := a.usersIn(t, "lobby"); got != "ada bob" {
				t.Fatalf("after the joins it sees %q", got)
			}
			a.changePresence(message.PresenceLeft, "lobby", "ada", "bob")
			if got := a.usersIn(t, "lobby"); got != "" {
				t.Fatalf("after the leaves it sees %q", got)
			}
		}
	})
}

// The sessions of a new node count from its first event on, before the next
// heartbeat lists the node.
func TestSessionsOfANewNodeCountAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startMemoryNodes(t, 1, nil)[0]
		time.Sleep(10*time.Second + heartbeatInterval/10) // until just after a heartbeat
		n, err := NewMemory(a.backend.(*nodeView).MemoryBackend, Config{Node: "node-new"})
		if err != nil {
			t.Fatal(err)
		}
		n.Start(Hooks{})
		defer n.Close(t.Context())
		n.Change([]message.PresenceChange{{Room: "lobby", Session: "s1", User: "ada", Generation: 1}})
		a.waitPresenceEvent(t, "lobby", 1)
		if got := a.usersIn(t, "lobby"); got != "ada" {
			t.Errorf("after the event the room has %q, want ada", got)
		}
		if got := len(a.nodeNames(t)); got != 1 {
			t.Errorf("%d nodes have a status, want 1", got)
		}
	})
}

// After a delay the entries of a dead node are swept, each shard by one of the
// nodes that are alive.
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
			t.Errorf("%v shards were swept too early", x+y)
		}
		time.Sleep(6 * time.Second)
		if x, y := swept(); x+y != shardCount || x != shardCount/2 {
			t.Errorf("the nodes swept %v and %v shards, want half of %d each", x, y, shardCount)
		}
		m := a.backend.(*nodeView)
		m.mu.Lock()
		defer m.mu.Unlock()
		if len(m.rooms) != 0 {
			t.Errorf("%d rooms are left", len(m.rooms))
		}
	})
}

// A node that could not reach the backend for a while returns with all of its
// sessions, whether they were swept or not.
func TestAPartitionedNodeRecovers(t *testing.T) {
	for _, outage := range []time.Duration{3 * time.Second, 8 * time.Second, time.Minute} {
		t.Run(outage.String(), func(t *testing.T) {
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
				time.Sleep(outage)
				if _, err := b.Room(t.Context(), "lobby", 10); err == nil && outage > nodeExpiry {
					t.Error("a node that is cut off claims to know the presence")
				}
				cut.partitioned.Store(false)
				time.Sleep(5 * time.Second)
				for _, p := range peers {
					if got := p.usersIn(t, "lobby"); got != "ada bob" {
						t.Errorf("%s sees %q, want ada and bob", p.cfg.Node, got)
					}
				}
			})
		})
	}
}

// A partitionedBackend cannot be reached while partitioned is true.
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
	for _, b := range batches {
		b.err = message.ErrSharedStateUnavailable
	}
}

func (c *partitionedBackend) tags(ctx context.Context) ([]map[string]int64, error) {
	if c.partitioned.Load() {
		return make([]map[string]int64, shardCount), message.ErrSharedStateUnavailable
	}
	return c.backend.tags(ctx)
}

// While all clients of a node move to another, a reader sees each of them once at
// every moment.
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
				t.Fatalf("%s: %d sessions are in the room, %v", when, got.Count, err)
			}
		}
		for _, user := range users { // each connects to b, rejoins, and closes the old connection
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
			t.Errorf("watchers got %d events although nothing changed", got-before)
		}
	})
}

// After Redis was emptied, watchers get an event only when all nodes have
// resynced: they do not see entries removed and added again.
func TestAnEmptiedRedisDoesNotChangePresence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := startMemoryNodes(t, 3, nil)
		a, b, watcher := peers[0], peers[1], peers[2]
		time.Sleep(2 * time.Second)
		a.changePresence(message.PresenceJoined, "lobby", "ada", "bob")
		time.Sleep(300 * time.Millisecond) // so that the nodes check at different times
		b.changePresence(message.PresenceJoined, "lobby", "cyd")
		time.Sleep(5 * time.Second)
		shared := a.backend.(*nodeView).MemoryBackend
		shared.mu.Lock()
		shared.memoryPresence = memoryPresence{rooms: make(map[message.Room]map[message.SessionID]memoryPresenceEntry)}
		for i := range shared.revisions {
			shared.revisions[i] = make(map[string]int64)
		}
		shared.mu.Unlock()
		a.changePresence(message.PresenceJoined, "lobby", "dee") // so that a notices the loss first
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
				t.Errorf("after an event a watcher sees %+v, %v, want four", got, err)
			}
		}
		if notified == 0 {
			t.Error("the watcher got no event")
		}
	})
}

// A node knows at most maxNodes others, whatever the backend returns.
func TestTheNumberOfNodesIsBounded(t *testing.T) {
	var r nodeRegistry
	if _, known := r.alive(); known {
		t.Error("the alive nodes are known before the first reply")
	}
	var got heartbeatReply
	status, err := json.Marshal(wireStatus{NodeStatus: message.NodeStatus{Ready: true}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxNodes {
		got.nodes = append(got.nodes, nodeReport{node: fmt.Sprintf("n%d", i), status: status})
	}
	r.update(got)
	for i := range 100 {
		r.markSeen(fmt.Sprintf("x%d", i))
	}
	if alive, known := r.alive(); len(alive) != maxNodes || !known {
		t.Errorf("%d nodes are alive, known %v", len(alive), known)
	}
	for i := range maxNodes + 100 {
		r.addReturned(fmt.Sprintf("n%d", i), 1)
		r.addReturned("n0", 1)
	}
	if len(r.pending) != maxNodes || r.pending["n0"] != maxNodes+101 {
		t.Errorf("%d nodes are counted, n0 %d times", len(r.pending), r.pending["n0"])
	}
}

// Nodes of all releases must agree on the shard of a room.
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
