package broker

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// roomOn returns a room whose slot the server owns, in another bucket than the
// rooms of not.
func roomOn(t *testing.T, c *testkit.RedisCluster, server *testkit.RedisServer, not ...message.Room) message.Room {
	t.Helper()
	for i := range 1000 {
		room := message.Room(fmt.Sprintf("room-%d", i))
		bucket := bucketOf(room, clusterBuckets)
		taken := false
		for _, n := range not {
			taken = taken || bucketOf(n, clusterBuckets) == bucket
		}
		if !taken && c.Owner(slotOf(bucketTag(bucket))) == server {
			return room
		}
	}
	t.Fatal("found no room of that server")
	return ""
}

// Nodes of two versions share a cluster in a deploy: all agree on the bucket of a
// room. Each broadcast asks for it several times.
func TestARoomsBucketNeverChanges(t *testing.T) {
	for room, want := range map[message.Room]int{"": 5, "lobby": 19, "a": 44, "room-1": 12, "shop:42": 15} {
		if got := bucketOf(room, clusterBuckets); got != want {
			t.Errorf("%q is in bucket %d, was %d", room, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		room := message.Room(rapid.String().Draw(t, "room"))
		hash := uint32(2166136261) // as the first versions did it
		for i := range len(room) {
			hash = (hash ^ uint32(room[i])) * 16777619
		}
		if got, want := bucketOf(room, clusterBuckets), int(hash%clusterBuckets); got != want {
			t.Errorf("%q is in bucket %d, was %d", room, got, want)
		}
	})
	room := message.Room(strings.Repeat("x", 128))
	if n := testing.AllocsPerRun(100, func() { bucketOf(room, clusterBuckets) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestRoomHashesMatchRedis(t *testing.T) {
	t.Parallel()
	c := testkit.StartRedisCluster(t)
	for i := range clusterBuckets {
		channel := "sy:{" + bucketTag(i) + "}:x"
		if got, want := slotOf(bucketTag(i)), c.Slot(channel); got != want {
			t.Errorf("%s is in slot %d, and in %d for Redis", channel, got, want)
		}
	}
	seen := map[int]int{}
	for _, room := range manyRooms(6400) {
		seen[bucketOf(room, clusterBuckets)]++
	}
	for i := range clusterBuckets {
		if seen[i] < 50 || seen[i] > 150 {
			t.Errorf("bucket %d has %d of 6,400 rooms", i, seen[i])
		}
	}
}

func TestASlotMovesUnderTraffic(t *testing.T) {
	t.Parallel()
	c := testkit.StartRedisCluster(t)
	// Without polling, only the server's own answers make a node follow a slot.
	a, b := openNodeWithoutPolling(t, c.URL()), openNodeWithoutPolling(t, c.URL())
	first := c.Nodes()[0]
	mover := roomOn(t, c, first)
	rooms := []message.Room{mover, roomOn(t, c, first, mover), roomOn(t, c, c.Nodes()[1]), roomOn(t, c, c.Nodes()[2])}
	b.mustSubscribe(t, rooms...)
	traffic := startStream(t, a, rooms...)
	waitForMore(t, b, rooms, 50)
	slot := slotOf(bucketTag(bucketOf(mover, clusterBuckets)))
	for range 3 {
		c.MoveSlot(slot)
		waitForMore(t, b, rooms, 50)
	}
	traffic.stopAndWait(t, b)
	for i, room := range rooms {
		got := traffic.stats(t, b, room)
		t.Logf("%s: %v", room, got)
		if got.duplicated > 0 {
			t.Errorf("%s: %d duplicates", room, got.duplicated)
		}
		if i > 0 && (got.reordered > 0 || got.lost > 0) {
			t.Errorf("%s did not move, but %d were lost and %d reordered", room, got.lost, got.reordered)
		}
	}
	if !a.Up() || !b.Up() {
		t.Error("a node is down after the slot has moved")
	}
}

// One of the masters, without a replica, is killed or freezes. Its rooms wait
// until it comes back, and the rooms of the others are not affected.
func TestALostClusterMasterAffectsOnlyItsRooms(t *testing.T) {
	for name, fault := range map[string]struct{ do, undo func(*testkit.RedisServer) }{
		"killed": {(*testkit.RedisServer).Kill, (*testkit.RedisServer).Restart},
		"frozen": {(*testkit.RedisServer).Pause, (*testkit.RedisServer).Resume},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := testkit.StartRedisCluster(t)
			a, b := openNode(t, Config{URL: c.URL()}), openNode(t, Config{URL: c.URL()})
			victim := c.Nodes()[0]
			gone := roomOn(t, c, victim)
			late := roomOn(t, c, victim, gone)
			others := []message.Room{roomOn(t, c, c.Nodes()[1]), roomOn(t, c, c.Nodes()[2])}
			b.mustSubscribe(t, append(others, gone)...)
			traffic := startStream(t, a, append(others, gone)...)
			waitForMore(t, b, traffic.rooms, 50)
			fault.do(victim)
			testkit.Eventually(t, "both to notice", func() bool { return !a.Up() && !b.Up() })
			if got := b.metric(t, "broker_up", ""); got != 0 {
				t.Errorf("broker_up = %v", got)
			}
			if err := b.Subscribe(testkit.Within(t, testkit.Timeout), late); !errors.Is(err, ErrDown) {
				t.Errorf("Subscribe at the lost node = %v, want ErrDown", err)
			}
			// Far more than could have been queued or in flight before.
			waitForMore(t, b, others, 150)
			fault.undo(victim)
			testkit.Eventually(t, "both to come back", func() bool { return a.Up() && b.Up() })
			waitForMore(t, b, traffic.rooms, 50)
			publishUntilReceived(t, a, b, late, "again")
			traffic.stopAndWait(t, b)
			for _, room := range others {
				got := traffic.stats(t, b, room)
				t.Logf("%s: %v", room, got)
				if got.duplicated > 0 || got.reordered > 0 || got.lost > 0 {
					t.Errorf("%s was affected: %v", room, got)
				}
			}
			t.Logf("%s, of the lost node: %v", gone, traffic.stats(t, b, gone))
		})
	}
}

func TestAClusterMayStartAfterTheService(t *testing.T) {
	t.Parallel()
	c := testkit.StartRedisCluster(t)
	for _, node := range c.Nodes() {
		node.Kill()
	}
	n := openNode(t, Config{URL: c.URL()})
	rooms := manyRooms(20)
	for _, room := range rooms {
		if err := n.Subscribe(testkit.Within(t, testkit.Timeout), room); !errors.Is(err, ErrDown) {
			t.Fatalf("Subscribe = %v, want ErrDown", err)
		}
		n.Publish(room, []byte("kept")) // it stays in the queue
	}
	for _, node := range c.Nodes() {
		node.Restart()
	}
	for _, room := range rooms {
		publishUntilReceived(t, n, n, room, "flows")
	}
	if got := n.metric(t, "broker_dropped_total", ""); got != 0 {
		t.Errorf("%v dropped, though the queue had room and the outage was short", got)
	}
}

// One reachable address beside an unreachable one is enough to find the rest of
// the cluster, with a Redis user who has the permissions in docs/redis.md.
func TestOneReachableAddressAndMinimalPermissionsAreEnough(t *testing.T) {
	t.Parallel()
	c := testkit.StartRedisCluster(t)
	for _, node := range c.Nodes() {
		node.Do(t, "ACL", "SETUSER", "app", "on", ">hunter2", "&sy:*",
			"+spublish", "+ssubscribe", "+sunsubscribe", "+ping", "+cluster|slots")
	}
	n := openNode(t, Config{URL: "redis+cluster://app:hunter2@127.0.0.1:1," + c.Nodes()[2].Addr()})
	for _, node := range c.Nodes() {
		room := roomOn(t, c, node)
		n.mustSubscribe(t, room)
		publishUntilReceived(t, n, n, room, "found")
	}
	testkit.Eventually(t, "up", n.Up)
}

// A server without a configured name sends an address without a host.
func TestAnAddressWithoutAHostUsesTheServersHost(t *testing.T) {
	for addr, want := range map[string]string{":7001": "h:7001", "?:7001": "h:7001", "b:7001": "b:7001", "[::1]:7": "[::1]:7", "": ""} {
		if got := withDefaultHost(addr, "h:7000"); got != want {
			t.Errorf("%q at h:7000 is %q, want %q", addr, got, want)
		}
	}
}

// A master of a cluster is demoted and lives on as a replica. What is published
// there still reaches the others, by the bus of the cluster, until the nodes have
// learned of the new master.
func TestADemotedClusterMaster(t *testing.T) {
	t.Parallel()
	c := testkit.StartRedisCluster(t)
	old := c.Nodes()[0]
	room := roomOn(t, c, old)
	late := openNodeWithoutPolling(t, c.URL()) // it learns of the new master from the old one only
	a := openNode(t, Config{URL: c.URL()})
	late.mustSubscribe(t, room)
	a.mustSubscribe(t, room)
	young := c.Demote(old)
	b := openNode(t, Config{URL: c.URL()})
	b.mustSubscribe(t, room)
	for i, pair := range [][2]*node{{late, b}, {b, late}, {a, b}, {b, a}, {late, a}} {
		publishUntilReceived(t, pair[0], pair[1], room, fmt.Sprint(i))
	}
	channel := a.brokerUnderTest.(*Redis).channel(room)
	testkit.Eventually(t, "all to follow", func() bool {
		return young.Do(t, "PUBSUB", "SHARDNUMSUB", channel) == channel+" 3"
	})
	publishUntilReceived(t, late, a, room, "late to moved")
}

// The servers of a cluster do not know under which address clients reach them, and name
// none: CLUSTER SLOTS and MOVED have ports only. Broadcasts and commands go to the host
// of the URL, which is not the one that a dial without a host reaches.
func TestAClusterThatNamesNoHost(t *testing.T) {
	t.Parallel()
	c := testkit.StartRedisCluster(t, "--cluster-preferred-endpoint-type", "unknown-endpoint", "--bind", "127.0.0.1", "127.0.0.2")
	url := strings.ReplaceAll("redis+cluster://"+c.Nodes()[0].Addr(), "127.0.0.1", "127.0.0.2")
	n := openNode(t, Config{URL: url})
	for _, node := range c.Nodes() {
		room := roomOn(t, c, node)
		n.mustSubscribe(t, room)
		publishUntilReceived(t, n, n, room, "found")
	}
	testkit.Eventually(t, "up", n.Up)
	opts, slots, err := Options(Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	cluster := opts.Cluster()
	cluster.ClusterSlots = slots
	client := redis.NewClusterClient(cluster)
	defer client.Close()
	set := func(key string) error { return client.Set(testkit.Within(t, testkit.Timeout), key, "1", 0).Err() }
	for i := range 20 { // on all masters
		if err := set(fmt.Sprint("key-", i)); err != nil {
			t.Errorf("key %d: %v", i, err)
		}
	}
	room := roomOn(t, c, c.Nodes()[1])
	c.MoveSlot(c.Slot(n.brokerUnderTest.(*Redis).channel(room)))
	publishUntilReceived(t, n, n, room, "moved")
	c.MoveSlot(c.Slot("another key"))
	if err := set("another key"); err != nil {
		t.Errorf("after its slot was moved: %v", err)
	}
	for _, node := range c.Nodes() {
		for line := range strings.Lines(node.Do(t, "CLIENT", "LIST")) {
			// Those of the test itself ask with CLIENT, CLUSTER and the like.
			if strings.Contains(line, "laddr=127.0.0.1:") && !strings.Contains(line, "cmd=client") {
				t.Errorf("a connection leads to 127.0.0.1: %s", line)
			}
		}
	}
}
