package sharedstate

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"switchyard/internal/broker"
	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

const otherLogWarning = "nodes of another log use this Redis with the same REDIS_PREFIX"

// Two deployments were given one Redis, under different numbers of its databases, and no
// prefix: a ban of one reaches the other, and the log of each says why.
func TestAnotherLogUnderTheSamePrefixIsNamed(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	start := func(node, database, prefix, epoch string) *testNode {
		opts, _, err := broker.Options(broker.Config{URL: server.URL() + "/" + database})
		if err != nil {
			t.Fatal(err)
		}
		p := &testNode{logs: new(testkit.Logs)}
		if p.Node, err = OpenRedis(Config{
			Node: node, Redis: opts, Prefix: prefix, Logger: p.logs.Logger(), announceEvery: 20 * time.Millisecond,
		}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = p.Close(testContext(t)) })
		p.Start(Hooks{Notify: p.onEvent, Epoch: func() message.Epoch { return message.Epoch(epoch) }})
		return p
	}
	production, replica := start("node-a", "0", "", "one"), start("node-b", "0", "", "one")
	staging, apart := start("node-c", "1", "", "two"), start("node-d", "1", "staging:", "three")
	for _, p := range []*testNode{production, replica, staging} {
		testkit.Eventually(t, p.cfg.Node+" names the other log", func() bool { return p.logs.Count(otherLogWarning) > 0 })
	}
	if got := apart.logs.Count(otherLogWarning); got != 0 {
		t.Errorf("a node with a prefix of its own warns:\n%s", apart.logs)
	}
	if err := production.Ban(testContext(t), "ada", time.Minute); err != nil {
		t.Fatal(err)
	}
	isBan := func(e message.NodeEvent) bool { return e.Kind == message.EventBanned }
	replica.waitEvent(t, "of the ban", isBan)
	staging.waitEvent(t, "of the ban", isBan)
	if apart.countEvents(isBan) != 0 {
		t.Error("the ban crossed into the deployment with a prefix of its own")
	}
	testkit.Eventually(t, "production has its two nodes only", func() bool { return len(production.nodeNames(t)) == 2 })
}

// The nodes of one log learn of a new epoch one after the other, which is no reason to
// warn; a node that stays in another epoch is, once.
func TestANewEpochIsNotTakenForAnotherLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var epochs [2]atomic.Value
		epoch := func(i int) func() message.Epoch {
			epochs[i].Store(message.Epoch("e0"))
			return func() message.Epoch { return epochs[i].Load().(message.Epoch) }
		}
		var shared MemoryBackend
		peers := make([]*testNode, 2)
		for i := range peers {
			p := &testNode{logs: new(testkit.Logs)}
			n, err := NewMemory(&shared, Config{Node: []string{"node-0", "node-1"}[i], Logger: p.logs.Logger()})
			if err != nil {
				t.Fatal(err)
			}
			defer n.Close(t.Context())
			p.Node, peers[i] = n, p
			n.Start(Hooks{Notify: p.onEvent, Epoch: epoch(i)})
		}
		for _, next := range []string{"", "e1", "e2", "e3"} {
			epochs[0].Store(message.Epoch(next))
			time.Sleep(announceInterval)
			epochs[1].Store(message.Epoch(next))
			time.Sleep(4 * announceInterval)
		}
		for _, p := range peers {
			if got := p.logs.Count(otherLogWarning); got != 0 {
				t.Errorf("%s warns of its own log:\n%s", p.cfg.Node, p.logs)
			}
		}
		epochs[0].Store(message.Epoch("another"))
		time.Sleep(time.Minute)
		for _, p := range peers {
			if got := p.logs.Count(otherLogWarning); got != 1 {
				t.Errorf("%s warns %d times of another log in a minute, want once:\n%s", p.cfg.Node, got, p.logs)
			}
		}
	})
}
