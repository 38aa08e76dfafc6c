package broker

import (
	"errors"
	"math"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// openUnstarted returns a broker that never connects, to test its router alone.
func openUnstarted(t *testing.T, url string, queue int) (*Redis, *node) {
	t.Helper()
	n := openNodeUnstarted(t, Config{URL: url, Queue: queue})
	return n.brokerUnderTest.(*Redis), n
}

func queuedPayloads(s *server) (payloads []string) {
	for _, p := range s.publisher.queue.dequeue(nil, math.MaxInt) {
		payloads = append(payloads, string(p.payload))
	}
	return payloads
}

func allOwnedBy(addr string) ownerFunc { return func(int) string { return addr } }

func TestQueuedBroadcastsFollowTheirRoomInOrder(t *testing.T) {
	r, n := openUnstarted(t, "redis+sentinel://127.0.0.1:1/m", 1000)
	var want []string
	publish := func(count int) {
		for range count {
			payload := strconv.Itoa(len(want))
			r.Publish("r", []byte(payload))
			want = append(want, payload)
		}
	}
	publish(10) // no server is known yet
	for _, master := range []string{"a:1", "b:1", "a:1"} {
		r.assign(allOwnedBy(master))
		publish(10)
	}
	r.assign(allOwnedBy("a:1")) // the owner stays
	if got := queuedPayloads(r.servers["a:1"]); !slices.Equal(got, want) {
		t.Errorf("queued: %v", got)
	}
	if len(r.servers) != 1 || n.metric(t, "broker_dropped_total", "") != 0 {
		t.Errorf("%d servers, %v dropped", len(r.servers), n.metric(t, "broker_dropped_total", ""))
	}
}

// The owner becomes known while a broadcast is on its way to the queue.
func TestABroadcastDoesNotMissThatItsOwnerIsKnown(t *testing.T) {
	r, _ := openUnstarted(t, "redis+sentinel://127.0.0.1:1/m", 10)
	r.assign(allOwnedBy("a:1"))
	b := r.bucket("r")
	var began, done atomic.Int64 // tries; both goroutines spin, so that the two calls really meet
	go func() {
		for try := int64(0); t.Context().Err() == nil; {
			if began.Load() > try {
				r.Publish("r", []byte("x"))
				try++
				done.Store(try)
			}
		}
	}()
	// Without the lock a broadcast was missed within 15,000 tries. A busy machine does fewer.
	for try, end := int64(0), time.Now().Add(3*time.Second); try < 60_000 && time.Now().Before(end); try++ {
		r.mu.Lock()
		b.owner = nil
		r.mu.Unlock()
		began.Store(try + 1)
		for range try % 300 { // meets each step of Publish
			_ = done.Load()
		}
		r.assign(allOwnedBy("a:1"))
		for done.Load() <= try {
		}
		if r.unrouted.len() > 0 {
			t.Fatalf("try %d: a broadcast waits for an owner, which is known: later ones overtake it", try)
		}
	}
}

func TestUnroutedBroadcastsAreBounded(t *testing.T) {
	r, n := openUnstarted(t, "redis+cluster://127.0.0.1:1", 10)
	for i := range 15 {
		r.Publish("r", []byte(strconv.Itoa(i)))
	}
	if got := n.metric(t, "broker_dropped_total", "down"); got != 5 {
		t.Errorf("%v dropped as down, want 5", got)
	}
	b := r.bucket("r")
	r.assign(func(index int) string { // returns an owner for one bucket only
		if index == b.index {
			return "a:1"
		}
		return ""
	})
	if got := queuedPayloads(r.servers["a:1"]); len(got) != 10 || got[0] != "5" {
		t.Errorf("queued: %v, want the newest ten", got)
	}
	if r.Up() {
		t.Error("the broker is up, though most buckets have no server")
	}
}

func TestAnIncompleteSlotMapKeepsKnownOwners(t *testing.T) {
	r, _ := openUnstarted(t, "redis+cluster://127.0.0.1:1", 10)
	r.assign(allOwnedBy("a:1"))
	r.assign(func(index int) string {
		if index < 10 {
			return "b:1"
		}
		return "" // a slot without a master
	})
	for _, b := range r.buckets {
		want := "a:1"
		if b.index < 10 {
			want = "b:1"
		}
		if got := r.ownerAddr(b); got != want {
			t.Errorf("bucket %d is at %s, want %s", b.index, got, want)
		}
	}
}

// Two servers that redirect to each other do not keep a broadcast forever.
func TestReroutingABroadcastIsBounded(t *testing.T) {
	r, _ := openUnstarted(t, "redis+cluster://127.0.0.1:1", 10)
	r.assign(allOwnedBy("a:1"))
	b := r.bucket("r")
	r.Publish("r", []byte("x"))
	for hop := 1; ; hop++ {
		from := r.ownerServer(b)
		batch := from.publisher.queue.dequeue(nil, math.MaxInt)
		to := map[string]string{"a:1": "b:1", "b:1": "a:1"}[from.addr]
		if len(batch) != 1 {
			t.Fatalf("hop %d: %d are queued for %s", hop, len(batch), from.addr)
		}
		if !r.reroute(batch[0], to) {
			if hop != 4 {
				t.Errorf("dropped at hop %d, want 4", hop)
			}
			return
		}
	}
}

// The server that lost a bucket is asked for the new owner. After any other
// failure, the servers of the URL and the known ones are asked.
func TestDiscoveryCandidates(t *testing.T) {
	r, _ := openUnstarted(t, "redis+cluster://seed:1,a:1", 10)
	r.assign(allOwnedBy("a:1"))
	if got, want := r.candidates("gone:1"), []string{"gone:1", "seed:1", "a:1"}; !slices.Equal(got, want) {
		t.Errorf("candidates %v, want %v", got, want)
	}
	if got, want := r.candidates(""), []string{"seed:1", "a:1"}; !slices.Equal(got, want) {
		t.Errorf("candidates %v, want %v", got, want)
	}
	// The owner is not the server that failed: no server is asked.
	addr, err := r.locate(t.Context(), r.buckets[0], connectionResult{"old:1", errUnsubscribedByServer})
	if addr != "a:1" || err != nil {
		t.Errorf("locate = %q, %v", addr, err)
	}
}

func TestAnUnknownOwnerIsAnError(t *testing.T) {
	r, _ := openUnstarted(t, "redis+cluster://127.0.0.1:1", 10)
	if addr, err := r.locate(t.Context(), r.buckets[0], connectionResult{}); addr != "" || err == nil {
		t.Errorf("locate = %q, %v; want an error", addr, err)
	}
	r.assign(allOwnedBy("127.0.0.1:1"))
	addr, err := r.locate(t.Context(), r.buckets[0], connectionResult{"127.0.0.1:1", errors.New("refused")})
	if addr != "127.0.0.1:1" || err != nil {
		t.Errorf("locate = %q, %v; want the last one known", addr, err)
	}
}

func TestAClosedBrokerIgnoresNewOwners(t *testing.T) {
	r, n := openUnstarted(t, "redis+cluster://127.0.0.1:1", 10)
	r.Publish("r", []byte("x"))
	if err := r.Close(testkit.Within(t, testkit.Timeout)); err != nil {
		t.Fatal(err)
	}
	r.assign(allOwnedBy("a:1"))
	r.Publish("r", []byte("y"))
	if len(r.servers) != 0 || n.metric(t, "broker_dropped_total", "closed") != 2 {
		t.Errorf("%d servers, %v dropped as closed, want 2", len(r.servers), n.metric(t, "broker_dropped_total", "closed"))
	}
	if err := r.Subscribe(t.Context(), message.Room("r")); !errors.Is(err, ErrClosed) {
		t.Errorf("Subscribe = %v", err)
	}
}
