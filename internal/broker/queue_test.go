package broker

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func TestQueueKeepsTheNewest(t *testing.T) {
	q := newQueue(3)
	dropped := 0
	for i := range byte(5) {
		n, ok := q.push(broadcast{payload: []byte{i}})
		if !ok {
			t.Fatal("an open queue refused a broadcast")
		}
		dropped += n
	}
	got := q.dequeue(nil, math.MaxInt)
	if dropped != 2 || len(got) != 3 || got[0].payload[0] != 2 || got[2].payload[0] != 4 {
		t.Errorf("dropped %d, kept %v", dropped, got)
	}
	if q.len() != 0 || q.bytes != 0 {
		t.Errorf("the emptied queue counts %d broadcasts and %d bytes", q.len(), q.bytes)
	}
}

func TestQueueIsBoundedInBytesToo(t *testing.T) {
	q := newQueue(1000)
	dropped := 0
	for range 40 {
		n, _ := q.push(broadcast{payload: make([]byte, 1<<20)})
		dropped += n
	}
	if dropped != 8 || q.bytes != 32<<20 {
		t.Errorf("dropped %d, holds %d bytes", dropped, q.bytes)
	}
	// A payload over the bound has the queue to itself.
	if n, ok := q.push(broadcast{payload: make([]byte, queueBytes+1)}); n != 32 || !ok || q.len() != 1 {
		t.Errorf("dropped %d of 32, %d left", n, q.len())
	}
}

func TestADequeueIsBounded(t *testing.T) {
	q := newQueue(10)
	for range 10 {
		q.push(broadcast{payload: make([]byte, 10)})
	}
	if got := q.dequeue(nil, 25); len(got) != 3 {
		t.Errorf("dequeued %d, want 3: the third reaches 25 bytes", len(got))
	}
}

func TestAClosedQueueRefusesAndCanBeEmptied(t *testing.T) {
	q := newQueue(2)
	q.push(broadcast{})
	q.close()
	if _, ok := q.push(broadcast{}); ok {
		t.Error("a closed queue accepted")
	}
	if q.closedAndEmpty() {
		t.Error("a queue with a broadcast is reported as closed and empty")
	}
	if q.dequeue(nil, 1); !q.closedAndEmpty() {
		t.Error("an empty and closed queue is not reported as such")
	}
}

func TestStaleBroadcastsAreNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		p := &publisher{metrics: newMetrics(reg)}
		old := broadcast{room: "old", at: time.Now()}
		time.Sleep(10 * time.Second) // the bubble's clock, and the bound in docs/limits.md
		young := broadcast{room: "young", at: time.Now()}
		time.Sleep(time.Millisecond)
		got := p.fresh([]broadcast{old, young})
		if len(got) != 1 || got[0].room != "young" {
			t.Errorf("fresh = %v", got)
		}
		n := &node{reg: reg}
		if got := n.metric(t, "broker_dropped_total", "stale"); got != 1 {
			t.Errorf("%v counted as stale, want 1", got)
		}
	})
}

func TestReconnectDelaysAreRandomAndBounded(t *testing.T) {
	seen := map[time.Duration]bool{}
	for failures := range 100 {
		d := backoff(failures)
		if d < 25*time.Millisecond || d > time.Second { // docs/redis.md
			t.Fatalf("backoff(%d) = %v", failures, d)
		}
		seen[d] = true
	}
	if len(seen) < 50 {
		t.Errorf("only %d different delays in 100", len(seen))
	}
}
