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

// A porter watches who is in the lobby: what it was told, and what follows
// from that.
type porter struct {
	mu      sync.Mutex
	present map[string]bool
	told    []string // joins and leaves, in order
}

func (p *porter) hear(f client.Presence) {
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
		p.told = append(p.told, "+"+m.Session)
	}
	for _, m := range f.Left {
		delete(p.present, m.Session)
		p.told = append(p.told, "-"+m.Session)
	}
}

func (p *porter) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.present)
}

// news returns what was told since it was called last.
func (p *porter) news() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	told := p.told
	p.told = nil
	return told
}

// visit has a client join the lobby.
func visit(t *testing.T, urls []string, h client.Handler) *client.Client {
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
func TestWhoIsThereOnAllNodes(t *testing.T) {
	redis := testkit.StartRedis(t)
	env := map[string]string{"DATABASE_URL": testkit.Postgres(t).URL(), "REDIS_URL": redis.URL(), "DRAIN_WINDOW": "2s"}
	a, b, c := testkit.StartServer(t, env), testkit.StartServer(t, env), testkit.StartServer(t, env)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	watching := &porter{}
	desk := visit(t, []string{b.SocketURL()}, client.Handler{Presence: watching.hear})
	first, err := desk.Presence(ctx, "lobby")
	if err != nil {
		t.Fatal(err)
	}
	watching.hear(first)
	guests := make([]*client.Client, 10)
	for i := range guests {
		guests[i] = visit(t, []string{a.SocketURL(), b.SocketURL()}, client.Handler{})
	}
	visit(t, []string{c.SocketURL()}, client.Handler{})
	waitFor(ctx, t, "twelve in the lobby", func() bool { return watching.count() == 12 })
	watching.news()

	if err := a.Stop(); err != nil { // they all move to b
		t.Errorf("exit: %v", err)
	}
	waitFor(ctx, t, "the guests on the second node", func() bool { return int(value(t, b, "websocket_active_connections")) == 11 })
	probe := visit(t, []string{b.SocketURL()}, client.Handler{}) // what is told now comes after all that
	waitFor(ctx, t, "the probe", func() bool { return watching.count() == 13 })
	name, _, _ := strings.Cut(probe.Welcome().Session, ".")
	if told := watching.news(); !slices.Equal(told, []string{"+" + name}) {
		t.Errorf("a move of ten was told as %v; nobody came or went but %s", told, name)
	}

	redis.Do(t, "FLUSHALL")
	late := visit(t, []string{b.SocketURL()}, client.Handler{})
	waitFor(ctx, t, "the truth again, and one more", func() bool {
		p, err := late.Presence(ctx, "lobby")
		return err == nil && p.Count == 14
	})
	waitFor(ctx, t, "the desk to know", func() bool { return watching.count() == 14 })

	c.Kill() // and its visitor has nowhere to go
	waitFor(ctx, t, "the dead node's visitor to be gone", func() bool { return watching.count() == 13 })
	late.Close()
	waitFor(ctx, t, "who said goodbye to be gone", func() bool { return watching.count() == 12 })
	if p, err := desk.Presence(ctx, "lobby"); err != nil || p.Count != 12 || len(p.Members) != 12 {
		t.Errorf("asked in the end: %+v %v", p, err)
	}
	seen := fmt.Sprint(value(t, b, "session_up"))
	if seen != "1" {
		t.Errorf("session_up %s", seen)
	}
}
