package sharedstate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"switchyard/internal/broker"
	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// wantUnavailable fails the test unless a resume fails with
// ErrSharedStateUnavailable.
func (p *testNode) wantUnavailable(t *testing.T, secret string) {
	t.Helper()
	_, ok, err := p.Resume(testContext(t), secret, "ada")
	if ok || !errors.Is(err, message.ErrSharedStateUnavailable) {
		t.Errorf("resume while Redis is down: %v, %v; want ErrSharedStateUnavailable", ok, err)
	}
}

func TestANodeStartsWithoutRedis(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	server.Stop()
	cfg, open := redisAt(server.URL())(t)
	cfg.Node = "node-a"
	n, err := open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	p := &testNode{Node: n}
	t.Cleanup(func() { _ = n.Close(testContext(t)) })
	n.Start(Hooks{Notify: p.onEvent})
	secret, s := n.New("ada") // which needs no Redis
	if got := p.trySave(t, s, false); got != message.SaveFailed {
		t.Errorf("save: %v", saveResults[got])
	}
	if n.Up() {
		t.Error("the node is up without Redis")
	}
	n.End(s)
	server.Restart()
	testkit.Eventually(t, "a save succeeds", func() bool { return p.trySave(t, s, false) == message.SaveDone })
	p.resume(t, secret, "ada")
	p.waitEvent(t, "that it listens", func(e message.NodeEvent) bool { return e.Kind == message.EventMissed })
	if !n.Up() {
		t.Error("the node is down though Redis is back")
	}
}

// Redis dies, freezes, or loses its network or its data: clients still connect, and
// sessions are saved again as soon as possible.
func TestSessionsRecoverFromRedisFaults(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	proxy := testkit.NewProxy(t, server.Addr())
	a, b := startPair(t, redisAt("redis://"+proxy.Addr()), nil)
	for _, fault := range []struct {
		name     string
		do, undo func()
	}{
		{"cut", func() { proxy.Refuse(true); proxy.Cut() }, func() { proxy.Refuse(false) }},
		{"stalled", proxy.Stall, proxy.Resume},
		{"frozen", server.Pause, server.Resume},
		{"killed and empty", server.Kill, server.Restart},
	} {
		secret, s := a.New("ada")
		a.save(t, withTwoRooms(s))
		// A resume without an answer may have taken the session over. So these
		// attempts use another session.
		other, o := a.New("ada")
		a.save(t, o)
		fault.do()
		b.wantUnavailable(t, other)
		testkit.Eventually(t, fault.name+": the node notices", func() bool { return !b.Up() })
		if got := a.trySave(t, withTwoRooms(withTwoRooms(s)), false); got != message.SaveFailed {
			t.Errorf("%s: save returned %v", fault.name, saveResults[got])
		}
		fault.undo()
		testkit.Eventually(t, fault.name+": sessions are saved again", func() bool {
			return a.trySave(t, withTwoRooms(withTwoRooms(s)), false) == message.SaveDone
		})
		testkit.Eventually(t, fault.name+": sessions resume again", func() bool {
			_, ok, _ := b.Resume(testContext(t), secret, "ada")
			return ok
		})
		// Events arrive again too.
		isTakeover := func(e message.NodeEvent) bool { return e.Kind == message.EventTakeover }
		before := a.countEvents(isTakeover)
		testkit.Eventually(t, fault.name+": events arrive again", func() bool {
			b.sendEvent("node-a", message.NodeEvent{Kind: message.EventTakeover})
			return a.countEvents(isTakeover) > before
		})
	}
	missed := a.countEvents(func(e message.NodeEvent) bool { return e.Kind == message.EventMissed })
	if missed < 3 { // at the start, and when connections broke
		t.Errorf("%d events that others may have been missed, want 3 or more", missed)
	}
	a.wantOutagesLoggedOnce(t, 4)
}

// wantOutagesLoggedOnce checks that at least so many outages are logged, and each
// once. A busy machine may add some.
func (p *testNode) wantOutagesLoggedOnce(t *testing.T, least int) {
	t.Helper()
	down, up := p.logs.Count("Redis can't be reached: "), p.logs.Count("Redis can be reached")
	if down < least || down > up {
		t.Errorf("%d outages are logged %d times, and %d times that Redis can be reached:\n%s", least, down, up, p.logs)
	}
}

// An emptied Redis has neither sessions nor scripts.
func TestAnEmptiedRedis(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	a, b := startPair(t, withLongTimeout(redisAt(server.URL())), nil)
	secret, s := a.New("ada")
	a.save(t, withTwoRooms(s))
	server.Do(t, "FLUSHALL")
	server.Do(t, "SCRIPT", "FLUSH")
	b.wantNoResume(t, "an emptied Redis", secret, "ada")
	if got := a.trySave(t, withTwoRooms(s), true); got != message.SaveMissing {
		t.Errorf("a touch: %v", saveResults[got])
	}
	a.save(t, withTwoRooms(s))
	if got := b.resume(t, secret, "ada"); len(got.Rooms) != 2 || got.Generation != 2 {
		t.Errorf("resumed as %+v", got)
	}
}

func TestAFullRedis(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	a, b := startPair(t, withLongTimeout(redisAt(server.URL())), nil)
	secret, s := a.New("ada")
	a.save(t, withTwoRooms(s))
	server.Do(t, "CONFIG", "SET", "maxmemory", "1")
	for range 3 {
		if got := a.trySave(t, withTwoRooms(withTwoRooms(s)), false); got != message.SaveFailed {
			t.Errorf("save: %v", saveResults[got])
		}
	}
	if !a.Up() || a.State() != stateRefused || a.metric(t, "session_up", "") != 0 {
		t.Errorf("state %s, session_up %v", a.State(), a.metric(t, "session_up", ""))
	}
	// A client that reconnects gets a new session.
	if _, ok, err := b.Resume(testContext(t), secret, "ada"); ok || err == nil || errors.Is(err, message.ErrSharedStateUnavailable) {
		t.Errorf("resume: %v, %v", ok, err)
	}
	if got := a.logs.Count("operation=save err=\"OOM"); got != 1 { // of the saves; the heartbeats are refused too
		t.Errorf("the refused saves are logged %d times, want 1:\n%s", got, a.logs)
	}
	if got := a.metric(t, "session_saves_total", "failed"); got != 3 {
		t.Errorf("%v saves are counted as failed, want 3", got)
	}
	if got := b.metric(t, "session_resumes_total", "away"); got != 1 {
		t.Errorf("%v resumes are counted as unavailable, want 1", got)
	}
	// A touch needs no memory.
	if got := a.trySave(t, withTwoRooms(s), true); got != message.SaveDone {
		t.Errorf("touch: %v", saveResults[got])
	}
	server.Do(t, "CONFIG", "SET", "maxmemory", "0")
	a.save(t, withTwoRooms(withTwoRooms(s)))
	b.resume(t, secret, "ada")
	testkit.Eventually(t, "Redis to count as up again", func() bool { return a.State() == stateUp && a.metric(t, "session_up", "") == 1 })
	if got := a.logs.Count("operation=save"); got != 2 {
		t.Errorf("the end is logged %d times, want 1", got)
	}
}

// A reader of Redis, of the log or of pub/sub cannot take over a session.
func TestASecretIsNeverStoredOrLogged(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	a, b := startPair(t, redisAt(server.URL()), nil)
	secret, s := a.New("ada")
	_, rest, _ := strings.Cut(secret, ".")
	a.save(t, withTwoRooms(s))
	taken := b.resume(t, secret, "ada")
	b.AnnounceLive(taken)
	b.wantNoResume(t, "another user", secret, "eve")
	a.waitEvent(t, "about the takeover", func(e message.NodeEvent) bool { return e.Kind == message.EventSessionLive })
	server.Pause()
	b.wantUnavailable(t, secret)
	server.Resume()
	for key := range strings.FieldsSeq(server.Do(t, "KEYS", "*")) {
		if strings.Contains(key, rest) || strings.Contains(server.Do(t, "DUMP", key), rest) {
			t.Errorf("%s has the secret", key)
		}
	}
	if got := a.logs.String() + b.logs.String(); strings.Contains(got, rest) {
		t.Errorf("the log has the secret:\n%s", got)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if got := fmt.Sprintf("%+v %+v", a.events, taken); strings.Contains(got, rest) {
		t.Errorf("an event has the secret: %s", got)
	}
}

// A Redis user with the documented rights, and no others, is enough.
func TestTheDocumentedRedisCommandsSuffice(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	server.Do(t, append(strings.Fields("ACL SETUSER app on >hunter2 ~sy:* &sy:*"), aclCommands...)...)
	a, b := startPair(t, withLongTimeout(redisAt("redis://app:hunter2@"+server.Addr())), func(c *Config) { c.Prefix = "" })
	secret, s := a.New("ada")
	a.save(t, withTwoRooms(s))
	b.resume(t, secret, "ada")
	a.waitEvent(t, "about the takeover", func(e message.NodeEvent) bool { return e.Kind == message.EventTakeover })
	if got := a.logs.String() + b.logs.String(); strings.Contains(got, "WARN") {
		t.Errorf("Redis refused something:\n%s", got)
	}
	// A node without these rights logs it once and continues.
	server.Do(t, "ACL", "SETUSER", "less", "on", ">hunter2", "~other:*", "&other:*", "+ping", "+evalsha", "+eval")
	cfg, open := redisAt("redis://less:hunter2@" + server.Addr())(t)
	p := &testNode{logs: new(testkit.Logs)}
	cfg.Node, cfg.Logger, cfg.Prefix = "node-c", p.logs.Logger(), ""
	n, err := open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close(testContext(t))
	p.Node = n
	n.Start(Hooks{})
	for range 3 {
		if got := p.trySave(t, s, false); got != message.SaveFailed {
			t.Errorf("save: %v", saveResults[got])
		}
	}
	testkit.Eventually(t, "the missing rights are logged", func() bool {
		return p.logs.Count("no events") == 1 && p.logs.Count("operation=save") == 1
	})
	if strings.Contains(p.logs.String(), "hunter") {
		t.Error("the log shows the password")
	}
}

// Each time that Redis refuses the subscription, the node logs it once, also with
// the same text as the last time.
func TestEachRefusedSubscriptionIsLogged(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	server.Do(t, "ACL", "SETUSER", "app", "on", ">hunter2", "~*", "&*", "+@all")
	p := startNodes(t, withLongTimeout(redisAt("redis://app:hunter2@"+server.Addr())), nil, "node-a")[0]
	listening := func(e message.NodeEvent) bool { return e.Kind == message.EventMissed }
	for outage := 1; outage <= 2; outage++ {
		server.Do(t, "ACL", "SETUSER", "app", "resetchannels", "&other") // which ends the subscription
		testkit.Eventually(t, fmt.Sprintf("the log has refusal %d", outage), func() bool { return p.logs.Count("no events") == outage })
		server.Do(t, "ACL", "SETUSER", "app", "resetchannels", "&*")
		testkit.Eventually(t, "the node listens again", func() bool { return p.countEvents(listening) == outage+1 })
	}
}

// A master that was replaced and could not be demoted answers pings for ever, but
// brings no events.
func TestAConnectionWithoutEchoIsReplaced(t *testing.T) {
	t.Parallel()
	oldServer, newServer := testkit.StartRedis(t), testkit.StartRedis(t)
	var master atomic.Pointer[testkit.RedisServer]
	master.Store(oldServer)
	cfg, open := redisAt(oldServer.URL())(t)
	cfg.Redis.Dialer = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return redis.NewDialer(&redis.Options{})(ctx, network, master.Load().Addr())
	}
	factory := backendFactory(func(*testing.T) (Config, func(Config) (*Node, error)) { return cfg, open })
	a, _ := startPair(t, factory, nil)
	master.Store(newServer)
	oldServer.Do(t, "CLIENT", "KILL", "TYPE", "normal") // only the receiving connections stay
	began := time.Now()
	testkit.Eventually(t, "the node listens to the new master", func() bool {
		return newServer.Do(t, "PUBSUB", "NUMSUB", cfg.Prefix+"/node/node-a") == cfg.Prefix+"/node/node-a 1"
	})
	t.Logf("found after %v", time.Since(began))
	if got := a.logs.Count("another server has taken its place"); got != 1 {
		t.Errorf("the cause is logged %d times, want 1:\n%s", got, a.logs)
	}
}

func TestAWrongConfigIsRefused(t *testing.T) {
	for _, name := range []string{"", "a b", "a~b", "ä", strings.Repeat("n", 129), "a/b"} {
		if _, err := NewMemory(nil, Config{Node: name}); err == nil || !strings.Contains(err.Error(), "1 to 128") {
			t.Errorf("%q: %v", name, err)
		}
		if _, err := OpenRedis(Config{Node: name, Redis: &redis.UniversalOptions{}}); err == nil {
			t.Errorf("the name %q was accepted", name)
		}
	}
	if _, err := OpenRedis(Config{Node: "n"}); err == nil {
		t.Error("OpenRedis accepts a config without options for Redis")
	}
}

// A Redis server, or one that only resembles it, counts no error for what a node sends:
// neither for a command that it does not know, such as those of a library for managed
// services, nor for one that the documented user may not use.
func TestRedisRefusesNoQueryOfANode(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	server.Do(t, append(strings.Fields("ACL SETUSER app on >hunter2 ~sy:* &sy:*"), aclCommands...)...)
	url := "redis://app:hunter2@" + server.Addr()
	b, err := broker.OpenRedis(broker.Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	b.Start(func(message.Room, []byte) {})
	defer b.Close(testContext(t))
	a, other := startPair(t, withLongTimeout(redisAt(url)), func(c *Config) { c.Prefix = "" })
	secret, s := a.New("ada")
	a.save(t, withTwoRooms(s))
	other.resume(t, secret, "ada")
	testkit.Eventually(t, "the broker is up", b.Up)
	for line := range strings.Lines(server.Do(t, "INFO", "errorstats")) {
		// A script is sent when the server does not have it yet.
		if strings.HasPrefix(line, "errorstat_") && !strings.HasPrefix(line, "errorstat_NOSCRIPT:") {
			t.Errorf("Redis has counted %s", line)
		}
	}
}

// Sessions and presence are kept in a cluster whose servers name only their ports.
func TestAClusterThatNamesNoHost(t *testing.T) {
	t.Parallel()
	c := testkit.StartRedisCluster(t, "--cluster-preferred-endpoint-type", "unknown-endpoint", "--bind", "127.0.0.1", "127.0.0.2")
	url := strings.ReplaceAll(c.URL(), "127.0.0.1", "127.0.0.2")
	a, b := startPair(t, withLongTimeout(redisAt(url)), nil)
	waitAllVisible(t, a, b)
	for i := range 20 { // on all masters
		user := fmt.Sprint("user-", i)
		secret, s := a.New(user)
		a.save(t, withTwoRooms(s))
		b.resume(t, secret, user)
	}
	a.changePresence(message.PresenceJoined, "lobby", "ada")
	b.waitUsersIn(t, "lobby", "ada")
}
