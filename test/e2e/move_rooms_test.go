package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"switchyard/internal/client"
	"switchyard/internal/load"
	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// A client in as many rooms as it may join moves from one node to the other and back,
// as in two deploys in a row, while it publishes: no join is refused, though the rate of
// joins alone would take ten seconds for the rooms of one move, and no message is lost,
// duplicated or reordered. `make moves` runs it with 1,000 rooms and the default rates.
func TestAClientOfManyRoomsMovesTwice(t *testing.T) {
	parallelUnlessLongMoves(t)
	env := map[string]string{
		"DATABASE_URL": testkit.Postgres(t).URL(), "REDIS_URL": testkit.StartRedis(t).URL(),
		"DRAIN_WINDOW": "1s", "DRAIN_TIMEOUT": "20s",
	}
	rooms := 1000
	if *longMoves == 0 {
		rooms, env["MAX_ROOMS"], env["RATE_JOIN"] = 100, "100", "10"
	}
	nodes := [2]*testkit.Server{testkit.StartServer(t, env), testkit.StartServer(t, env)}
	var target atomic.Pointer[testkit.Server] // where the name of both nodes leads
	target.Store(nodes[0])
	transport := &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, target.Load().Addr)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	moved := make(chan client.MovedEvent, 10)
	var broken atomic.Int32
	ctx := testkit.Within(t, 3*time.Minute)
	c := &roomClient{name: "ada"}
	var err error
	if c.client, err = client.Dial(ctx, client.Options{
		URLs: []string{"ws://switchyard.test/ws"}, HTTPClient: &http.Client{Transport: transport},
		OnMoved: func(e client.MovedEvent) { moved <- e },
		OnState: func(e client.StateEvent) {
			if e.State == client.Waiting {
				broken.Add(1)
			}
		},
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.client.Close)
	h := load.NewHistory()
	name := func(i int) message.Room { return message.Room(fmt.Sprint("room-", i)) }
	var joining sync.WaitGroup
	for i := range rooms {
		handler := h.Subscribe(c.name, name(i), client.Start()).Handler()
		joining.Go(func() {
			if _, err := c.client.Join(ctx, name(i), client.Start(), handler); err != nil {
				t.Errorf("join %s: %v", name(i), err)
			}
		})
	}
	joining.Wait()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() { // in one room after the other
		defer close(stopped)
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			in := &roomClient{name: c.name, room: name(n % rooms), client: c.client}
			in.publish(ctx, t, h, fmt.Sprint("message-", n))
		}
	}()
	began := time.Now()
	for i, from := range nodes {
		to := nodes[1-i]
		target.Store(to)
		if code, out := run(t, []string{"ADMIN_ADDR=" + from.Admin}, "drain", "-wait=false"); code != 0 {
			t.Fatalf("drain: %d %s", code, out)
		}
		e := testkit.Receive(t, "the client has moved", moved)
		t.Logf("move %d took %v", i+1, e.Took)
		if code, out := run(t, []string{"ADMIN_ADDR=" + from.Admin}, "undrain"); code != 0 {
			t.Fatalf("undrain: %d %s", code, out)
		}
	}
	t.Logf("two moves of %d rooms in %v", rooms, time.Since(began).Round(time.Millisecond))
	close(stop)
	<-stopped
	testkit.Eventually(t, "the last deliveries", h.CaughtUp)
	c.client.Close() // a delivery after this would be a duplicate
	assertClean(t, h)
	for i, s := range nodes {
		if refused := metric(t, s, `websocket_errors_total{type="rate_limited"}`); refused > 0 {
			t.Errorf("node %d refused %v requests", i, refused)
		}
	}
	if n := broken.Load(); n > 0 {
		t.Errorf("its connection broke %d times", n)
	}
}
