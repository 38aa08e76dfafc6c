package broker

import (
	"errors"
	"math"
	"slices"
	"strconv"
	"testing"

	"switchyard/internal/message"
)

// openUnstarted returns a broker that connects to nobody: its router alone is tried.
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

func TestQueuedPublicationsFollowTheirRoomInOrder(t *testing.T) {
	r, n := openUnstarted(t, "redis+sentinel://127.0.0.1:1/m", 1000)
	var want []string
	publish := func(count int) {
		for range count {
			payload := strconv.Itoa(len(want))
			r.Publish("r", []byte(payload))
			want = append(want, payload)
		}
	}
	publish(10) // nobody is known yet
	for _, master := range []string{"a:1", "b:1", "a:1"} {
		r.assign(allOwnedBy(master))
		publish(10)
	}
	r.assign(allOwnedBy("a:1")) // no news
	if got := queuedPayloads(r.servers["a:1"]); !slices.Equal(got, want) {
		t.Errorf("waiting: %v", got)
	}
	if len(r.servers) != 1 || n.metric(t, "broker_dropped_total", "") != 0 {
		t.Errorf("%d servers are kept, %v dropped", len(r.servers), n.metric(t, "broker_dropped_total", ""))
	}
}

func TestUnroutedPublicationsAreBounded(t *testing.T) {
	r, n := openUnstarted(t, "redis+cluster://127.0.0.1:1", 10)
	for i := range 15 {
		r.Publish("r", []byte(strconv.Itoa(i)))
	}
	if got := n.metric(t, "broker_dropped_total", "down"); got != 5 {
		t.Errorf("%v dropped as down, want 5", got)
	}
	b := r.bucket("r")
	r.assign(func(index int) string { // a map of one bucket
		if index == b.index {
			return "a:1"
		}
		return ""
	})
	if got := queuedPayloads(r.servers["a:1"]); len(got) != 10 || got[0] != "5" {
		t.Errorf("waiting: %v, want the newest ten", got)
	}
	if r.Up() {
		t.Error("up, though most buckets have no server")
	}
}

func TestAnIncompleteSlotMapKeepsKnownOwners(t *testing.T) {
	r, _ := openUnstarted(t, "redis+cluster://127.0.0.1:1", 10)
	r.assign(allOwnedBy("a:1"))
	r.assign(func(index int) string {
		if index < 10 {
			return "b:1"
		}
		return "" // a slot that nobody serves just now
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

// Two servers that point at each other do not keep a publication for ever.
func TestReroutingAPublicationIsBounded(t *testing.T) {
	r, _ := openUnstarted(t, "redis+cluster://127.0.0.1:1", 10)
	r.assign(allOwnedBy("a:1"))
	b := r.bucket("r")
	r.Publish("r", []byte("x"))
	for hop := 1; ; hop++ {
		from := r.ownerServer(b)
		batch := from.publisher.queue.dequeue(nil, math.MaxInt)
		to := map[string]string{"a:1": "b:1", "b:1": "a:1"}[from.addr]
		if len(batch) != 1 {
			t.Fatalf("hop %d: %d wait at %s", hop, len(batch), from.addr)
		}
		if !r.reroute(batch[0], to) {
			if hop != maxHops+1 {
				t.Errorf("given up at hop %d", hop)
			}
			return
		}
	}
}

// Who gave a bucket away is asked to whom; any other failure asks those that
// were in the URL as well as those that are known.
func TestDiscoveryCandidates(t *testing.T) {
	r, _ := openUnstarted(t, "redis+cluster://seed:1,a:1", 10)
	r.assign(allOwnedBy("a:1"))
	if got, want := r.candidates("gone:1"), []string{"gone:1", "seed:1", "a:1"}; !slices.Equal(got, want) {
		t.Errorf("asks %v, want %v", got, want)
	}
	if got, want := r.candidates(""), []string{"seed:1", "a:1"}; !slices.Equal(got, want) {
		t.Errorf("asks %v, want %v", got, want)
	}
	// Already elsewhere than where it failed: nobody is asked.
	addr, err := r.locate(t.Context(), r.buckets[0], attempt{"old:1", errUnsubscribedByServer})
	if addr != "a:1" || err != nil {
		t.Errorf("locate = %q, %v", addr, err)
	}
}

func TestAnUnknownOwnerIsAnError(t *testing.T) {
	r, _ := openUnstarted(t, "redis+cluster://127.0.0.1:1", 10)
	if addr, err := r.locate(t.Context(), r.buckets[0], attempt{}); addr != "" || err == nil {
		t.Errorf("locate = %q, %v; want an error", addr, err)
	}
	r.assign(allOwnedBy("127.0.0.1:1"))
	addr, err := r.locate(t.Context(), r.buckets[0], attempt{"127.0.0.1:1", errors.New("refused")})
	if addr != "127.0.0.1:1" || err != nil {
		t.Errorf("locate = %q, %v; want the last one known", addr, err)
	}
}

func TestAClosedBrokerIgnoresNewOwners(t *testing.T) {
	r, n := openUnstarted(t, "redis+cluster://127.0.0.1:1", 10)
	r.Publish("r", []byte("x"))
	if err := r.Close(within(t, testTimeout)); err != nil {
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
