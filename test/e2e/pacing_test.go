package e2e

import (
	"fmt"
	"sync"
	"testing"

	"switchyard/internal/client"
	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// Publishes far over the rate are stored in the order of the calls, also when the
// connection is cut in between. None is refused: the client paces itself. The rate is
// low, so that a busy machine exceeds it as well.
func TestPublishesAtOnceAreStoredInTheOrderOfTheCalls(t *testing.T) {
	t.Parallel()
	s := testkit.StartServer(t, map[string]string{"RATE_PUBLISH": "50"})
	proxy := testkit.NewProxy(t, s.Addr)
	c, err := client.Dial(testkit.Within(t, testkit.Timeout), client.Options{URLs: []string{"ws://" + proxy.Addr() + "/ws"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	const publishes = 250
	var all sync.WaitGroup
	var cut sync.Once
	for n := range publishes {
		all.Add(1)
		err := c.Send("lobby", fmt.Append(nil, n), "", func(_ client.Ack, err error) {
			defer all.Done()
			if err != nil {
				t.Errorf("publish %d: %v", n, err)
			}
			if n >= publishes/2 {
				cut.Do(func() { go proxy.Cut() })
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	all.Wait()
	checkOrder(t, c, publishes)
	if refused := metric(t, s, `websocket_errors_total{type="rate_limited"}`); refused > 0 {
		t.Errorf("%v were refused", refused)
	}
}

// checkOrder checks that the lobby has the numbers from 0 in order.
func checkOrder(t *testing.T, c *client.Client, publishes int) {
	t.Helper()
	for n := 0; n < publishes; {
		page, err := c.History(testkit.Within(t, testkit.Timeout), "lobby", client.HistoryRange{Forward: true, After: message.Seq(n), Limit: 200})
		if err != nil || len(page.Messages) == 0 {
			t.Fatalf("%d of %d messages are stored (%v)", n, publishes, err)
		}
		for _, m := range page.Messages {
			if string(m.Data) != fmt.Sprint(n) {
				t.Fatalf("seq %d is publish %s, want %d", m.Seq, m.Data, n)
			}
			n++
		}
	}
}

// A client watches who is in seventy rooms. After each reconnect it gets the list of
// every one of them, though the service answers forty at once.
func TestEveryWatchedRoomIsListedAfterAReconnect(t *testing.T) {
	t.Parallel()
	s := testkit.StartServer(t, nil)
	proxy := testkit.NewProxy(t, s.Addr)
	ctx := testkit.Within(t, testkit.Timeout)
	c, err := client.Dial(ctx, client.Options{URLs: []string{"ws://" + proxy.Addr() + "/ws"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	const rooms = 70
	var mu sync.Mutex
	listed := map[message.Room]int{}
	for i := range rooms {
		room := message.Room(fmt.Sprint("room-", i))
		if _, err := c.Join(ctx, room, client.Now(), client.Handler{Presence: func(p client.Presence) {
			mu.Lock()
			defer mu.Unlock()
			if p.Members != nil {
				listed[p.Room]++
			}
		}}); err != nil {
			t.Fatal(err)
		}
	}
	var requests sync.WaitGroup
	for i := range rooms { // at once: they wait for their turn, too
		requests.Go(func() {
			if _, err := c.Presence(ctx, message.Room(fmt.Sprint("room-", i))); err != nil {
				t.Error(err)
			}
		})
	}
	requests.Wait()
	proxy.Cut()
	testkit.Eventually(t, "the list of every room", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(listed) == rooms
	})
	if refused := metric(t, s, `websocket_errors_total{type="rate_limited"}`); refused > 0 {
		t.Errorf("%v were refused", refused)
	}
}
