package sharedstate

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// countCalls returns how many scripts and publications Redis was asked for.
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

// What costs is what changes: thousands of members who just sit there cost
// what none cost.
func TestIdleMembersCauseNoTraffic(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	a, b := startPair(t, redisAt(server.URL()), nil)
	waitAllVisible(t, a, b)
	perSecond := func() float64 {
		before, began := countCalls(t, server), time.Now()
		eventually(t, "four seconds to pass", func() bool { return time.Since(began) > 4*time.Second })
		return float64(countCalls(t, server)-before) / time.Since(began).Seconds()
	}
	none := perSecond()
	for room := range 50 {
		var users []string
		for i := range 200 {
			users = append(users, fmt.Sprintf("u%d-%d", room, i))
		}
		a.changePresence(message.PresenceJoined, message.Room(fmt.Sprintf("r%d", room)), users[:100]...)
		b.changePresence(message.PresenceJoined, message.Room(fmt.Sprintf("r%d", room)), users[100:]...)
	}
	eventually(t, "10,000 members to be told", func() bool {
		for room := range 50 {
			got, err := a.Room(within(t, testTimeout), message.Room(fmt.Sprintf("r%d", room)), 200)
			if err != nil || len(got.Entries) != 200 {
				return false
			}
		}
		return true
	})
	began := time.Now()
	eventually(t, "notices to be sent", func() bool { return time.Since(began) > 2*time.Second })
	sitting := perSecond()
	t.Logf("%.1f calls a second by two nodes without members, %.1f with 10,000; Redis has %s", none, sitting, usedMemory(t, server))
	if sitting > none+10 {
		t.Errorf("10,000 members who do nothing cost %.1f calls a second, none cost %.1f", sitting, none)
	}
}

func usedMemory(t *testing.T, server *testkit.RedisServer) string {
	t.Helper()
	for line := range strings.Lines(server.Do(t, "INFO", "memory")) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "used_memory_dataset:"); ok {
			return value + " bytes of data"
		}
	}
	return "?"
}

// Those who come at the same time share round trips, and so do sessions that
// are saved together.
func TestConcurrentCallsShareRoundTrips(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	proxy := testkit.NewProxy(t, server.Addr())
	a, b := startPair(t, withLongTimeout(redisAt("redis://"+proxy.Addr())), nil)
	const crowd = 2000
	secrets := make([]string, crowd)
	batch := make([]message.SessionSave, crowd)
	for i := range batch {
		secrets[i], batch[i].Session = a.New("ada")
	}
	for _, r := range a.Save(within(t, testTimeout), batch) {
		if r != message.SaveDone {
			t.Fatal(saveResults[r])
		}
	}
	trips := a.metric(t, "session_operation_duration_seconds", "save")
	if most := float64(crowd/maxBatchCalls + 2); trips > most {
		t.Errorf("%d saves took %v round trips, want %v at most", crowd, trips, most)
	}
	proxy.Delay(20 * time.Millisecond) // so that some wait
	came := make(chan bool, crowd)
	for _, secret := range secrets {
		go func() {
			_, ok, _ := b.Resume(within(t, testTimeout), secret, "ada")
			came <- ok
		}()
	}
	for range crowd {
		if !<-came {
			t.Fatal("one did not come back")
		}
	}
	if trips := b.metric(t, "session_operation_duration_seconds", "ask"); trips > crowd/10 {
		t.Errorf("%d handshakes took %v round trips", crowd, trips)
	}
}

// After a node with large rooms died, they are cleaned page by page.
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
	for range 3 * sweepRoomsPerCall { // and many rooms of one shard
		name = roomInSameShard(name)
		b.changePresence(message.PresenceJoined, name, "bob")
	}
	a.waitUsersIn(t, name, "bob")
	shard := shardOf("hall")
	for _, p := range []*testNode{a, b} {
		p.waitTags(t, shard, 2)
	}
	b.cancel() // dies
	l := staleTag{shard, b.presence.tag(shard)}
	before := countCalls(t, server)
	done := make(chan struct{})
	for range 2 { // two who clean the same do no harm
		go func() { a.sweep(within(t, testTimeout), l); done <- struct{}{} }()
	}
	<-done
	<-done
	if got := countCalls(t, server) - before; got < 5 {
		t.Errorf("%d scripts: all at once", got)
	}
	if got := server.Do(t, "KEYS", fmt.Sprintf("x:{p%02d}:*", shard)); strings.Contains(got, "node-b") || strings.Count(got, ":who:") != 1 {
		t.Errorf("left: %s", got)
	}
	if got := server.Do(t, "HGETALL", fmt.Sprintf("x:{p%02d}:count:hall", shard)); got != "node-a~0 1" {
		t.Errorf("counted: %s", got)
	}
	a.waitUsersIn(t, "hall", "ada")
	// Those who were sent late by the dead one are refused.
	r := &presenceBatch{shard: shard, tag: l.tag, minRevision: 1, revision: 99, changes: []entryChange{{entryKey{"hall", "s-x"}, "x", 1, true}}}
	if a.backend.applyPresence(within(t, testTimeout), []*presenceBatch{r}); !r.lost {
		t.Errorf("taken: %+v", r)
	}
}

// waitTags waits until a node finds so many tags in a shard.
func (p *testNode) waitTags(t *testing.T, shard, count int) {
	t.Helper()
	eventually(t, "tags", func() bool {
		all, err := p.backend.tags(within(t, testTimeout))
		return err == nil && len(all[shard]) == count
	})
}
