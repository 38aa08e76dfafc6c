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

// A roomClient is a member of one room that also publishes in it.
type roomClient struct {
	name   string
	room   message.Room
	client *client.Client
}

// newRoomClient connects a client to the first of the nodes, and has it join a
// room from its start. The client moves on to the next node when one fails.
func newRoomClient(t *testing.T, h *load.History, name string, room message.Room, nodes ...*testkit.Server) *roomClient {
	t.Helper()
	c := &roomClient{name: name, room: room}
	var urls []string
	for _, node := range nodes {
		urls = append(urls, node.SocketURL())
	}
	ctx := testkit.Within(t, testkit.Timeout)
	var err error
	if c.client, err = client.Dial(ctx, client.Options{URLs: urls}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.client.Close)
	if _, err = c.client.Join(ctx, room, client.Start(), h.Subscribe(name, room, client.Start()).Handler()); err != nil {
		t.Fatal(err)
	}
	return c
}

// publishFromEachNode has a client on each node publish n messages in one room,
// and waits until each client has received all of them.
func publishFromEachNode(t *testing.T, h *load.History, n int, nodes ...*testkit.Server) {
	t.Helper()
	var clients []*roomClient
	for i, node := range nodes {
		clients = append(clients, newRoomClient(t, h, fmt.Sprintf("client-%d", i), "lobby", node))
	}
	ctx := testkit.Within(t, testkit.Timeout)
	for _, c := range clients {
		c.publishMany(ctx, t, h, n)
	}
	testkit.Eventually(t, "all deliveries", deliveredAtLeast(h, n*len(nodes)*len(nodes)))
	for _, c := range clients {
		c.client.Close()
	}
}

// publishMany publishes n messages, of which at most four await their acks at a
// time.
func (c *roomClient) publishMany(ctx context.Context, t *testing.T, h *load.History, n int) {
	var wg sync.WaitGroup
	window := make(chan struct{}, 4)
	for i := range n {
		window <- struct{}{}
		wg.Go(func() {
			defer func() { <-window }()
			c.publish(ctx, t, h, fmt.Sprintf("%s-%d", c.name, i))
		})
	}
	wg.Wait()
}

// publish publishes one message under an id.
func (c *roomClient) publish(ctx context.Context, t *testing.T, h *load.History, id string) {
	data := json.RawMessage(`"` + id + `"`)
	attempt := h.Publish(c.room, "", "", id, data)
	ack, err := c.client.Publish(ctx, c.room, data, id)
	attempt.Done(ack, err)
	if err != nil {
		t.Errorf("%s: %v", id, err)
	}
}

// Two nodes share one PostgreSQL and one Redis, rooms have ten members each, five
// on either node, all of whom publish, and one node is killed midway: every acked
// message reaches every member of its room once and in order. `make faults` runs
// the long form: 20 rooms and 20,000 messages, of which the short form has 3 and 900.
func TestANodeDiesAndNobodyMissesAMessage(t *testing.T) {
	t.Parallel()
	const membersPerRoom = 10
	roomCount, messagesPerClient := 3, 30
	if *longFaults {
		roomCount, messagesPerClient = 20, 100
	}
	env := map[string]string{"DATABASE_URL": testkit.Postgres(t).URL(), "REDIS_URL": testkit.StartRedis(t).URL()}
	a, b := testkit.StartServer(t, env), testkit.StartServer(t, env)
	h := load.NewHistory()
	clients := make([]*roomClient, roomCount*membersPerRoom)
	for i := range clients {
		nodes := []*testkit.Server{a, b}
		if (i/roomCount)%2 == 1 { // both nodes have members of every room
			nodes = []*testkit.Server{b, a}
		}
		clients[i] = newRoomClient(t, h, fmt.Sprintf("client-%d", i), message.Room(fmt.Sprintf("room-%d", i%roomCount)), nodes...)
	}
	ctx := testkit.Within(t, 3*time.Minute)
	var publishing sync.WaitGroup
	for _, c := range clients {
		publishing.Go(func() { c.publishMany(ctx, t, h, messagesPerClient) })
	}
	published := len(clients) * messagesPerClient
	deliveries := published * membersPerRoom
	waitFor(ctx, t, "half of the deliveries", func() bool { return h.Counts().Delivered >= deliveries/2 })
	a.Kill()
	publishing.Wait()
	waitFor(ctx, t, "the rest of the deliveries", deliveredAtLeast(h, deliveries))
	for _, c := range clients {
		c.client.Close() // a delivery after this would be a duplicate
	}
	if report := assertClean(t, h); report.Acked != published || report.Rooms != roomCount || len(report.Subscribers) != len(clients) {
		t.Errorf("not every client, room and message is in the history:\n%v", report)
	}
}
