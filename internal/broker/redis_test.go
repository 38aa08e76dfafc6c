package broker

import (
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

func openNode(t *testing.T, cfg Config) *node {
	t.Helper()
	reg := prometheus.NewRegistry()
	cfg.Registerer = reg
	b, err := OpenRedis(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return newNode(t, b, reg)
}

// openNodeUnstarted returns a broker before Start.
func openNodeUnstarted(t *testing.T, cfg Config) *node {
	t.Helper()
	reg := prometheus.NewRegistry()
	cfg.Registerer = reg
	b, err := OpenRedis(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close(testkit.Within(t, testkit.Timeout)) })
	return &node{brokerUnderTest: b, reg: reg}
}

// openNodeWithoutPolling opens a node that does not poll sentinels or clusters
// for the owners of rooms: only an event can make it follow a move.
func openNodeWithoutPolling(t *testing.T, url string) *node {
	t.Helper()
	n := openNodeUnstarted(t, Config{URL: url})
	r := n.brokerUnderTest.(*Redis)
	r.router.interval = time.Hour
	return newNode(t, r, n.reg)
}

// publishUntilReceived publishes payload on a until b receives it. Until then it
// may be lost.
func publishUntilReceived(t *testing.T, a, b *node, room message.Room, payload string) {
	t.Helper()
	testkit.Eventually(t, "broadcasts to flow again in "+string(room), func() bool {
		a.Publish(room, []byte(payload))
		for _, got := range b.received(room) {
			if got == payload {
				return true
			}
		}
		return false
	})
}

func TestSubscriptionsAreRestoredAfterRedisIsKilled(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	a, b := openNode(t, Config{URL: server.URL(), Queue: 10_000}), openNode(t, Config{URL: server.URL()})
	rooms := manyRooms(5000)
	subscribeAll(t, b, rooms)
	server.Kill()
	testkit.Eventually(t, "both to notice", func() bool { return !a.Up() && !b.Up() })
	testkit.Eventually(t, "broker_up to be 0", func() bool { return b.metric(t, "broker_up", "") == 0 })
	// A subscription made during the outage fails at once, and is made later.
	if err := b.Subscribe(testkit.Within(t, testkit.Timeout), "meanwhile"); !errors.Is(err, ErrDown) {
		t.Errorf("Subscribe = %v, want ErrDown", err)
	}
	b.Unsubscribe(rooms[0])
	server.Restart()
	testkit.Eventually(t, "both to come back", func() bool { return a.Up() && b.Up() })
	// Redis answers this one after the subscriptions of all rooms before it.
	b.mustSubscribe(t, "after")
	if got := server.Do(t, "PUBSUB", "NUMSUB", "sy:"+string(rooms[0])); !strings.HasSuffix(got, " 0") {
		t.Errorf("a room that was unsubscribed during the outage: %s", got)
	}
	rooms = append(rooms[1:], "meanwhile", "after")
	for _, room := range rooms {
		a.Publish(room, []byte("again"))
	}
	for _, room := range rooms {
		publishUntilReceived(t, a, b, room, "again") // a broadcast that Redis did not confirm is lost
	}
	if got := b.metric(t, "broker_reconnects_total", ""); got < 1 {
		t.Errorf("broker_reconnects_total = %v, want 1", got)
	}
}

func TestAFrozenRedisIsDetectedAndRecovers(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	n := openNode(t, Config{URL: server.URL()})
	n.mustSubscribe(t, "r")
	publishUntilReceived(t, n, n, "r", "before")
	server.Pause()
	testkit.Eventually(t, "the silence to be noticed", func() bool { return !n.Up() })
	server.Resume()
	testkit.Eventually(t, "to come back", n.Up)
	publishUntilReceived(t, n, n, "r", "after")
}

// go-redis would dial again by itself, and the answers of the new connection
// would count for the earlier one.
func TestAConnectionDialsOnce(t *testing.T) {
	addr := testkit.Redis(t).Addr()
	dial := dialOnceOptions(redis.Options{}, addr).Dialer
	conn, err := dial(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := dial(t.Context(), "tcp", addr); !errors.Is(err, errAlreadyDialed) {
		t.Errorf("a second dial: %v", err)
	}
}

func TestABrokenNetwork(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	proxy := testkit.NewProxy(t, server.Addr())
	n := openNode(t, Config{URL: "redis://" + proxy.Addr()})
	n.mustSubscribe(t, "r")
	publishUntilReceived(t, n, n, "r", "0")
	for i, fault := range []struct {
		name     string
		do, undo func()
	}{
		{"cut", func() { proxy.Refuse(true); proxy.Cut() }, func() { proxy.Refuse(false) }},
		{"silent", proxy.Stall, proxy.Resume},
		{"half closed", func() { proxy.Refuse(true); proxy.HalfClose() }, func() { proxy.Refuse(false) }},
	} {
		fault.do()
		testkit.Eventually(t, fault.name+" to be noticed", func() bool { return !n.Up() })
		fault.undo()
		testkit.Eventually(t, "to come back after "+fault.name, n.Up)
		publishUntilReceived(t, n, n, "r", strconv.Itoa(i+1))
	}
}

func TestRedisMayStartAfterTheService(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	server.Stop()
	n := openNode(t, Config{URL: server.URL()})
	// The answer does not depend on whether the first attempt has failed yet.
	if err := n.Subscribe(testkit.Within(t, testkit.Timeout), "early"); !errors.Is(err, ErrDown) {
		t.Fatalf("Subscribe = %v, want ErrDown", err)
	}
	n.Publish("early", []byte("kept")) // it stays in the queue
	server.Restart()
	publishUntilReceived(t, n, n, "early", "flows")
	if got := n.metric(t, "broker_dropped_total", ""); got != 0 {
		t.Errorf("%v dropped, though the queue had room and the outage was short", got)
	}
	if got := n.metric(t, "broker_reconnects_total", ""); got != 0 {
		t.Errorf("the first connection counts as %v reconnects", got)
	}
}

func TestAWrongPasswordIsReported(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t, "--requirepass", "hunter2")
	right := openNode(t, Config{URL: server.URL()})
	right.mustSubscribe(t, "r")
	for url, want := range map[string]string{
		"redis://" + server.Addr():                "NOAUTH",
		"redis://:hunter3@" + server.Addr():       "WRONGPASS",
		"redis://nobody:hunter3@" + server.Addr(): "WRONGPASS",
	} {
		var out testkit.Logs
		n := openNode(t, Config{URL: url, Logger: out.Logger()})
		if err := n.Subscribe(testkit.Within(t, testkit.Timeout), "r"); !errors.Is(err, ErrDown) {
			t.Errorf("%s: Subscribe = %v, want ErrDown", url, err)
		}
		testkit.Eventually(t, "a line that says "+want, func() bool { return strings.Contains(out.String(), want) })
		if n.Up() {
			t.Errorf("%s: up", url)
		}
		if strings.Contains(out.String(), "hunter") {
			t.Errorf("the log shows the password:\n%s", out.String())
		}
	}
}

func TestAFullQueueDropsItsOldestAndCountsThem(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	a := openNode(t, Config{URL: server.URL(), Queue: 100})
	b := openNode(t, Config{URL: server.URL()})
	b.mustSubscribe(t, "r")
	testkit.Eventually(t, "up", a.Up)
	server.Pause()
	// Broadcasts fail until the silence is noticed. Then the queue keeps them.
	testkit.Eventually(t, "down", func() bool { return !a.Up() && !b.Up() })
	for i := range 1000 {
		a.Publish("r", []byte(strconv.Itoa(i)))
	}
	if got := a.metric(t, "broker_dropped_total", "down"); got != 900 {
		t.Errorf("%v dropped as down, want 900", got)
	}
	server.Resume()
	testkit.Eventually(t, "the rest to go out", func() bool {
		return a.metric(t, "broker_publish_duration_seconds", "") > 0
	})
}

func TestUnconfirmedBroadcastsAreCounted(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	n := openNode(t, Config{URL: server.URL()})
	testkit.Eventually(t, "up", n.Up)
	server.Pause()
	for range 10 {
		n.Publish("r", []byte("x"))
	}
	testkit.Eventually(t, "the loss to be counted", func() bool {
		return n.metric(t, "broker_dropped_total", "failed") == 10
	})
	server.Resume()
}
