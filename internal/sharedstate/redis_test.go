package sharedstate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// wantUnavailable fails the test unless a resume says, within the bound, that nobody
// could be asked.
func (p *testNode) wantUnavailable(t *testing.T, secret string, bound time.Duration) {
	t.Helper()
	began := time.Now()
	_, ok, err := p.Resume(within(t, testTimeout), secret, "ada")
	if ok || !errors.Is(err, message.ErrSharedStateUnavailable) {
		t.Errorf("resume while Redis is away: %v, %v; want ErrAway", ok, err)
	}
	if took := time.Since(began); took > bound {
		t.Errorf("it took %v, over %v", took, bound)
	}
}

func TestANodeStartsWithoutRedis(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	server.Stop()
	cfg, open := redisAt(server.URL())(t)
	p := &testNode{logs: &logs{}}
	cfg.Node = "node-a"
	n, err := open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	p.Node = n
	t.Cleanup(func() { _ = n.Close(within(t, testTimeout)) })
	n.Start(Hooks{Notify: p.onEvent})
	secret, s := n.New("ada") // a client connects all the same
	if got := p.trySave(t, s, false); got != message.SaveFailed {
		t.Errorf("save: %v", saveResults[got])
	}
	if n.Up() {
		t.Error("up")
	}
	n.End(s)
	server.Restart()
	eventually(t, "a save to succeed", func() bool { return p.trySave(t, s, false) == message.SaveDone })
	p.resume(t, secret, "ada")
	p.waitEvent(t, "to listen", func(n message.NodeEvent) bool { return n.Kind == message.EventMissed })
	if !n.Up() {
		t.Error("down")
	}
}

// Redis dies, freezes, loses its network, or its data: clients connect as ever,
// nobody waits, and sessions are kept again as soon as that is possible.
func TestSessionsRecoverFromRedisFaults(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	proxy := testkit.NewProxy(t, server.Addr())
	a, b := startPair(t, redisAt("redis://"+proxy.Addr()), nil)
	for _, fault := range []struct {
		name     string
		do, undo func()
		bound    time.Duration // the first one has to find out
	}{
		{"cut", func() { proxy.Refuse(true); proxy.Cut() }, func() { proxy.Refuse(false) }, 2 * time.Second},
		{"stalled", proxy.Stall, proxy.Resume, 2 * time.Second},
		{"frozen", server.Pause, server.Resume, 2 * time.Second},
		{"killed and empty", server.Kill, server.Restart, 2 * time.Second},
	} {
		secret, s := a.New("ada")
		a.save(t, withTwoRooms(s))
		// Whether an attempt that got no answer took it over, nobody knows: so
		// these try it with another one.
		other, o := a.New("ada")
		a.save(t, o)
		fault.do()
		b.wantUnavailable(t, other, fault.bound)
		eventually(t, fault.name+" to be noticed", func() bool { return !b.Up() })
		if got := a.trySave(t, withTwoRooms(withTwoRooms(s)), false); got != message.SaveFailed {
			t.Errorf("%s: save gave %v", fault.name, saveResults[got])
		}
		// After that, hundreds who connect at the same time do not wait.
		var all sync.WaitGroup
		began := time.Now()
		for range 300 {
			all.Go(func() { _, _, _ = b.Resume(context.Background(), other, "ada") })
		}
		all.Wait()
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("%s: 300 handshakes took %v", fault.name, took)
		}
		fault.undo()
		eventually(t, fault.name+": sessions to be kept again", func() bool {
			return a.trySave(t, withTwoRooms(withTwoRooms(s)), false) == message.SaveDone
		})
		eventually(t, fault.name+": sessions to come back", func() bool {
			_, ok, _ := b.Resume(within(t, testTimeout), secret, "ada")
			return ok
		})
		// Notices flow again, too, and both were told that some may be missing.
		before := a.countEvents(func(n message.NodeEvent) bool { return n.Kind == message.EventTakeover })
		eventually(t, fault.name+": notices", func() bool {
			b.sendEvent("node-a", message.NodeEvent{Kind: message.EventTakeover})
			return a.countEvents(func(n message.NodeEvent) bool { return n.Kind == message.EventTakeover }) > before
		})
	}
	missed := a.countEvents(func(n message.NodeEvent) bool { return n.Kind == message.EventMissed })
	if missed < 3 { // at the start, and when connections broke
		t.Errorf("told %d times that notices may be missing, want 3 or more", missed)
	}
	if got, most := a.logs.count("Redis can't be reached"), 4+2; got < 4 || got > most {
		t.Errorf("%d lines tell of 4 outages:\n%s", got, a.logs)
	}
}

// A flushed Redis has neither sessions nor scripts.
func TestAnEmptiedRedis(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	a, b := startPair(t, redisAt(server.URL()), nil)
	secret, s := a.New("ada")
	a.save(t, withTwoRooms(s))
	server.Do(t, "FLUSHALL")
	server.Do(t, "SCRIPT", "FLUSH")
	b.wantNoResume(t, "emptied", secret, "ada")
	if got := a.trySave(t, withTwoRooms(s), true); got != message.SaveMissing {
		t.Errorf("a touch: %v", saveResults[got])
	}
	a.save(t, withTwoRooms(s))
	if got := b.resume(t, secret, "ada"); len(got.Rooms) != 2 || got.Generation != 2 {
		t.Errorf("came back as %+v", got)
	}
}

func TestAFullRedis(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	a, b := startPair(t, redisAt(server.URL()), nil)
	secret, s := a.New("ada")
	a.save(t, withTwoRooms(s))
	server.Do(t, "CONFIG", "SET", "maxmemory", "1")
	for range 3 {
		if got := a.trySave(t, withTwoRooms(withTwoRooms(s)), false); got != message.SaveFailed {
			t.Errorf("save: %v", saveResults[got])
		}
	}
	if !a.Up() {
		t.Error("a Redis that refuses is not one that is away")
	}
	// Whoever comes back gets a fresh session.
	if _, ok, err := b.Resume(within(t, testTimeout), secret, "ada"); ok || err == nil || errors.Is(err, message.ErrSharedStateUnavailable) {
		t.Errorf("resume: %v, %v", ok, err)
	}
	if got := a.logs.count("operation=save err=\"OOM"); got != 1 { // the heartbeat is refused, too
		t.Errorf("%d lines tell of the saves, want 1:\n%s", got, a.logs)
	}
	if got := a.metric(t, "session_saves_total", "failed"); got != 3 {
		t.Errorf("%v saves counted as failed", got)
	}
	if got := b.metric(t, "session_resumes_total", "away"); got != 1 {
		t.Errorf("%v resumes counted", got)
	}
	// A goodbye frees memory, and a touch needs none.
	if got := a.trySave(t, withTwoRooms(s), true); got != message.SaveDone {
		t.Errorf("touch: %v", saveResults[got])
	}
	server.Do(t, "CONFIG", "SET", "maxmemory", "0")
	a.save(t, withTwoRooms(withTwoRooms(s)))
	b.resume(t, secret, "ada")
	if got := a.logs.count("no longer refuses"); got != 1 {
		t.Errorf("%d lines tell that it is over", got)
	}
}

// Who can read Redis, the log or what travels cannot become somebody.
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
	a.waitEvent(t, "of the takeover", func(n message.NodeEvent) bool { return n.Kind == message.EventSessionLive })
	server.Pause()
	b.wantUnavailable(t, secret, 2*time.Second)
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
		t.Errorf("a notice has the secret: %s", got)
	}
}

// What the documentation says a user needs is enough, and nothing more.
func TestTheDocumentedRedisCommandsSuffice(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	server.Do(t, append(strings.Fields("ACL SETUSER app on >hunter2 ~sy:* &sy:*"), aclCommands...)...)
	a, b := startPair(t, redisAt("redis://app:hunter2@"+server.Addr()), func(c *Config) { c.Prefix = "" })
	secret, s := a.New("ada")
	a.save(t, withTwoRooms(s))
	b.resume(t, secret, "ada")
	a.waitEvent(t, "of the takeover", func(n message.NodeEvent) bool { return n.Kind == message.EventTakeover })
	if got := a.logs.String() + b.logs.String(); strings.Contains(got, "WARN") {
		t.Errorf("something was refused:\n%s", got)
	}
	// Without them, it says so once and works on.
	server.Do(t, "ACL", "SETUSER", "less", "on", ">hunter2", "~other:*", "&other:*", "+ping", "+evalsha", "+eval")
	cfg, open := redisAt("redis://less:hunter2@" + server.Addr())(t)
	p := &testNode{logs: &logs{}}
	cfg.Node, cfg.Logger, cfg.Prefix = "node-c", loggerOf(p.logs), ""
	n, err := open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close(within(t, testTimeout))
	p.Node = n
	n.Start(Hooks{})
	for range 3 {
		if got := p.trySave(t, s, false); got != message.SaveFailed {
			t.Errorf("save: %v", saveResults[got])
		}
	}
	eventually(t, "the missing rights to be told", func() bool {
		return p.logs.count("no notices") == 1 && p.logs.count("operation=save") == 1
	})
	if strings.Contains(p.logs.String(), "hunter") {
		t.Error("the log shows the password")
	}
}

// A master that was replaced and could not be demoted answers pings for ever,
// and brings nothing.
func TestAConnectionWithoutEchoIsReplaced(t *testing.T) {
	t.Parallel()
	oldServer, newServer := testkit.StartRedis(t), testkit.StartRedis(t)
	var master atomic.Pointer[testkit.RedisServer]
	master.Store(oldServer)
	cfg, open := redisAt(oldServer.URL())(t)
	cfg.Redis.Dialer = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return redis.NewDialer(&redis.Options{})(ctx, network, master.Load().Addr())
	}
	h := backendFactory(func(*testing.T) (Config, func(Config) (*Node, error)) { return cfg, open })
	a, _ := startPair(t, h, nil)
	master.Store(newServer)
	oldServer.Do(t, "CLIENT", "KILL", "TYPE", "normal") // those that receive live on
	began := time.Now()
	eventually(t, "the node to listen to the new one", func() bool {
		return newServer.Do(t, "PUBSUB", "NUMSUB", cfg.Prefix+"/node/node-a") == cfg.Prefix+"/node/node-a 1"
	})
	t.Logf("found after %v", time.Since(began))
	if got := a.logs.count("another server has taken its place"); got != 1 {
		t.Errorf("%d lines tell of it:\n%s", got, a.logs)
	}
}

func TestAWrongConfigIsRefused(t *testing.T) {
	for _, name := range []string{"", "a b", "a~b", "ä", strings.Repeat("n", 129), "a/b"} {
		if _, err := NewMemory(nil, Config{Node: name}); err == nil || !strings.Contains(err.Error(), "1 to 128") {
			t.Errorf("%q: %v", name, err)
		}
		if _, err := OpenRedis(Config{Node: name, Redis: &redis.UniversalOptions{}}); err == nil {
			t.Errorf("%q was accepted", name)
		}
	}
	if _, err := OpenRedis(Config{Node: "n"}); err == nil {
		t.Error("a node without a way to Redis")
	}
}
