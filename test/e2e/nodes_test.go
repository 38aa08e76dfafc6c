package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"

	"switchyard/internal/client"
	"switchyard/internal/load"
	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

const (
	crowd        = 200
	roomCount    = 20
	perPublisher = 100
)

// A guest is one client that subscribes to a room and publishes in it.
type guest struct {
	name   string
	room   message.Room
	client *client.Client
}

// seat connects a guest to the first of the URLs, the others in reserve.
func seat(t *testing.T, h *load.History, i int, urls []string) *guest {
	t.Helper()
	g := &guest{name: fmt.Sprintf("guest-%d", i), room: message.Room(fmt.Sprintf("room-%d", i%roomCount))}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c, err := client.Dial(ctx, client.Options{URLs: urls})
	if err != nil {
		t.Fatal(err)
	}
	g.client = c
	t.Cleanup(c.Close)
	if _, err = c.Join(ctx, g.room, client.Start(), h.Subscribe(g.name, g.room, client.Start()).Handler()); err != nil {
		t.Fatal(err)
	}
	return g
}

// talk publishes n messages, a few under way at a time.
func (g *guest) talk(ctx context.Context, t *testing.T, h *load.History, n int) {
	var wg sync.WaitGroup
	window := make(chan struct{}, 4)
	for i := range n {
		window <- struct{}{}
		wg.Go(func() {
			defer func() { <-window }()
			g.say(ctx, t, h, fmt.Sprintf("%s-%d", g.name, i))
		})
	}
	wg.Wait()
}

// say publishes one message under an id.
func (g *guest) say(ctx context.Context, t *testing.T, h *load.History, id string) {
	data := json.RawMessage(`"` + id + `"`)
	attempt := h.Publish(g.room, "", "", id, data)
	ack, err := g.client.Publish(ctx, g.room, data, id)
	attempt.Done(ack, err)
	if err != nil {
		t.Errorf("%s: %v", id, err)
	}
}

// Two nodes on one PostgreSQL and one Redis, 200 clients in 20 rooms across
// both, 20,000 messages, and one node killed midway: every acked message
// reaches every member of its room once and in order.
func TestANodeDiesAndNobodyMissesAMessage(t *testing.T) {
	env := map[string]string{"DATABASE_URL": testkit.Postgres(t).URL(), "REDIS_URL": testkit.Redis(t).URL()}
	a, b := testkit.StartServer(t, env), testkit.StartServer(t, env)
	h := load.NewHistory()
	guests := make([]*guest, crowd)
	for i := range guests {
		urls := []string{a.SocketURL(), b.SocketURL()}
		if (i/roomCount)%2 == 1 { // both nodes have guests of every room
			urls[0], urls[1] = urls[1], urls[0]
		}
		guests[i] = seat(t, h, i, urls)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var talking sync.WaitGroup
	for _, g := range guests {
		talking.Go(func() { g.talk(ctx, t, h, perPublisher) })
	}
	total := crowd * perPublisher * crowd / roomCount
	waitFor(ctx, t, "half of the deliveries", func() bool { return h.Counts().Delivered >= total/2 })
	a.Kill()
	talking.Wait()
	waitFor(ctx, t, "the rest of the deliveries", received(h, total))
	for _, g := range guests {
		g.client.Close() // what else is on its way would be a double
	}
	if report := judge(t, h); report.Acked != crowd*perPublisher || report.Rooms != roomCount || len(report.Subscribers) != crowd {
		t.Errorf("not all were there:\n%v", report)
	}
}

func waitFor(ctx context.Context, t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited for %s: %v", what, ctx.Err())
		}
	}
}
