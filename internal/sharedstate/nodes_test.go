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

// nodeNames returns the names of the nodes that a node sees, in order.
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

// seesNodes reports whether a node sees exactly count nodes.
func (p *testNode) seesNodes(count int) bool {
	all, err := p.Nodes()
	return err == nil && len(all) == count
}

// inMemory reports whether a node has the memory backend, whose tests run in
// virtual time.
func (p *testNode) inMemory() bool {
	_, ok := p.backend.(*nodeView)
	return ok
}

// statusOf returns the status of another node.
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

func nodesSeeEachOther(t *testing.T, factory backendFactory) {
	peers := startNodes(t, factory, nil, "node-a", "node-b", "node-c")
	a, b, c := peers[0], peers[1], peers[2]
	testkit.Eventually(t, "all nodes see each other", func() bool { return a.seesNodes(3) && b.seesNodes(3) && c.seesNodes(3) })
	if got := a.nodeNames(t); got[0] != "node-a" || got[2] != "node-c" {
		t.Errorf("the nodes have the order %v", got)
	}
	want := message.NodeStatus{
		Node: "node-b", Deployment: "d1", Color: "green", Version: "v1", Ready: true, Connections: 5,
		HandshakeRate: 2.5, HandshakeLimit: 40, HandshakeP95: 30 * time.Millisecond, MovesAsked: 3,
	}
	b.setStatus(want)
	testkit.Eventually(t, "a has b's status", func() bool {
		got := a.statusOf(t, "node-b")
		got.Age = 0
		return got == want
	})
	want.Ready, want.Draining = false, true
	want.HandshakeRate, want.HandshakeLimit = math.NaN(), math.Inf(1) // which JSON can't encode
	b.setStatus(want)
	testkit.Eventually(t, "c sees that b drains", func() bool {
		got := c.statusOf(t, "node-b")
		return got.Draining && !got.Ready && got.HandshakeRate == 0 && got.Age < nodeExpiry
	})
	// A node that closes says so, and disappears with the next heartbeat of another;
	// a killed node does after nodeExpiry.
	if err := b.Close(testContext(t)); err != nil {
		t.Fatal(err)
	}
	closed := time.Now()
	testkit.Eventually(t, "b is gone", func() bool { return a.seesNodes(2) && c.seesNodes(2) })
	if took := time.Since(closed); a.inMemory() && took > heartbeatInterval+100*time.Millisecond {
		t.Errorf("a closed node disappeared after %v, want one heartbeat", took)
	}
	if alive, known := a.nodes.alive(); !known || !alive["node-b"] {
		t.Error("the sessions of a closed node no longer count, though their clients reconnect")
	}
	c.cancel()
	testkit.Eventually(t, "c is gone", func() bool { return a.seesNodes(1) })
	if alive, known := a.nodes.alive(); !known || alive["node-c"] {
		t.Error("the sessions of a killed node count")
	}
}

// A drain compares how many clients it has moved with how many have returned.
func returnedSessionsAreCounted(t *testing.T, factory backendFactory) {
	peers := startNodes(t, factory, nil, "node-a", "node-b", "node-c")
	a, b, c := peers[0], peers[1], peers[2]
	testkit.Eventually(t, "all nodes see each other", func() bool { return a.seesNodes(3) && b.seesNodes(3) && c.seesNodes(3) })
	const count = 30
	for i := range count {
		secret, s := a.New("ada")
		a.save(t, s)
		peers[1+i%2].resume(t, secret, "ada")
	}
	secret, s := a.New("ada")
	a.save(t, s)
	a.resume(t, secret, "ada") // on the same node, which does not count
	testkit.Eventually(t, "all returned sessions are counted", func() bool { return a.statusOf(t, "node-a").Returned == count })
	if got := b.statusOf(t, "node-b").Returned + c.statusOf(t, "node-c").Returned; got != 0 {
		t.Errorf("%d returned sessions are counted for the other nodes", got)
	}
}

// After Redis was emptied no node looks dead, and the counts go on.
func TestNodeStatusesAfterRedisWasEmptied(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	a, b := startPair(t, withLongTimeout(redisAt(server.URL())), nil)
	testkit.Eventually(t, "the nodes see each other", func() bool { return a.seesNodes(2) && b.seesNodes(2) })
	moveSession := func() {
		secret, s := a.New("ada")
		a.save(t, s)
		b.resume(t, secret, "ada")
	}
	moveSession()
	testkit.Eventually(t, "one returned session is counted", func() bool { return a.statusOf(t, "node-a").Returned == 1 })
	server.Do(t, "FLUSHALL")
	flushed := time.Now()
	testkit.Eventually(t, "some heartbeats", func() bool {
		if !a.seesNodes(2) || !b.seesNodes(2) {
			t.Fatal("a node is missing")
		}
		return time.Since(flushed) > 3*time.Second
	})
	moveSession()
	testkit.Eventually(t, "two returned sessions are counted", func() bool { return a.statusOf(t, "node-a").Returned == 2 })
}

func TestNodeStatusesWhileRedisIsDown(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	a, b := startPair(t, redisAt(server.URL()), nil)
	testkit.Eventually(t, "the nodes see each other", func() bool { return a.seesNodes(2) && b.seesNodes(2) })
	server.Kill()
	testkit.Eventually(t, "the statuses are unknown", func() bool {
		_, err := a.Nodes()
		return errors.Is(err, message.ErrSharedStateUnavailable)
	})
	if _, known := a.nodes.alive(); known {
		t.Error("the node claims to know which nodes are alive")
	}
	server.Restart()
	testkit.Eventually(t, "the nodes see each other again", func() bool { return a.seesNodes(2) && b.seesNodes(2) })
	a.wantOutagesLoggedOnce(t, 1)
}

// Statuses that another release or another program wrote do no harm.
func TestForeignNodeStatusesAreIgnored(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	a, b := startPair(t, withLongTimeout(redisAt(server.URL())), func(c *Config) { c.Prefix = "x:" })
	testkit.Eventually(t, "the nodes see each other", func() bool { return a.seesNodes(2) && b.seesNodes(2) })
	now := server.Do(t, "ZSCORE", "x:{fleet}:seen", "node-a")
	server.Do(t, "ZADD", "x:{fleet}:seen", now, "node-x", now, "node-y", now, "node-z")
	server.Do(t, "HSET", "x:{fleet}:status", "node-x", "no json", "node-y", `{"node":"node-b","ready":true,"new":[1]}`)
	testkit.Eventually(t, "a sees the node with a valid status", func() bool { return a.statusOf(t, "node-y").Ready })
	if got := a.nodeNames(t); len(got) != 3 {
		t.Errorf("a sees %v, want three nodes", got)
	}
	// A minute after its last heartbeat a node is deleted.
	server.Do(t, "HSET", "x:{fleet}:returned", "node-x", "7")
	server.Do(t, "ZADD", "x:{fleet}:seen", "1", "node-x")
	testkit.Eventually(t, "node-x is deleted", func() bool {
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
		t.Errorf("Nodes before Start: %v, want ErrSharedStateUnavailable", err)
	}
}
