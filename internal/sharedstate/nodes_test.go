package sharedstate

import (
	"context"
	"errors"
	"math"
	"testing"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// nodeNames returns whom a node sees, in order.
func (p *testNode) nodeNames(t *testing.T) (names []string) {
	t.Helper()
	all, err := p.Nodes()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		names = append(names, s.Node)
	}
	return names
}

// seesNodes says whether a node sees exactly so many.
func (p *testNode) seesNodes(count int) bool {
	all, err := p.Nodes()
	return err == nil && len(all) == count
}

// statusOf returns what a node sees of another.
func (p *testNode) statusOf(t *testing.T, node string) message.NodeStatus {
	t.Helper()
	all, err := p.Nodes()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		if s.Node == node {
			return s
		}
	}
	return message.NodeStatus{}
}

func nodesSeeEachOther(t *testing.T, h backendFactory) {
	peers := startNodes(t, h, nil, "node-a", "node-b", "node-c")
	a, b, c := peers[0], peers[1], peers[2]
	eventually(t, "all to see all", func() bool { return a.seesNodes(3) && b.seesNodes(3) && c.seesNodes(3) })
	if got := a.nodeNames(t); got[0] != "node-a" || got[2] != "node-c" {
		t.Errorf("in the order %v", got)
	}
	want := message.NodeStatus{
		Node: "node-b", Deployment: "d1", Color: "green", Version: "v1", Ready: true, Connections: 5,
		HandshakeRate: 2.5, HandshakeLimit: 40, HandshakeP95: 30 * time.Millisecond, MovesAsked: 3,
	}
	b.setStatus(want)
	eventually(t, "b's status to arrive", func() bool {
		got := a.statusOf(t, "node-b")
		got.Age = 0
		return got == want
	})
	want.Ready, want.Draining = false, true
	want.HandshakeRate, want.HandshakeLimit = math.NaN(), math.Inf(1) // nobody's beat fails for that
	b.setStatus(want)
	eventually(t, "b's drain to be seen", func() bool {
		got := c.statusOf(t, "node-b")
		return got.Draining && !got.Ready && got.HandshakeRate == 0 && got.Age < nodeExpiry
	})
	// Who goes is not seen any more; who is killed, as soon as it has been
	// silent for long enough.
	if err := b.Close(within(t, testTimeout)); err != nil {
		t.Fatal(err)
	}
	left := time.Now()
	eventually(t, "b to be gone", func() bool { return a.seesNodes(2) && c.seesNodes(2) })
	if took := time.Since(left); took > nodeExpiry-time.Second {
		t.Errorf("that took %v, as long as for a killed one", took)
	}
	if alive, known := a.nodes.alive(); !known || !alive["node-b"] {
		t.Error("its members no longer count, though they are on their way")
	}
	c.cancel()
	eventually(t, "c to be gone", func() bool { return a.seesNodes(1) })
	if alive, known := a.nodes.alive(); !known || alive["node-c"] {
		t.Error("the members of a killed node count")
	}
}

// A drain compares whom it sent away with who came back.
func returnedSessionsAreCounted(t *testing.T, h backendFactory) {
	peers := startNodes(t, h, nil, "node-a", "node-b", "node-c")
	a, b, c := peers[0], peers[1], peers[2]
	eventually(t, "all to see all", func() bool { return a.seesNodes(3) && b.seesNodes(3) && c.seesNodes(3) })
	const count = 30
	for i := range count {
		secret, s := a.New("ada")
		a.save(t, s)
		peers[1+i%2].resume(t, secret, "ada")
	}
	secret, s := a.New("ada")
	a.save(t, s)
	a.resume(t, secret, "ada") // this one came back where it was
	eventually(t, "all to be counted", func() bool { return a.statusOf(t, "node-a").Returned == count })
	if got := b.statusOf(t, "node-b").Returned + c.statusOf(t, "node-c").Returned; got != 0 {
		t.Errorf("%d of the others are counted", got)
	}
}

// An emptied Redis does not look like the death of all, and what was counted
// stays counted.
func TestNodeStatusesAfterRedisWasEmptied(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	a, b := startPair(t, redisAt(server.URL()), nil)
	eventually(t, "both to see both", func() bool { return a.seesNodes(2) && b.seesNodes(2) })
	moveSession := func() {
		secret, s := a.New("ada")
		a.save(t, s)
		b.resume(t, secret, "ada")
	}
	moveSession()
	eventually(t, "one to be counted", func() bool { return a.statusOf(t, "node-a").Returned == 1 })
	server.Do(t, "FLUSHALL")
	flushed := time.Now()
	eventually(t, "some beats", func() bool {
		if !a.seesNodes(2) || !b.seesNodes(2) {
			t.Fatal("a node is missing")
		}
		return time.Since(flushed) > 3*time.Second
	})
	moveSession()
	eventually(t, "two to be counted", func() bool { return a.statusOf(t, "node-a").Returned == 2 })
}

func TestNodeStatusesWhileRedisIsDown(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	a, b := startPair(t, redisAt(server.URL()), nil)
	eventually(t, "both to see both", func() bool { return a.seesNodes(2) && b.seesNodes(2) })
	server.Kill()
	eventually(t, "nobody to be known any more", func() bool {
		_, err := a.Nodes()
		return errors.Is(err, message.ErrSharedStateUnavailable)
	})
	if _, known := a.nodes.alive(); known {
		t.Error("who is alive is said to be known")
	}
	server.Restart()
	eventually(t, "both to see both again", func() bool { return a.seesNodes(2) && b.seesNodes(2) })
	if got := a.logs.count("Redis can't be reached"); got != 1 {
		t.Errorf("%d lines tell of one outage:\n%s", got, a.logs)
	}
}

// What another version, or somebody else, wrote on the board harms nobody.
func TestForeignNodeStatusesAreIgnored(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	a, b := startPair(t, redisAt(server.URL()), func(c *Config) { c.Prefix = "x:" })
	eventually(t, "both to see both", func() bool { return a.seesNodes(2) && b.seesNodes(2) })
	now := server.Do(t, "ZSCORE", "x:{fleet}:seen", "node-a")
	server.Do(t, "ZADD", "x:{fleet}:seen", now, "node-x", now, "node-y", now, "node-z")
	server.Do(t, "HSET", "x:{fleet}:status", "node-x", "no json", "node-y", `{"node":"node-b","ready":true,"new":[1]}`)
	eventually(t, "the one that makes sense", func() bool { return a.statusOf(t, "node-y").Ready })
	if got := a.nodeNames(t); len(got) != 3 {
		t.Errorf("sees %v", got)
	}
	// After a minute nothing is left of who is gone.
	server.Do(t, "HSET", "x:{fleet}:returned", "node-x", "7")
	server.Do(t, "ZADD", "x:{fleet}:seen", "1", "node-x")
	eventually(t, "node-x to be forgotten", func() bool {
		return server.Do(t, "ZSCORE", "x:{fleet}:seen", "node-x")+server.Do(t, "HGET", "x:{fleet}:status", "node-x")+
			server.Do(t, "HGET", "x:{fleet}:returned", "node-x") == ""
	})
}

func TestNodeStatusesAreUnknownBeforeStart(t *testing.T) {
	n, err := NewMemory(nil, Config{Node: "n"})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close(context.Background())
	if _, err := n.Nodes(); !errors.Is(err, message.ErrSharedStateUnavailable) {
		t.Errorf("Fleet = %v", err)
	}
}
