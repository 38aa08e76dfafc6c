package sharedstate

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

func (p *testNode) isBanned(user string) bool {
	_, banned := p.Banned(user)
	return banned
}

// isBanEvent matches the event that a user is banned.
func isBanEvent(user string) func(message.NodeEvent) bool {
	return func(e message.NodeEvent) bool { return e.Kind == message.EventBanned && e.User == user }
}

func aBannedUserIsRejectedOnEveryNode(t *testing.T, factory backendFactory) {
	a, b := startPair(t, factory, nil)
	if a.isBanned("eve") || a.isBanned("") {
		t.Error("a user is banned before the first ban")
	}
	if err := a.Ban(testContext(t), "eve", time.Hour); err != nil {
		t.Fatal(err)
	}
	if !a.isBanned("eve") || a.countEvents(isBanEvent("eve")) != 1 {
		t.Error("this node does not know the ban when Ban returns")
	}
	b.waitEvent(t, "that eve is banned", isBanEvent("eve"))
	if left, banned := b.Banned("eve"); !banned || left > time.Hour || left < 59*time.Minute {
		t.Errorf("on the other node: banned %v for %v", banned, left)
	}
	if b.isBanned("ada") || b.isBanned("eve ") || b.isBanned("") {
		t.Error("another user is banned on the other node")
	}
	// A shorter ban does not shorten it.
	if err := b.Ban(testContext(t), "eve", time.Minute); err != nil {
		t.Fatal(err)
	}
	// A node that starts later learns of it, and gets the event to close the
	// connections that it has accepted meanwhile. The event of the shorter ban may
	// still be on its way to it.
	late := startAnotherNode(t, a, "node-c")
	late.waitEvent(t, "about the earlier ban", isBanEvent("eve"))
	testkit.Eventually(t, "the node that starts later to know the longer ban", func() bool {
		left, _ := late.Banned("eve")
		return left >= 59*time.Minute
	})
	for _, p := range []*testNode{a, b, late} {
		if left, banned := p.Banned("eve"); !banned || left < 59*time.Minute {
			t.Errorf("%s: banned %v for %v, want 59 minutes or more", p.cfg.Node, banned, left)
		}
	}
	if a.isBanned("ada") {
		t.Error("another user is banned")
	}
}

// startAnotherNode starts a node on the same backend as another.
func startAnotherNode(t *testing.T, with *testNode, name string) *testNode {
	t.Helper()
	factory := backendFactory(func(*testing.T) (Config, func(Config) (*Node, error)) {
		if m, ok := with.backend.(*nodeView); ok {
			return Config{}, func(c Config) (*Node, error) { return NewMemory(m.MemoryBackend, c) }
		}
		return with.cfg, OpenRedis
	})
	return startNodes(t, factory, nil, name)[0]
}

func aBanExpires(t *testing.T, factory backendFactory) {
	a, b := startPair(t, factory, nil)
	if err := a.Ban(testContext(t), "eve", 1500*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	b.waitEvent(t, "that eve is banned", isBanEvent("eve"))
	testkit.Eventually(t, "the ban ends", func() bool { return !a.isBanned("eve") && !b.isBanned("eve") })
	if err := a.Ban(testContext(t), "mallory", time.Hour); err != nil {
		t.Fatal(err)
	}
	b.waitEvent(t, "that mallory is banned", isBanEvent("mallory"))
	if a.isBanned("eve") || b.isBanned("eve") {
		t.Error("the next ban brought the old one back")
	}
}

func invalidBansAreRejected(t *testing.T, factory backendFactory) {
	a, _ := startPair(t, factory, nil)
	for _, tt := range []struct {
		user  string
		d     time.Duration
		field string
	}{
		{"", time.Hour, "user"}, {strings.Repeat("u", 129), time.Hour, "user"}, {"a\xff", time.Hour, "user"},
		{"eve", 0, "for"}, {"eve", -time.Second, "for"}, {"eve", 721 * time.Hour, "for"},
	} {
		var invalid *message.InvalidError
		if err := a.Ban(testContext(t), tt.user, tt.d); !errors.As(err, &invalid) || invalid.Field != tt.field {
			t.Errorf("%.10q for %v: %v, want an error that names %s", tt.user, tt.d, err, tt.field)
		}
	}
	if a.isBanned("eve") {
		t.Error("an invalid ban took effect")
	}
}

// Pub/sub may lose the event; the next heartbeat finds the ban.
func aBanSpreadsWithoutItsEvent(t *testing.T, factory backendFactory) {
	a, b := startPair(t, factory, nil)
	if _, err := a.backend.ban(testContext(t), []ban{{"eve", time.Hour}, {"mallory", time.Hour}}); err != nil {
		t.Fatal(err)
	}
	lost := time.Now()
	for _, p := range []*testNode{a, b} {
		p.waitEvent(t, "by its heartbeat", isBanEvent("eve"))
		p.waitEvent(t, "by its heartbeat", isBanEvent("mallory"))
	}
	t.Logf("found after %v", time.Since(lost))
}

func tooManyBansAreRefused(t *testing.T, factory backendFactory) {
	a, b := startPair(t, factory, nil)
	many := make([]ban, maxBans)
	for i := range many {
		many[i] = ban{fmt.Sprintf("u%d", i), time.Hour}
	}
	for part := many; len(part) > 0; part = part[banBatchSize:] {
		if refused, err := a.backend.ban(testContext(t), part[:banBatchSize]); err != nil || refused > 0 {
			t.Fatal(refused, err)
		}
	}
	var invalid *message.InvalidError
	if err := b.Ban(testContext(t), "eve", time.Hour); !errors.As(err, &invalid) || !strings.Contains(err.Error(), "20000") {
		t.Errorf("one too many: %v", err)
	}
	testkit.Eventually(t, "both nodes know all bans", func() bool { return b.isBanned("u0") && b.isBanned("u19999") && a.isBanned("u19999") })
	if err := a.Ban(testContext(t), "eve", time.Hour); !errors.As(err, &invalid) || a.isBanned("eve") {
		t.Errorf("one too many: %v, banned %v", err, a.isBanned("eve"))
	}
	if err := a.Ban(testContext(t), "u7", 2*time.Hour); err != nil {
		t.Errorf("a longer ban of a banned user: %v", err)
	}
}

// Bans beyond the limit are accepted once others have expired.
func expiredBansMakeRoom(t *testing.T, factory backendFactory) {
	a := startNodes(t, factory, nil, "node-a")[0]
	many := make([]ban, 20_000)
	for i := range many {
		many[i] = ban{fmt.Sprintf("u%d", i), 1500 * time.Millisecond}
	}
	for part := many; len(part) > 0; part = part[banBatchSize:] {
		if refused, err := a.backend.ban(testContext(t), part[:banBatchSize]); err != nil || refused > 0 {
			t.Fatal(refused, err)
		}
	}
	for _, b := range many {
		a.bans.add(b.user, b.remaining)
	}
	testkit.EventuallyNil(t, "a ban is accepted", func() error { return a.Ban(testContext(t), "eve", time.Hour) })
	if !a.isBanned("eve") || a.isBanned("u0") {
		t.Errorf("banned: eve %v, u0 %v", a.isBanned("eve"), a.isBanned("u0"))
	}
}

func TestBansWhileRedisIsDownOrEmptied(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	a, b := startPair(t, redisAt(server.URL()), nil)
	if err := a.Ban(testContext(t), "eve", time.Hour); err != nil {
		t.Fatal(err)
	}
	b.waitEvent(t, "that eve is banned", isBanEvent("eve"))
	server.Kill()
	testkit.Eventually(t, "Ban reports that the other nodes do not know", func() bool {
		return errors.Is(a.Ban(testContext(t), "mallory", time.Hour), message.ErrSharedStateUnavailable)
	})
	if !a.isBanned("mallory") || a.countEvents(isBanEvent("mallory")) == 0 || !a.isBanned("eve") {
		t.Error("this node does not enforce the bans by itself")
	}
	server.Restart() // empty
	b.waitEvent(t, "that mallory is banned", isBanEvent("mallory"))
	late := startAnotherNode(t, a, "node-c")
	testkit.Eventually(t, "a new node learns both bans", func() bool { return late.isBanned("eve") && late.isBanned("mallory") })
	server.Do(t, "FLUSHALL")
	testkit.Eventually(t, "both bans are in Redis again", func() bool {
		return server.Do(t, "ZCARD", a.cfg.Prefix+"{fleet}:bars") == "2"
	})
	// Then the nodes write nothing more, because all know the same bans.
	version := func() string { return server.Do(t, "GET", a.cfg.Prefix+"{fleet}:bars-state") }
	last, since := version(), time.Now()
	testkit.Eventually(t, "two seconds pass without a change", func() bool {
		if now := version(); now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) > 2*time.Second
	})
}
