package hub

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// An instantLog stores nothing and completes at once, so that a test counts
// only what the hub does.
type instantLog struct {
	*logView
	hub *Hub
	seq message.Seq
}

func (l *instantLog) Append(p *message.Publication) {
	l.seq++
	p.Epoch, p.Seq, p.At = "e1", l.seq, time.Now()
	l.hub.Completed([]*message.Publication{p})
}

// newInstantHub returns a hub with an instantLog and a room "r" of that many
// members, a client to publish with, and the number of frames that the members
// received.
func newInstantHub(t testing.TB, members int) (*Hub, *Client, *atomic.Int64) {
	t.Helper()
	v := &logView{modelLog: newModelLog(), feedDown: true}
	log := &instantLog{logView: v}
	h := New(Config{
		Log: log, Feed: v, Broker: &fakeBrokerNode{fakeBroker: &fakeBroker{}, subs: map[message.Room]bool{}},
		Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	log.hub = h
	t.Cleanup(func() {
		if err := h.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	got, live := new(atomic.Int64), make(chan struct{}, members)
	for range members {
		c := h.NewClient(callbackOutlet{func() { got.Add(1) }}, "", "")
		c.WhenLive(1, func() { live <- struct{}{} })
		if err := c.Handle(t.Context(), &protocol.Request{Type: protocol.TypeJoin, Room: "r"}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close(true) })
	}
	for range members {
		<-live
	}
	got.Store(0) // the answers to the joins do not count
	return h, h.NewClient(callbackOutlet{func() {}}, "", ""), got
}

// allocsPerPublish returns what one publish into a room of that many members
// allocates, in objects and bytes, delivery included. It is the least of
// several rounds with the garbage collector off, because other goroutines can
// only add to a round.
func allocsPerPublish(t *testing.T, members int) (objects, size float64) {
	t.Helper()
	const rounds, publishes = 20, 50
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	_, c, got := newInstantHub(t, members)
	data := []byte(fmt.Sprintf("%q", make([]byte, 20)))
	r := &protocol.Request{Type: protocol.TypePublish, Room: "r", ID: "a1", Data: data, Ref: "1"}
	objects, size = math.Inf(1), math.Inf(1)
	for range rounds {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range publishes {
			if err := c.Handle(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			for got.Load() < int64(members) {
				runtime.Gosched()
			}
			got.Store(0)
		}
		runtime.ReadMemStats(&after)
		objects = min(objects, float64(after.Mallocs-before.Mallocs)/publishes)
		size = min(size, float64(after.TotalAlloc-before.TotalAlloc)/publishes)
	}
	return objects, size
}

// A delivery to one more member allocates nothing, and the rest of a publish
// allocates little.
func TestADeliveryAllocatesNothing(t *testing.T) {
	const few, many = 10, 110
	one, bytes := allocsPerPublish(t, few)
	all, _ := allocsPerPublish(t, many)
	if each := (all - one) / (many - few); each > 0.01 {
		t.Errorf("a delivery allocates %.2f objects: a publish to %d members allocates %.1f, to %d members %.1f", each, few, one, many, all)
	}
	const mostObjects, mostBytes = 30, 3000
	if one > mostObjects || bytes > mostBytes {
		t.Errorf("a publish allocates %.1f objects and %.0f bytes, want at most %d and %d", one, bytes, mostObjects, mostBytes)
	}
	t.Logf("a publish allocates %.1f objects, %.0f bytes", one, bytes)
}
