package e2e

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"switchyard/internal/client"
	"switchyard/internal/testkit"
)

// A presenceWatcher follows the presence of the lobby: the frames that it received,
// and the sessions that are there by them. Safe for concurrent use.
type presenceWatcher struct {
	mu      sync.Mutex
	present map[string]bool
	events  []string // joins and leaves, in order
}

func (w *presenceWatcher) onPresence(f client.Presence) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if f.Members != nil {
		w.present = map[string]bool{}
		for _, m := range f.Members {
			w.present[m.Session] = true
		}
	}
	for _, m := range f.Joined {
		w.present[m.Session] = true
		w.events = append(w.events, "+"+m.Session)
	}
	for _, m := range f.Left {
		delete(w.present, m.Session)
		w.events = append(w.events, "-"+m.Session)
	}
}

func (w *presenceWatcher) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.present)
}

// takeEvents returns the joins and leaves since the last call.
func (w *presenceWatcher) takeEvents() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	events := w.events
	w.events = nil
	return events
}

// joinLobby has a client join the lobby.
func joinLobby(t *testing.T, urls []string, h client.Handler) *client.Client {
	t.Helper()
	ctx := testkit.Within(t, testkit.Timeout)
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

// Every node knows who is in a room. A move shows no session twice or as gone, the
// sessions of a dead node expire unless they come back, and nodes write a Redis that
// was emptied again.
func TestPresenceAgreesOnAllNodes(t *testing.T) {
	t.Parallel()
	redis := testkit.StartRedis(t)
	env := map[string]string{"DATABASE_URL": testkit.Postgres(t).URL(), "REDIS_URL": redis.URL(), "DRAIN_WINDOW": "1s"}
	a, b, c := testkit.StartServer(t, env), testkit.StartServer(t, env), testkit.StartServer(t, env)
	ctx := testkit.Within(t, 3*time.Minute)
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
	testkit.Eventually(t, "twelve sessions in the lobby", func() bool { return watcher.count() == 12 })
	watcher.takeEvents()

	if err := a.Stop(); err != nil { // its ten clients move to b
		t.Errorf("exit: %v", err)
	}
	pollPage(t, "the clients on the second node", func() bool { return metric(t, b, "websocket_active_connections") == 11 })
	last := joinLobby(t, []string{b.SocketURL()}, client.Handler{}) // its join comes after all events of the move
	testkit.Eventually(t, "the last join", func() bool { return watcher.count() == 13 })
	name, _, _ := strings.Cut(last.Welcome().Session, ".")
	if events := watcher.takeEvents(); !slices.Equal(events, []string{"+" + name}) {
		t.Errorf("a move of ten clients brought the events %v; no session joined or left but %s", events, name)
	}

	redis.Do(t, "FLUSHALL")
	late := joinLobby(t, []string{b.SocketURL()}, client.Handler{})
	testkit.Eventually(t, "all sessions again, and one more", func() bool {
		p, err := late.Presence(ctx, "lobby")
		return err == nil && p.Count == 14
	})
	testkit.Eventually(t, "the watcher to have received that", func() bool { return watcher.count() == 14 })

	c.Kill() // its client knows no other node
	late.Close()
	testkit.Eventually(t, "the dead node's client and the one that closed to be gone", func() bool { return watcher.count() == 12 })
	if p, err := watcherClient.Presence(ctx, "lobby"); err != nil || p.Count != 12 || len(p.Members) != 12 {
		t.Errorf("presence at the end: %+v %v", p, err)
	}
	if up := metric(t, b, "session_up"); up != 1 {
		t.Errorf("session_up is %v", up)
	}
}
