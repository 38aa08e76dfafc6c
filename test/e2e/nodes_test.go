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
	clientCount       = 200
	roomCount         = 20
	messagesPerClient = 100
)

// A roomClient is one client that subscribes to a room and publishes in it.
type roomClient struct {
	name   string
	room   message.Room
	client *client.Client
}

// newRoomClient connects a guest to the first of the URLs, the others in reserve.
func newRoomClient(t *testing.T, h *load.History, i int, urls []string) *roomClient {
	t.Helper()
	g := &roomClient{name: fmt.Sprintf("guest-%d", i), room: message.Room(fmt.Sprintf("room-%d", i%roomCount))}
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

// publishMany publishes n messages, a few under way at a time.
func (g *roomClient) publishMany(ctx context.Context, t *testing.T, h *load.History, n int) {
	var wg sync.WaitGroup
	window := make(chan struct{}, 4)
	for i := range n {
		window <- struct{}{}
		wg.Go(func() {
			defer func() { <-window }()
			g.publish(ctx, t, h, fmt.Sprintf("%s-%d", g.name, i))
		})
	}
	wg.Wait()
}

// publish publishes one message under an id.
func (g *roomClient) publish(ctx context.Context, t *testing.T, h *load.History, id string) {
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
	clients := make([]*roomClient, clientCount)
	for i := range clients {
		urls := []string{a.SocketURL(), b.SocketURL()}
		if (i/roomCount)%2 == 1 { // both nodes have guests of every room
			urls[0], urls[1] = urls[1], urls[0]
		}
		clients[i] = newRoomClient(t, h, i, urls)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var publishing sync.WaitGroup
	for _, g := range clients {
		publishing.Go(func() { g.publishMany(ctx, t, h, messagesPerClient) })
	}
	total := clientCount * messagesPerClient * clientCount / roomCount
	waitFor(ctx, t, "half of the deliveries", func() bool { return h.Counts().Delivered >= total/2 })
	a.Kill()
	publishing.Wait()
	waitFor(ctx, t, "the rest of the deliveries", deliveredAtLeast(h, total))
	for _, g := range clients {
		g.client.Close() // what else is on its way would be a double
	}
	if report := assertClean(t, h); report.Acked != clientCount*messagesPerClient || report.Rooms != roomCount || len(report.Subscribers) != clientCount {
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
