package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"switchyard/internal/client"
	"switchyard/internal/testkit"
)

// A presenceWatcher watches who is in the lobby: what it was told, and what follows
// from that.
type presenceWatcher struct {
	mu      sync.Mutex
	present map[string]bool
	events  []string // joins and leaves, in order
}

func (p *presenceWatcher) onPresence(f client.Presence) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f.Members != nil {
		p.present = map[string]bool{}
		for _, m := range f.Members {
			p.present[m.Session] = true
		}
	}
	for _, m := range f.Joined {
		p.present[m.Session] = true
		p.events = append(p.events, "+"+m.Session)
	}
	for _, m := range f.Left {
		delete(p.present, m.Session)
		p.events = append(p.events, "-"+m.Session)
	}
}

func (p *presenceWatcher) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.present)
}

// takeEvents returns what was told since it was called last.
func (p *presenceWatcher) takeEvents() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	events := p.events
	p.events = nil
	return events
}

// joinLobby has a client join the lobby.
func joinLobby(t *testing.T, urls []string, h client.Handler) *client.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c, err := client.Dial(ctx, client.Options{URLs: urls})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if _, err := c.Join(ctx, "lobby", client.Now(), h); err != nil {
		t.Fatal(err)
	}
	return c
}

// Who is there is known on every node, a move shows nobody twice and nobody
// gone, a dead node's people expire unless they come back, and a Redis that was
// emptied is told anew.
func TestPresenceAgreesOnAllNodes(t *testing.T) {
	redis := testkit.StartRedis(t)
	env := map[string]string{"DATABASE_URL": testkit.Postgres(t).URL(), "REDIS_URL": redis.URL(), "DRAIN_WINDOW": "2s"}
	a, b, c := testkit.StartServer(t, env), testkit.StartServer(t, env), testkit.StartServer(t, env)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	watcher := &presenceWatcher{}
	watcherClient := joinLobby(t, []string{b.SocketURL()}, client.Handler{Presence: watcher.onPresence})
	first, err := watcherClient.Presence(ctx, "lobby")
	if err != nil {
		t.Fatal(err)
	}
	watcher.onPresence(first)
	members := make([]*client.Client, 10)
	for i := range members {
		members[i] = joinLobby(t, []string{a.SocketURL(), b.SocketURL()}, client.Handler{})
	}
	joinLobby(t, []string{c.SocketURL()}, client.Handler{})
	waitFor(ctx, t, "twelve in the lobby", func() bool { return watcher.count() == 12 })
	watcher.takeEvents()

	if err := a.Stop(); err != nil { // they all move to b
		t.Errorf("exit: %v", err)
	}
	waitFor(ctx, t, "the guests on the second node", func() bool { return int(readSeries(t, b, "websocket_active_connections")) == 11 })
	probe := joinLobby(t, []string{b.SocketURL()}, client.Handler{}) // what is told now comes after all that
	waitFor(ctx, t, "the probe", func() bool { return watcher.count() == 13 })
	name, _, _ := strings.Cut(probe.Welcome().Session, ".")
	if events := watcher.takeEvents(); !slices.Equal(events, []string{"+" + name}) {
		t.Errorf("a move of ten was told as %v; nobody came or went but %s", events, name)
	}

	redis.Do(t, "FLUSHALL")
	late := joinLobby(t, []string{b.SocketURL()}, client.Handler{})
	waitFor(ctx, t, "the truth again, and one more", func() bool {
		p, err := late.Presence(ctx, "lobby")
		return err == nil && p.Count == 14
	})
	waitFor(ctx, t, "the desk to know", func() bool { return watcher.count() == 14 })

	c.Kill() // and its visitor has nowhere to go
	waitFor(ctx, t, "the dead node's visitor to be gone", func() bool { return watcher.count() == 13 })
	late.Close()
	waitFor(ctx, t, "who said goodbye to be gone", func() bool { return watcher.count() == 12 })
	if p, err := watcherClient.Presence(ctx, "lobby"); err != nil || p.Count != 12 || len(p.Members) != 12 {
		t.Errorf("asked in the end: %+v %v", p, err)
	}
	seen := fmt.Sprint(readSeries(t, b, "session_up"))
	if seen != "1" {
		t.Errorf("session_up %s", seen)
	}
}
