package session

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

func (p *peer) bars(user string) bool {
	_, barred := p.Barred(user)
	return barred
}

func removed(user string) func(message.Notice) bool {
	return func(n message.Notice) bool { return n.Kind == message.NoticeRemoved && n.User == user }
}

func aRemovedUserStaysOutEverywhere(t *testing.T, h house) {
	a, b := pair(t, h, nil)
	if a.bars("eve") || a.bars("") {
		t.Error("barred before")
	}
	if err := a.Bar(within(t, patience), "eve", time.Hour); err != nil {
		t.Fatal(err)
	}
	if !a.bars("eve") || a.heard(removed("eve")) != 1 {
		t.Error("this node does not know when Bar returns")
	}
	b.waitNotice(t, "that eve is removed", removed("eve"))
	if left, barred := b.Barred("eve"); !barred || left > time.Hour || left < 59*time.Minute {
		t.Errorf("on the other node: %v, %v", left, barred)
	}
	if b.bars("ada") || b.bars("eve ") || b.bars("") {
		t.Error("somebody else is barred")
	}
	// A shorter one does not let her in earlier.
	if err := b.Bar(within(t, patience), "eve", time.Minute); err != nil {
		t.Fatal(err)
	}
	// A node that starts later learns it, and closes what it let in meanwhile.
	late := crewMate(t, a, "node-c")
	late.waitNotice(t, "of the bar it missed", removed("eve"))
	for _, p := range []*peer{a, b, late} {
		if left, barred := p.Barred("eve"); !barred || left < 59*time.Minute {
			t.Errorf("%s: %v, %v", p.cfg.Node, left, barred)
		}
	}
	if a.bars("ada") {
		t.Error("somebody else is barred")
	}
}

// crewMate opens another node where one is.
func crewMate(t *testing.T, with *peer, name string) *peer {
	t.Helper()
	h := house(func(*testing.T) (Config, func(Config) (*Node, error)) {
		if m, ok := with.space.(*member); ok {
			return Config{}, func(c Config) (*Node, error) { return NewMemory(m.Space, c) }
		}
		return with.cfg, OpenRedis
	})
	return crew(t, h, nil, name)[0]
}

func aBarEnds(t *testing.T, h house) {
	a, b := pair(t, h, nil)
	if err := a.Bar(within(t, patience), "eve", 1500*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	b.waitNotice(t, "that eve is removed", removed("eve"))
	eventually(t, "the bar to end", func() bool { return !a.bars("eve") && !b.bars("eve") })
	if err := a.Bar(within(t, patience), "mallory", time.Hour); err != nil {
		t.Fatal(err)
	}
	b.waitNotice(t, "that mallory is removed", removed("mallory"))
	if a.bars("eve") || b.bars("eve") {
		t.Error("the next bar brought the old one back")
	}
}

func whatCannotBeBarredIsSaid(t *testing.T, h house) {
	a, _ := pair(t, h, nil)
	for _, tt := range []struct {
		user  string
		d     time.Duration
		field string
	}{
		{"", time.Hour, "user"}, {strings.Repeat("u", 129), time.Hour, "user"}, {"a\xff", time.Hour, "user"},
		{"eve", 0, "for"}, {"eve", -time.Second, "for"}, {"eve", 721 * time.Hour, "for"},
	} {
		var invalid *message.InvalidError
		if err := a.Bar(within(t, patience), tt.user, tt.d); !errors.As(err, &invalid) || invalid.Field != tt.field {
			t.Errorf("%.10q for %v: %v, want an error that names %s", tt.user, tt.d, err, tt.field)
		}
	}
	if a.bars("eve") {
		t.Error("barred all the same")
	}
}

// A notice may be lost; the board is not.
func aBarWithoutANotice(t *testing.T, h house) {
	a, b := pair(t, h, nil)
	if _, err := a.space.bar(within(t, patience), []bar{{"eve", time.Hour}, {"mallory", time.Hour}}); err != nil {
		t.Fatal(err)
	}
	lost := time.Now()
	for _, p := range []*peer{a, b} {
		p.waitNotice(t, "by the board", removed("eve"))
		p.waitNotice(t, "by the board", removed("mallory"))
	}
	t.Logf("found after %v", time.Since(lost))
}

func moreBarsThanThereMayBe(t *testing.T, h house) {
	a, b := pair(t, h, nil)
	many := make([]bar, maxBars)
	for i := range many {
		many[i] = bar{fmt.Sprintf("u%d", i), time.Hour}
	}
	for part := many; len(part) > 0; part = part[barsBatch:] {
		if refused, err := a.space.bar(within(t, patience), part[:barsBatch]); err != nil || refused > 0 {
			t.Fatal(refused, err)
		}
	}
	var invalid *message.InvalidError
	if err := b.Bar(within(t, patience), "eve", time.Hour); !errors.As(err, &invalid) || !strings.Contains(err.Error(), "20000") {
		t.Errorf("one too many: %v", err)
	}
	eventually(t, "all to be known", func() bool { return b.bars("u0") && b.bars("u19999") && a.bars("u19999") })
	if err := a.Bar(within(t, patience), "eve", time.Hour); !errors.As(err, &invalid) || a.bars("eve") {
		t.Errorf("one too many: %v, barred %v", err, a.bars("eve"))
	}
	if err := a.Bar(within(t, patience), "u7", 2*time.Hour); err != nil {
		t.Errorf("a longer bar of one that is barred: %v", err)
	}
}

func TestBarsWhileRedisIsAwayOrEmptied(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	a, b := pair(t, at(server.URL()), nil)
	if err := a.Bar(within(t, patience), "eve", time.Hour); err != nil {
		t.Fatal(err)
	}
	b.waitNotice(t, "that eve is removed", removed("eve"))
	server.Kill()
	eventually(t, "a bar to say that it did not reach the others", func() bool {
		return errors.Is(a.Bar(within(t, patience), "mallory", time.Hour), message.ErrAway)
	})
	if !a.bars("mallory") || a.heard(removed("mallory")) == 0 || !a.bars("eve") {
		t.Error("not even this node keeps them out")
	}
	server.Restart() // empty
	b.waitNotice(t, "that mallory is removed", removed("mallory"))
	late := crewMate(t, a, "node-c")
	eventually(t, "a fresh node to learn both", func() bool { return late.bars("eve") && late.bars("mallory") })
	server.Do(t, "FLUSHALL")
	eventually(t, "both to be in Redis again", func() bool {
		return server.Do(t, "ZCARD", a.cfg.Prefix+"{fleet}:bars") == "2"
	})
	// And then there is peace: nobody writes what all know.
	state := func() string { return server.Do(t, "GET", a.cfg.Prefix+"{fleet}:bars-state") }
	last, since := state(), time.Now()
	eventually(t, "two seconds without a change", func() bool {
		if now := state(); now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) > 2*time.Second
	})
}
