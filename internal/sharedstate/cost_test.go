package sharedstate

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// countCalls returns how many scripts and publishes Redis has run.
func countCalls(t *testing.T, server *testkit.RedisServer) (total int) {
	t.Helper()
	stats := server.Do(t, "INFO", "commandstats")
	for _, found := range regexp.MustCompile(`cmdstat_(?:evalsha|publish):calls=(\d+)`).FindAllStringSubmatch(stats, -1) {
		n, err := strconv.Atoi(found[1])
		if err != nil {
			t.Fatal(err)
		}
		total += n
	}
	return total
}

// A countingBackend counts the calls that a node's loops make.
type countingBackend struct {
	backend
	calls *atomic.Int64
}

func (c *countingBackend) heartbeat(ctx context.Context, b heartbeat) (heartbeatReply, error) {
	c.calls.Add(1)
	return c.backend.heartbeat(ctx, b)
}

func (c *countingBackend) bans(ctx context.Context) (string, []ban, error) {
	c.calls.Add(1)
	return c.backend.bans(ctx)
}

func (c *countingBackend) applyPresence(ctx context.Context, batches []*presenceBatch) {
	c.calls.Add(1)
	c.backend.applyPresence(ctx, batches)
}

func (c *countingBackend) tags(ctx context.Context) ([]map[string]int64, error) {
	c.calls.Add(1)
	return c.backend.tags(ctx)
}

func (c *countingBackend) sweep(ctx context.Context, shard int, tag string) (more, removed bool, err error) {
	c.calls.Add(1)
	return c.backend.sweep(ctx, shard, tag)
}

func (c *countingBackend) consume(ctx context.Context, rates [measureCount]rate, batch []*usage) {
	c.calls.Add(1)
	c.backend.consume(ctx, rates, batch)
}

func (c *countingBackend) send(ctx context.Context, batch []envelope) error {
	c.calls.Add(1)
	return c.backend.send(ctx, batch)
}

// The cost follows the changes: thousands of idle members cost as much as none.
func TestIdleMembersCauseNoTraffic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int64
		peers := startMemoryNodesWith(t, 2, nil, func(n *Node) { n.backend = &countingBackend{n.backend, &calls} })
		a, b := peers[0], peers[1]
		inTenSeconds := func() int64 {
			before := calls.Load()
			time.Sleep(10 * time.Second)
			return calls.Load() - before
		}
		time.Sleep(3500 * time.Millisecond) // half a second before all tickers
		none := inTenSeconds()
		if none < 2*2*9 {
			t.Errorf("%d calls by two nodes in ten seconds: they are not all counted", none)
		}
		for room := range 50 {
			var users []string
			for i := range 200 {
				users = append(users, fmt.Sprintf("u%d-%d", room, i))
			}
			a.changePresence(message.PresenceJoined, message.Room(fmt.Sprintf("r%d", room)), users[:100]...)
			b.changePresence(message.PresenceJoined, message.Room(fmt.Sprintf("r%d", room)), users[100:]...)
		}
		if changing := inTenSeconds(); changing <= none {
			t.Errorf("10,000 joins cost %d calls, and none cost %d", changing, none)
		}
		for room := range 50 {
			got, err := a.Room(t.Context(), message.Room(fmt.Sprintf("r%d", room)), 200)
			if err != nil || len(got.Entries) != 200 {
				t.Fatalf("room %d: %d members, %v", room, len(got.Entries), err)
			}
		}
		if idle := inTenSeconds(); idle != none {
			t.Errorf("10,000 idle members cost %d calls in ten seconds, none cost %d", idle, none)
		}
	})
}

// Concurrent resumes share round trips, and so do the sessions of a save.
func TestConcurrentCallsShareRoundTrips(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	proxy := testkit.NewProxy(t, server.Addr())
	a, b := startPair(t, withLongTimeout(redisAt("redis://"+proxy.Addr())), nil)
	const clients = 2000
	secrets := make([]string, clients)
	batch := make([]message.SessionSave, clients)
	for i := range batch {
		secrets[i], batch[i].Session = a.New("ada")
	}
	for _, r := range a.Save(testContext(t), batch) {
		if r != message.SaveDone {
			t.Fatal(saveResults[r])
		}
	}
	trips := a.metric(t, "session_operation_duration_seconds", "save")
	if most := float64(clients/maxBatchCalls + 2); trips > most {
		t.Errorf("%d saves took %v round trips, want %v at most", clients, trips, most)
	}
	proxy.Stall() // until all calls are queued, but those of the first round trips
	resumed := make(chan bool, clients)
	for _, secret := range secrets {
		go func() {
			_, ok, _ := b.Resume(testContext(t), secret, "ada")
			resumed <- ok
		}()
	}
	queue := b.backend.(*redisBackend).calls
	testkit.Eventually(t, "the handshakes are queued", func() bool { return len(queue) >= clients-batchWorkers*maxBatchCalls })
	proxy.Resume()
	for range clients {
		if !<-resumed {
			t.Fatal("a session was not resumed")
		}
	}
	trips = b.metric(t, "session_operation_duration_seconds", "ask")
	if most := float64(clients/maxBatchCalls + 2*batchWorkers); trips > most {
		t.Errorf("%d handshakes took %v round trips, want %v at most", clients, trips, most)
	}
}

// The large rooms of a dead node are swept page by page.
func TestALargeRoomIsSweptInPages(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	a, b := startPair(t, withLongTimeout(redisAt(server.URL())), func(c *Config) { c.Prefix = "x:" })
	waitAllVisible(t, a, b)
	var users []string
	for i := range 5 * sweepPageSize {
		users = append(users, fmt.Sprintf("u%d", i))
	}
	b.changePresence(message.PresenceJoined, "hall", users...)
	a.changePresence(message.PresenceJoined, "hall", "ada")
	name := message.Room("hall")
	for range 3 * sweepRoomsPerCall { // many rooms of one shard
		name = roomInSameShard(name)
		b.changePresence(message.PresenceJoined, name, "bob")
	}
	a.waitUsersIn(t, name, "bob")
	shard := shardOf("hall")
	for _, p := range []*testNode{a, b} {
		p.waitTags(t, shard, 2)
	}
	b.cancel() // dies
	stale := staleTag{shard, b.presence.tag(shard)}
	before := countCalls(t, server)
	done := make(chan struct{})
	for range 2 { // two sweeps of one tag do no harm
		go func() { a.sweep(testContext(t), stale); done <- struct{}{} }()
	}
	<-done
	<-done
	if got := a.metric(t, "presence_sweeps_total", ""); got != 1 {
		t.Errorf("the tag was counted %v times as swept, want once", got)
	}
	if got := countCalls(t, server) - before; got < 5 {
		t.Errorf("the sweep took %d scripts, want several small ones", got)
	}
	if got := server.Do(t, "KEYS", fmt.Sprintf("x:{p%02d}:*", shard)); strings.Contains(got, "node-b") || strings.Count(got, ":who:") != 1 {
		t.Errorf("the sweep left %s", got)
	}
	if got := server.Do(t, "HGETALL", fmt.Sprintf("x:{p%02d}:count:hall", shard)); got != "node-a~0 1" {
		t.Errorf("the counts are %s", got)
	}
	a.waitUsersIn(t, "hall", "ada")
	// A late batch of the dead node is refused.
	late := &presenceBatch{shard: shard, tag: stale.tag, minRevision: 1, revision: 99, changes: []entryChange{{entryKey{"hall", "s-x"}, "x", 1, true}}}
	if a.backend.applyPresence(testContext(t), []*presenceBatch{late}); !late.lost {
		t.Errorf("a batch under a swept tag was applied: %+v", late)
	}
}

// waitTags waits until a shard has count tags.
func (p *testNode) waitTags(t *testing.T, shard, count int) {
	t.Helper()
	testkit.Eventually(t, fmt.Sprintf("shard %d has %d tags", shard, count), func() bool {
		all, err := p.backend.tags(testContext(t))
		return err == nil && len(all[shard]) == count
	})
}
