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

func isRemoval(user string) func(message.NodeEvent) bool {
	return func(n message.NodeEvent) bool { return n.Kind == message.EventBanned && n.User == user }
}

func aBannedUserIsRejectedOnEveryNode(t *testing.T, h backendFactory) {
	a, b := startPair(t, h, nil)
	if a.isBanned("eve") || a.isBanned("") {
		t.Error("barred before")
	}
	if err := a.Ban(within(t, testTimeout), "eve", time.Hour); err != nil {
		t.Fatal(err)
	}
	if !a.isBanned("eve") || a.countEvents(isRemoval("eve")) != 1 {
		t.Error("this node does not know when Bar returns")
	}
	b.waitEvent(t, "that eve is removed", isRemoval("eve"))
	if left, banned := b.Banned("eve"); !banned || left > time.Hour || left < 59*time.Minute {
		t.Errorf("on the other node: %v, %v", left, banned)
	}
	if b.isBanned("ada") || b.isBanned("eve ") || b.isBanned("") {
		t.Error("somebody else is barred")
	}
	// A shorter one does not let her in earlier.
	if err := b.Ban(within(t, testTimeout), "eve", time.Minute); err != nil {
		t.Fatal(err)
	}
	// A node that starts later learns it, and closes what it let in meanwhile.
	late := startAnotherNode(t, a, "node-c")
	late.waitEvent(t, "of the bar it missed", isRemoval("eve"))
	for _, p := range []*testNode{a, b, late} {
		if left, banned := p.Banned("eve"); !banned || left < 59*time.Minute {
			t.Errorf("%s: %v, %v", p.cfg.Node, left, banned)
		}
	}
	if a.isBanned("ada") {
		t.Error("somebody else is barred")
	}
}

// startAnotherNode opens another node where one is.
func startAnotherNode(t *testing.T, with *testNode, name string) *testNode {
	t.Helper()
	h := backendFactory(func(*testing.T) (Config, func(Config) (*Node, error)) {
		if m, ok := with.backend.(*nodeView); ok {
			return Config{}, func(c Config) (*Node, error) { return NewMemory(m.MemoryBackend, c) }
		}
		return with.cfg, OpenRedis
	})
	return startNodes(t, h, nil, name)[0]
}

func aBanExpires(t *testing.T, h backendFactory) {
	a, b := startPair(t, h, nil)
	if err := a.Ban(within(t, testTimeout), "eve", 1500*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	b.waitEvent(t, "that eve is removed", isRemoval("eve"))
	eventually(t, "the bar to end", func() bool { return !a.isBanned("eve") && !b.isBanned("eve") })
	if err := a.Ban(within(t, testTimeout), "mallory", time.Hour); err != nil {
		t.Fatal(err)
	}
	b.waitEvent(t, "that mallory is removed", isRemoval("mallory"))
	if a.isBanned("eve") || b.isBanned("eve") {
		t.Error("the next bar brought the old one back")
	}
}

func invalidBansAreRejected(t *testing.T, h backendFactory) {
	a, _ := startPair(t, h, nil)
	for _, tt := range []struct {
		user  string
		d     time.Duration
		field string
	}{
		{"", time.Hour, "user"}, {strings.Repeat("u", 129), time.Hour, "user"}, {"a\xff", time.Hour, "user"},
		{"eve", 0, "for"}, {"eve", -time.Second, "for"}, {"eve", 721 * time.Hour, "for"},
	} {
		var invalid *message.InvalidError
		if err := a.Ban(within(t, testTimeout), tt.user, tt.d); !errors.As(err, &invalid) || invalid.Field != tt.field {
			t.Errorf("%.10q for %v: %v, want an error that names %s", tt.user, tt.d, err, tt.field)
		}
	}
	if a.isBanned("eve") {
		t.Error("barred all the same")
	}
}

// A notice may be lost; the board is not.
func aBanSpreadsWithoutItsEvent(t *testing.T, h backendFactory) {
	a, b := startPair(t, h, nil)
	if _, err := a.backend.ban(within(t, testTimeout), []ban{{"eve", time.Hour}, {"mallory", time.Hour}}); err != nil {
		t.Fatal(err)
	}
	lost := time.Now()
	for _, p := range []*testNode{a, b} {
		p.waitEvent(t, "by the board", isRemoval("eve"))
		p.waitEvent(t, "by the board", isRemoval("mallory"))
	}
	t.Logf("found after %v", time.Since(lost))
}

func tooManyBansAreRefused(t *testing.T, h backendFactory) {
	a, b := startPair(t, h, nil)
	many := make([]ban, maxBans)
	for i := range many {
		many[i] = ban{fmt.Sprintf("u%d", i), time.Hour}
	}
	for part := many; len(part) > 0; part = part[banBatchSize:] {
		if refused, err := a.backend.ban(within(t, testTimeout), part[:banBatchSize]); err != nil || refused > 0 {
			t.Fatal(refused, err)
		}
	}
	var invalid *message.InvalidError
	if err := b.Ban(within(t, testTimeout), "eve", time.Hour); !errors.As(err, &invalid) || !strings.Contains(err.Error(), "20000") {
		t.Errorf("one too many: %v", err)
	}
	eventually(t, "all to be known", func() bool { return b.isBanned("u0") && b.isBanned("u19999") && a.isBanned("u19999") })
	if err := a.Ban(within(t, testTimeout), "eve", time.Hour); !errors.As(err, &invalid) || a.isBanned("eve") {
		t.Errorf("one too many: %v, barred %v", err, a.isBanned("eve"))
	}
	if err := a.Ban(within(t, testTimeout), "u7", 2*time.Hour); err != nil {
		t.Errorf("a longer bar of one that is barred: %v", err)
	}
}

func TestBansWhileRedisIsDownOrEmptied(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	a, b := startPair(t, redisAt(server.URL()), nil)
	if err := a.Ban(within(t, testTimeout), "eve", time.Hour); err != nil {
		t.Fatal(err)
	}
	b.waitEvent(t, "that eve is removed", isRemoval("eve"))
	server.Kill()
	eventually(t, "a bar to say that it did not reach the others", func() bool {
		return errors.Is(a.Ban(within(t, testTimeout), "mallory", time.Hour), message.ErrSharedStateUnavailable)
	})
	if !a.isBanned("mallory") || a.countEvents(isRemoval("mallory")) == 0 || !a.isBanned("eve") {
		t.Error("not even this node keeps them out")
	}
	server.Restart() // empty
	b.waitEvent(t, "that mallory is removed", isRemoval("mallory"))
	late := startAnotherNode(t, a, "node-c")
	eventually(t, "a fresh node to learn both", func() bool { return late.isBanned("eve") && late.isBanned("mallory") })
	server.Do(t, "FLUSHALL")
	eventually(t, "both to be in Redis again", func() bool {
		return server.Do(t, "ZCARD", a.cfg.Prefix+"{fleet}:bars") == "2"
	})
	// And then there is peace: nobody writes what all know.
	version := func() string { return server.Do(t, "GET", a.cfg.Prefix+"{fleet}:bars-state") }
	last, since := version(), time.Now()
	eventually(t, "two seconds without a change", func() bool {
		if now := version(); now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) > 2*time.Second
	})
}
