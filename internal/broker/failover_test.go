package broker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// openRenewingNode opens a node that renews its connections more often, so that a
// test need not wait for it.
func openRenewingNode(t *testing.T, cfg Config) *node {
	t.Helper()
	n := openNodeUnstarted(t, cfg)
	r := n.brokerUnderTest.(*Redis)
	for _, s := range r.servers {
		s.renewal.every = 100 * time.Millisecond
	}
	return newNode(t, r, n.reg)
}

// subscribers returns how many connections a server has that are subscribed to
// the room.
func subscribers(t *testing.T, server *testkit.RedisServer, room message.Room) string {
	t.Helper()
	return strings.TrimPrefix(server.Do(t, "PUBSUB", "NUMSUB", "sy:"+string(room)), "sy:"+string(room)+" ")
}

// mustExchange checks that broadcasts go both ways between two nodes.
func mustExchange(t *testing.T, a, b *node, what string) {
	t.Helper()
	publishUntilReceived(t, a, b, "r", what+", there")
	publishUntilReceived(t, b, a, "r", what+", back")
}

// A managed service fails over: its address leads to the new primary, and the old
// one lives on as a replica. It keeps its connections and answers every ping. Then
// a node starts.
func TestAManagedFailoverMovesTheOldNodes(t *testing.T) {
	t.Parallel()
	old := testkit.StartRedis(t)
	young := testkit.StartRedisReplica(t, old)
	address := testkit.NewProxy(t, old.Addr())
	var out testkit.Logs
	a := openRenewingNode(t, Config{URL: "redis://" + address.Addr(), Logger: out.Logger()})
	a.mustSubscribe(t, "r")
	publishUntilReceived(t, a, a, "r", "before")

	young.Promote(t, old)
	address.Retarget(young.Addr())
	b := openRenewingNode(t, Config{URL: "redis://" + address.Addr()})
	b.mustSubscribe(t, "r")
	mustExchange(t, a, b, "after the failover")
	testkit.Eventually(t, "both to have left the old primary", func() bool {
		return subscribers(t, old, "r") == "0" && subscribers(t, young, "r") == "2"
	})
	testkit.Eventually(t, "both to be up", func() bool { return a.Up() && b.Up() })
	if got := out.Count("Redis is another server now"); got > 1 {
		t.Errorf("the move is logged %d times:\n%s", got, out.String())
	}

	// And back again.
	old.Promote(t, young)
	address.Retarget(old.Addr())
	testkit.Eventually(t, "both to follow again", func() bool {
		return subscribers(t, old, "r") == "2" && subscribers(t, young, "r") == "0"
	})
	mustExchange(t, a, b, "after the second failover")
}

// The address leads to another Redis, with which the first has nothing in common
// and which is a primary, too.
func TestAnAddressThatLeadsToAnotherRedisIsFollowed(t *testing.T) {
	t.Parallel()
	first, second := testkit.StartRedis(t), testkit.StartRedis(t)
	address := testkit.NewProxy(t, first.Addr())
	a := openRenewingNode(t, Config{URL: "redis://" + address.Addr()})
	a.mustSubscribe(t, "r")
	publishUntilReceived(t, a, a, "r", "before")
	address.Retarget(second.Addr())
	b := openRenewingNode(t, Config{URL: "redis://" + address.Addr()})
	b.mustSubscribe(t, "r")
	mustExchange(t, a, b, "on the second Redis")
	if got := subscribers(t, first, "r"); got != "0" {
		t.Errorf("%s connections are left at the first Redis", got)
	}
}

// The primary was demoted, and the address does not lead to the new one yet. What
// a node publishes now reaches no other server: the broker is down and says why.
func TestADemotedPrimaryIsDown(t *testing.T) {
	t.Parallel()
	old := testkit.StartRedis(t)
	young := testkit.StartRedisReplica(t, old)
	address := testkit.NewProxy(t, old.Addr())
	var out testkit.Logs
	a := openRenewingNode(t, Config{URL: "redis://" + address.Addr(), Logger: out.Logger()})
	a.mustSubscribe(t, "r")
	young.Promote(t, old)
	testkit.Eventually(t, "the broker to be down", func() bool { return !a.Up() && a.metric(t, "broker_up", "") == 0 })
	testkit.Eventually(t, "the log to say why", func() bool { return strings.Contains(out.String(), errReplica.Error()) })
	a.Publish("r", []byte("kept")) // it waits for a primary
	address.Retarget(young.Addr())
	testkit.Eventually(t, "the broker to be up", a.Up)
	// A round trip that takes longer than redisTimeout loses its broadcasts, which is counted.
	testkit.Eventually(t, "what was kept to arrive, or its loss to be counted", func() bool {
		return slices.Contains(a.received("r"), "kept") || a.metric(t, "broker_dropped_total", "") > 0
	})
	publishUntilReceived(t, a, a, "r", "at the new primary")
	if got := subscribers(t, young, "r"); got != "1" {
		t.Errorf("the new primary has %s subscribers, want 1", got)
	}
}

// REDIS_URL is the address of a replica, such as the reader endpoint of a managed
// service.
func TestAReplicaIsRefused(t *testing.T) {
	t.Parallel()
	primary := testkit.StartRedis(t)
	replica := testkit.StartRedisReplica(t, primary)
	for _, server := range []*testkit.RedisServer{primary, replica} { // the permissions in docs/redis.md
		server.Do(t, "ACL", "SETUSER", "app", "on", ">hunter2", "&sy:*", "+publish", "+subscribe", "+unsubscribe", "+ping")
	}
	var out testkit.Logs
	n := openRenewingNode(t, Config{URL: "redis://app:hunter2@" + replica.Addr(), Logger: out.Logger()})
	if err := n.Subscribe(testkit.Within(t, testkit.Timeout), "r"); !errors.Is(err, ErrDown) {
		t.Errorf("Subscribe = %v, want ErrDown", err)
	}
	testkit.Eventually(t, "the log to say why", func() bool { return strings.Contains(out.String(), errReplica.Error()) })
	if n.Up() {
		t.Error("the broker of a replica is up")
	}
	replica.Promote(t, primary)
	publishUntilReceived(t, n, n, "r", "as a primary")
	if got := out.Count(errReplica.Error()); got != 1 {
		t.Errorf("the reason is logged %d times, want once:\n%s", got, out.String())
	}
}

// A service that forbids the questions for the role leads to a primary; one that
// forbids some of them is still asked the others.
func TestARoleThatIsForbiddenToQuery(t *testing.T) {
	t.Parallel()
	renamed := func(commands ...string) (args []string) {
		for _, command := range commands {
			args = append(args, "--rename-command", command, "")
		}
		return args
	}
	primary := testkit.StartRedis(t, renamed("HELLO", "ROLE", "INFO")...)
	n := openRenewingNode(t, Config{URL: primary.URL()})
	n.mustSubscribe(t, "r")
	publishUntilReceived(t, n, n, "r", "no role is known")
	if !n.Up() {
		t.Error("down because Redis does not report its role")
	}
	source := testkit.StartRedis(t)
	host, port, _ := strings.Cut(source.Addr(), ":")
	for _, forbidden := range [][]string{{"HELLO"}, {"HELLO", "ROLE"}} {
		var out testkit.Logs
		replica := testkit.StartRedis(t, append(renamed(forbidden...), "--replicaof", host, port)...)
		openRenewingNode(t, Config{URL: replica.URL(), Logger: out.Logger()})
		testkit.Eventually(t, fmt.Sprintf("a replica to be refused without %v", forbidden), func() bool {
			return strings.Contains(out.String(), errReplica.Error())
		})
	}
}

// An operator ends connections at the server, all kinds of them.
func TestKilledConnectionsComeBack(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	a, b := openRenewingNode(t, Config{URL: server.URL()}), openRenewingNode(t, Config{URL: server.URL()})
	a.mustSubscribe(t, "r")
	b.mustSubscribe(t, "r")
	for _, kind := range []string{"normal", "pubsub"} {
		testkit.Eventually(t, kind+" connections to be killed", func() bool { return server.Do(t, "CLIENT", "KILL", "TYPE", kind) != "0" })
		mustExchange(t, a, b, kind)
	}
}

// Redis or a proxy accepts no new connection for a while (maxclients, a resolver
// that is down): the present ones are kept, and the log says so once.
func TestPresentConnectionsAreKeptWhileNoNewOneIsAccepted(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	proxy := testkit.NewProxy(t, server.Addr())
	var out testkit.Logs
	n := openRenewingNode(t, Config{URL: "redis://" + proxy.Addr(), Logger: out.Logger()})
	n.mustSubscribe(t, "r")
	publishUntilReceived(t, n, n, "r", "before")
	proxy.Refuse(true)
	testkit.Eventually(t, "some renewals to fail", func() bool { return proxy.FaultCounts().Refused >= 3 })
	for i := range 10 {
		payload := fmt.Sprint(i)
		n.Publish("r", []byte(payload))
		n.waitFor(t, "r", payload)
	}
	if got, dropped := n.metric(t, "broker_reconnects_total", ""), n.metric(t, "broker_dropped_total", ""); got != 0 || dropped != 0 {
		t.Errorf("%v reconnects, %v dropped", got, dropped)
	}
	testkit.Eventually(t, "one line about it", func() bool { return out.Count("the present one is kept") == 1 })
}

// Some services answer each PUBLISH with 0. A node must not take that for another
// server again and again.
func TestAServiceThatDoesNotCountSubscribers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeRedis()
		f.countless = true
		n := f.open(t, fakeURL, Config{})
		n.mustSubscribe(t, "r")
		time.Sleep(10 * time.Minute)
		if got := n.metric(t, "broker_reconnects_total", ""); got > 8 { // after 3 s, 6 s, 12 s, ...
			t.Errorf("%v reconnects in ten minutes", got)
		}
		publishUntilReceived(t, n, n, "r", "still")
	})
}

// A node that nobody speaks to notices a failover within seconds, too.
func TestARenewalFollowsWithinSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := newFakeRedis(), newFakeRedis()
		var address atomic.Pointer[fakeRedis]
		address.Store(first)
		n := openDialing(t, fakeURL, Config{}, func(ctx context.Context, network, addr string) (net.Conn, error) {
			return address.Load().dial(ctx, network, addr)
		})
		n.mustSubscribe(t, "r")
		time.Sleep(61 * time.Second)
		address.Store(second)
		time.Sleep(documentedRenewal)
		if synctest.Wait(); second.subscribed() != 1 || first.subscribed() != 0 {
			t.Errorf("%d connections at the second Redis and %d at the first", second.subscribed(), first.subscribed())
		}
		publishUntilReceived(t, n, n, "r", "after")
	})
}
