package hub

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// A callbackOutlet accepts everything and calls onSend each time.
type callbackOutlet struct{ onSend func() }

func (o callbackOutlet) Send(protocol.Frame) bool         { o.onSend(); return true }
func (o callbackOutlet) Queue(f protocol.Frame) bool      { return o.Send(f) }
func (o callbackOutlet) Flush()                           {}
func (o callbackOutlet) Flushed(context.Context) error    { return nil }
func (o callbackOutlet) SendAnswer(f protocol.Frame) bool { return o.Send(f) }
func (o callbackOutlet) Answered(context.Context) error   { return nil }

// newBenchHub returns a hub whose log answers at once, so that a benchmark
// measures the hub.
func newBenchHub(b *testing.B) (*Hub, *modelLog) {
	b.Helper()
	l := newModelLog()
	v := &logView{modelLog: l, feedDown: true}
	n := &fakeBrokerNode{fakeBroker: &fakeBroker{}, subs: map[message.Room]bool{}}
	h := New(Config{
		Log: v, Feed: v, Broker: n, RepairWait: time.Microsecond,
		Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	b.Cleanup(func() {
		if err := h.Close(context.Background()); err != nil {
			b.Error(err)
		}
	})
	return h, l
}

// joinAfter joins a room after a seq; live is called when the client is live.
func joinAfter(b *testing.B, h *Hub, r message.Room, after message.Seq, o Outlet, live func()) *Client {
	b.Helper()
	c := h.NewClient(o, "", "")
	c.WhenLive(1, live)
	q := protocol.Request{Type: protocol.TypeJoin, Room: r, HasAfter: true, After: after, Epoch: "e1"}
	if err := c.Handle(context.Background(), &q); err != nil {
		b.Fatal(err)
	}
	return c
}

// BenchmarkFanOut measures a publish, from the request to the last member's
// outlet.
func BenchmarkFanOut(b *testing.B) {
	for _, members := range []int{10, 1000} {
		b.Run(fmt.Sprint(members), func(b *testing.B) {
			_, c, got := newInstantHub(b, members)
			r := &protocol.Request{Type: protocol.TypePublish, Room: "r", Data: []byte(`"of twenty-two letters"`), Ref: "1"}
			want := int64(0)
			for b.Loop() {
				if err := c.Handle(b.Context(), r); err != nil {
					b.Fatal(err)
				}
				for want += int64(members); got.Load() < want; {
					runtime.Gosched()
				}
			}
			b.ReportMetric(float64(want)/b.Elapsed().Seconds(), "deliveries/s")
		})
	}
}

// BenchmarkRepair measures the repair of a thousand rooms with one member each
// that miss three messages at once.
func BenchmarkRepair(b *testing.B) {
	const rooms = 1000
	h, l := newBenchHub(b)
	var live, sent sync.WaitGroup
	count := func() {}
	live.Add(rooms)
	for i := range rooms {
		c := joinAfter(b, h, testRoom(i), 0, callbackOutlet{func() { count() }}, live.Done)
		defer c.Close(true)
	}
	live.Wait()
	count = sent.Done
	seq := message.Seq(0)
	for b.Loop() {
		b.StopTimer()
		for i := range rooms {
			l.commit(testRoom(i), 3, 200)
		}
		seq += 3
		sent.Add(rooms)
		b.StartTimer()
		for i := range rooms {
			h.notifyTopic(message.Head{Room: testRoom(i), Seq: seq}, "e1")
		}
		sent.Wait()
	}
	b.ReportMetric(float64(rooms*b.N)/b.Elapsed().Seconds(), "rooms/s")
}

// BenchmarkResume measures a thousand clients that resume in one room, from the
// log or from the ring.
func BenchmarkResume(b *testing.B) {
	for _, bb := range []struct {
		name   string
		missed int
	}{{"from the ring", 50}, {"from the log", 1000}} {
		b.Run(bb.name, func(b *testing.B) {
			const members = 1000
			h, l := newBenchHub(b)
			var live sync.WaitGroup
			live.Add(1)
			first := joinAfter(b, h, "r", 0, callbackOutlet{func() {}}, live.Done)
			defer first.Close(true)
			live.Wait()
			h.Completed(l.commit("r", bb.missed, 200))
			for h.Rooms()[0].Seq < message.Seq(bb.missed) {
				time.Sleep(time.Millisecond)
			}
			clients := make([]*Client, members)
			for b.Loop() {
				live.Add(members)
				for i := range clients {
					clients[i] = joinAfter(b, h, "r", 0, callbackOutlet{func() {}}, live.Done)
				}
				live.Wait()
				b.StopTimer()
				for _, c := range clients {
					c.Close(true)
				}
				b.StartTimer()
			}
			b.ReportMetric(float64(members*bb.missed*b.N)/b.Elapsed().Seconds(), "messages/s")
		})
	}
}

// BenchmarkMemoryOfARoom measures what a room takes that one client is in, and what each
// further client in it does: see TopicBytes and MemberBytes.
func BenchmarkMemoryOfARoom(b *testing.B) {
	const clients, rooms = 20, 1000
	for name, ownRooms := range map[string]bool{"bytes/room": true, "bytes/member": false} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				h, _ := newBenchHub(b)
				kept := make([]*Client, clients)
				var before, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				for i := range kept {
					kept[i] = h.NewClient(callbackOutlet{func() {}}, "ada", "")
					live := make(chan struct{})
					kept[i].WhenLive(rooms, func() { close(live) })
					for j := range rooms {
						room := j
						if ownRooms {
							room += i * rooms
						}
						if err := kept[i].Handle(b.Context(), &protocol.Request{Type: protocol.TypeJoin, Room: testRoom(room)}); err != nil {
							b.Fatal(err)
						}
					}
					<-live
				}
				runtime.GC()
				runtime.ReadMemStats(&after)
				b.ReportMetric(float64(after.HeapInuse+after.StackInuse-before.HeapInuse-before.StackInuse)/clients/rooms, name)
				for _, c := range kept {
					c.Close(true)
				}
			}
		})
	}
}
