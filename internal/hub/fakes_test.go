package hub

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
	"switchyard/internal/testkit"
)

// A memLog is a log in memory that completes at once. The contract of the real
// logs is tested with them.
type memLog struct {
	mu         sync.Mutex
	epoch      message.Epoch
	rooms      map[message.Room][]message.Message
	first      message.Seq // of every room, greater than 1 if older messages were trimmed
	down       bool
	reads      int
	onComplete func(*message.Publication) // receives a publication of Append

	// onBatchComplete receives the publications of a batch, one room at a time.
	onBatchComplete func([]*message.Publication) // those of a batch, of one room
}

func (l *memLog) Append(p *message.Publication) {
	l.mu.Lock()
	if l.down {
		p.Err = message.ErrUnavailable
	} else {
		p.Epoch, p.Seq, p.At = l.epoch, message.Seq(len(l.rooms[p.Room])+1), time.Now()
		l.rooms[p.Room] = append(l.rooms[p.Room], p.Message())
	}
	l.mu.Unlock()
	l.onComplete(p)
}

// setDown makes the log fail, or work again.
func (l *memLog) setDown(down bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = down
}

func (l *memLog) Read(_ context.Context, r message.Range) (message.Page, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reads++; l.down {
		return message.Page{}, errors.New("injected: the log is down")
	}
	all := l.rooms[r.Room]
	p := message.Page{Epoch: l.epoch, Head: message.Seq(len(all)), First: max(1, l.first)}
	from := max(int(r.After), int(p.First)-1)
	if r.Limit > 0 && from < len(all) {
		p.Messages = slices.Clone(all[from:min(len(all), from+r.Limit)])
		p.More = from+r.Limit < len(all)
	}
	return p, nil
}

// A fakeFeed lists the heads of all rooms with every read, unless it is off.
type fakeFeed struct {
	log *memLog
	off bool
}

func (f *fakeFeed) Commits(context.Context, message.Cursor) (message.Commits, error) {
	f.log.mu.Lock()
	defer f.log.mu.Unlock()
	c := message.Commits{Epoch: f.log.epoch, Next: "1"}
	for room, all := range f.log.rooms {
		if !f.off {
			c.Heads = append(c.Heads, message.Head{Room: room, Seq: message.Seq(len(all))})
		}
	}
	return c, nil
}

func (f *fakeFeed) Heads(_ context.Context, rooms []message.Room) (message.Epoch, []message.Head, error) {
	f.log.mu.Lock()
	defer f.log.mu.Unlock()
	heads := make([]message.Head, len(rooms))
	for i, room := range rooms {
		heads[i] = message.Head{Room: room, Seq: message.Seq(len(f.log.rooms[room]))}
	}
	return f.log.epoch, heads, nil
}

// A lossyBroker carries payloads between the hubs of a test, except those that
// drop accepts.
type lossyBroker struct {
	mu   sync.Mutex
	hubs []*Hub
	drop func([]byte) bool // nil: nothing is dropped

	published     int
	subscriptions map[message.Room]int
}

func (b *lossyBroker) Publish(room message.Room, payload []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.published++
	if b.drop != nil && b.drop(payload) {
		return
	}
	for _, h := range b.hubs {
		h.Receive(room, payload)
	}
}

// setDrop changes which payloads are dropped.
func (b *lossyBroker) setDrop(drop func([]byte) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.drop = drop
}

// Subscribe implements Broker. It counts; every hub receives all payloads.
func (b *lossyBroker) Subscribe(_ context.Context, room message.Room) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.subscriptions[room]++
	return nil
}

// Unsubscribe implements Broker.
func (b *lossyBroker) Unsubscribe(room message.Room) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.subscriptions[room]--
}

// subscribed returns how many subscriptions of a room have not ended.
func (b *lossyBroker) subscribed(room message.Room) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.subscriptions[room]
}

// A recordingOutlet records the frames that a client receives.
type recordingOutlet struct {
	mu      sync.Mutex
	frames  []map[string]any
	blocked chan struct{} // Flushed waits for it, unless it is nil
}

func (o *recordingOutlet) Send(f protocol.Frame) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.frames = append(o.frames, decodeFrames(f)...)
	return true
}

// decodeFrames returns the JSON objects of frames that are joined into one.
func decodeFrames(f protocol.Frame) []map[string]any {
	var all []map[string]any
	for rest := []byte(f); len(rest) > 0; {
		n := len(rest) - len(protocol.Payload(rest)) // length of the first header
		size := len(protocol.Payload(rest))
		switch {
		case rest[1] < 126:
			size = int(rest[1])
		case rest[1] == 126:
			size = int(rest[2])<<8 | int(rest[3])
		}
		var v map[string]any
		if err := json.Unmarshal(rest[n:n+size], &v); err != nil {
			panic(err)
		}
		all = append(all, v)
		rest = rest[n+size:]
	}
	return all
}

func (o *recordingOutlet) Queue(f protocol.Frame) bool { return o.Send(f) }
func (o *recordingOutlet) Flush()                      {}

func (o *recordingOutlet) SendAnswer(f protocol.Frame) bool { return o.Send(f) }
func (o *recordingOutlet) Answered(context.Context) error   { return nil }

func (o *recordingOutlet) Flushed(ctx context.Context) error {
	if o.blocked == nil {
		return nil
	}
	select {
	case <-o.blocked:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A fixture is a log, a broker and some nodes.
type fixture struct {
	t      *testing.T
	log    *memLog
	broker *lossyBroker
	feed   *fakeFeed
	nodes  []*Hub
}

func newFixture(t *testing.T, nodes int, tune ...func(*Config)) *fixture {
	t.Helper()
	l := &memLog{epoch: "e1", rooms: map[message.Room][]message.Message{}}
	l.onComplete = func(p *message.Publication) { p.Opaque.(*pendingPublish).hub.Completed([]*message.Publication{p}) }
	f := &fixture{t: t, log: l, broker: &lossyBroker{subscriptions: map[message.Room]int{}}, feed: &fakeFeed{log: l}}
	for range nodes {
		cfg := Config{
			Log: l, Feed: f.feed, Batches: l, RoomLister: l, Broker: f.broker, FeedInterval: 20 * time.Millisecond, TopicIdle: 50 * time.Millisecond,
			Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
		}
		for _, change := range tune {
			change(&cfg)
		}
		h := New(cfg)
		l.onBatchComplete = h.Completed // batches complete on the last node, whichever appends them
		f.nodes = append(f.nodes, h)
		f.broker.hubs = append(f.broker.hubs, h)
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), testkit.Timeout)
			defer cancel()
			if err := h.Close(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	return f
}

// store adds messages to the log as if another node had committed them and its
// broadcast had been lost.
func (f *fixture) store(room message.Room, n int) {
	f.log.mu.Lock()
	defer f.log.mu.Unlock()
	for range n {
		all := f.log.rooms[room]
		seq := message.Seq(len(all) + 1)
		f.log.rooms[room] = append(all, message.Message{
			Draft: message.Draft{Room: room, ID: "s", Data: []byte(`1`)}, Epoch: f.log.epoch, Seq: seq, At: time.Now(),
		})
	}
}
