package broker

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"sync"
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
	t.Cleanup(func() { _ = b.Close(within(t, testTimeout)) })
	return &node{brokerUnderTest: b, reg: reg}
}

// publishUntilReceived publishes on a until b gets it: what is lost meanwhile may be lost.
func publishUntilReceived(t *testing.T, a, b *node, room message.Room, payload string) {
	t.Helper()
	eventually(t, "publications to flow again in "+string(room), func() bool {
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
	eventually(t, "both to notice", func() bool { return !a.Up() && !b.Up() })
	eventually(t, "broker_up to say so", func() bool { return b.metric(t, "broker_up", "") == 0 })
	// A room joined meanwhile is told at once, and made later.
	if err := b.Subscribe(within(t, testTimeout), "meanwhile"); !errors.Is(err, ErrDown) {
		t.Errorf("Subscribe = %v, want ErrDown", err)
	}
	b.Unsubscribe(rooms[0])
	server.Restart()
	back := time.Now()
	eventually(t, "both to come back", func() bool { return a.Up() && b.Up() })
	if took := time.Since(back); took > 3*time.Second {
		t.Errorf("coming back took %v", took)
	}
	// This one's answer comes after those of all rooms before it.
	b.mustSubscribe(t, "after")
	if got := server.Do(t, "PUBSUB", "NUMSUB", "sy:"+string(rooms[0])); !strings.HasSuffix(got, " 0") {
		t.Errorf("a room left while Redis was away: %s", got)
	}
	rooms = append(rooms[1:], "meanwhile", "after")
	for _, room := range rooms {
		a.Publish(room, []byte("again"))
	}
	for _, room := range rooms {
		publishUntilReceived(t, a, b, room, "again") // one that Redis was too busy to confirm is lost
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
	frozen := time.Now()
	eventually(t, "the silence to be noticed", func() bool { return !n.Up() })
	if took := time.Since(frozen); took > 4500*time.Millisecond {
		t.Errorf("noticing took %v", took)
	}
	eventually(t, "5 s to pass", func() bool { return time.Since(frozen) > 5*time.Second })
	if n.Up() {
		t.Error("up while frozen")
	}
	server.Resume()
	eventually(t, "to come back", n.Up)
	publishUntilReceived(t, n, n, "r", "after")
}

func TestAQuietConnectionIsKept(t *testing.T) {
	t.Parallel()
	n := openNode(t, Config{URL: testkit.Redis(t).URL(), Prefix: testkit.RedisPrefix()})
	eventually(t, "up", n.Up)
	quiet := time.Now()
	eventually(t, "more than the limit to pass", func() bool { return time.Since(quiet) > silenceLimit+time.Second })
	if got := n.metric(t, "broker_reconnects_total", ""); got != 0 || !n.Up() {
		t.Errorf("%v reconnects, up %v", got, n.Up())
	}
}

// go-redis would dial again by itself, and answers would be taken for those of
// the connection before.
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
		notice   time.Duration
	}{
		{"cut", func() { proxy.Refuse(true); proxy.Cut() }, func() { proxy.Refuse(false) }, time.Second},
		{"silent", proxy.Stall, proxy.Resume, 4500 * time.Millisecond},
		{"half closed", func() { proxy.Refuse(true); proxy.HalfClose() }, func() { proxy.Refuse(false) }, time.Second},
	} {
		fault.do()
		start := time.Now()
		eventually(t, fault.name+" to be noticed", func() bool { return !n.Up() })
		if took := time.Since(start); took > fault.notice {
			t.Errorf("%s: noticing took %v", fault.name, took)
		}
		fault.undo()
		eventually(t, "to come back after "+fault.name, n.Up)
		publishUntilReceived(t, n, n, "r", strconv.Itoa(i+1))
	}
}

func TestRedisMayStartAfterTheService(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	server.Stop()
	n := openNode(t, Config{URL: server.URL()})
	// Whether the first attempt has failed yet or not, the answer is the same.
	if err := n.Subscribe(within(t, testTimeout), "early"); !errors.Is(err, ErrDown) {
		t.Fatalf("Subscribe = %v, want ErrDown", err)
	}
	n.Publish("early", []byte("kept")) // it waits
	server.Restart()
	publishUntilReceived(t, n, n, "early", "flows")
	if got := n.metric(t, "broker_dropped_total", ""); got != 0 {
		t.Errorf("%v dropped, though the queue had room and the outage was short", got)
	}
	if got := n.metric(t, "broker_reconnects_total", ""); got != 0 {
		t.Errorf("the first connection counts as %v reconnects", got)
	}
}

// A logBuffer holds what a broker logged.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
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
		var out logBuffer
		n := openNode(t, Config{URL: url, Logger: slog.New(slog.NewTextHandler(&out, nil))})
		if err := n.Subscribe(within(t, testTimeout), "r"); !errors.Is(err, ErrDown) {
			t.Errorf("%s: Subscribe = %v, want ErrDown", url, err)
		}
		eventually(t, "a line that says "+want, func() bool { return strings.Contains(out.String(), want) })
		if n.Up() {
			t.Errorf("%s: up", url)
		}
		if strings.Contains(out.String(), "hunter") {
			t.Errorf("the log shows the password:\n%s", out.String())
		}
	}
}

func TestAnOutageIsLoggedOnce(t *testing.T) {
	server := testkit.StartRedis(t)
	var out logBuffer
	n := openNode(t, Config{URL: server.URL(), Logger: slog.New(slog.NewTextHandler(&out, nil))})
	eventually(t, "up", n.Up)
	server.Kill()
	eventually(t, "the failed attempts to be told", func() bool {
		return strings.Contains(out.String(), "connection refused")
	})
	lines := strings.Count(out.String(), "WARN")
	server.Restart()
	eventually(t, "up again", n.Up)
	if lines > 2 { // the loss, and why it stays so
		t.Errorf("%d warnings:\n%s", lines, out.String())
	}
	if got := strings.Count(out.String(), "connected to Redis"); got != 2 {
		t.Errorf("%d lines tell of a connection, want 2:\n%s", got, out.String())
	}
}

func TestAFullQueueDropsItsOldestAndCountsThem(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	a := openNode(t, Config{URL: server.URL(), Queue: 100})
	b := openNode(t, Config{URL: server.URL()})
	b.mustSubscribe(t, "r")
	eventually(t, "up", a.Up)
	server.Pause()
	// What is sent before the silence is noticed fails; then the queue keeps all.
	eventually(t, "down", func() bool { return !a.Up() && !b.Up() })
	for i := range 1000 {
		a.Publish("r", []byte(strconv.Itoa(i)))
	}
	if got := a.metric(t, "broker_dropped_total", "down"); got != 900 {
		t.Errorf("%v dropped as down, want 900", got)
	}
	server.Resume()
	eventually(t, "the rest to go out", func() bool {
		return a.metric(t, "broker_publish_duration_seconds", "") > 0
	})
}

func TestUnconfirmedPublicationsAreCounted(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	n := openNode(t, Config{URL: server.URL()})
	eventually(t, "up", n.Up)
	server.Pause()
	for range 10 {
		n.Publish("r", []byte("x"))
	}
	eventually(t, "the loss to be counted", func() bool {
		return n.metric(t, "broker_dropped_total", "failed") == 10
	})
	server.Resume()
}

func TestPublishNeverBlocks(t *testing.T) {
	server := testkit.StartRedis(t)
	n := openNode(t, Config{URL: server.URL()})
	eventually(t, "up", n.Up)
	server.Pause()
	start := time.Now()
	for range 10_000 {
		n.Publish("r", []byte("x"))
	}
	if took := time.Since(start); took > redisTimeout {
		t.Errorf("10,000 publishes into a frozen Redis took %v", took)
	}
	server.Resume()
}

func TestCloseIsBoundedWhenRedisIsFrozen(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	n := openNode(t, Config{URL: server.URL()})
	eventually(t, "up", n.Up)
	server.Pause()
	n.Publish("r", []byte("x"))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	if err := n.Close(ctx); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("Close took %v", took)
	}
	server.Resume()
}
