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
)

// memLog is a log in memory; the contract of the real ones is tested with them.
type memLog struct {
	mu         sync.Mutex
	epoch      message.Epoch
	rooms      map[message.Room][]message.Message
	first      message.Seq // of every room, for trimmed ones
	down       bool
	reads      int
	onComplete func(*message.Publication) // settles

	onBatchComplete func([]*message.Publication) // those of a batch, of one room
}

func (l *memLog) Append(p *message.Publication) {
	l.mu.Lock()
	p.Epoch, p.At = l.epoch, time.Now()
	p.Seq = message.Seq(len(l.rooms[p.Room]) + 1)
	if l.down {
		p.Err = message.ErrUnavailable
	} else {
		l.rooms[p.Room] = append(l.rooms[p.Room], p.Message())
	}
	l.mu.Unlock()
	l.onComplete(p)
}

// setDown takes the log away, or gives it back.
func (l *memLog) setDown(down bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = down
}

func (l *memLog) Read(_ context.Context, r message.Range) (message.Page, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reads++; l.down {
		return message.Page{}, errors.New("planted: log is away")
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

// fakeFeed tells the heads of the log, unless it is switched off.
type fakeFeed struct {
	log *memLog
	off bool
}

func (f *fakeFeed) Commits(context.Context, message.Cursor) (message.Commits, error) {
	f.log.mu.Lock()
	defer f.log.mu.Unlock()
	c := message.Commits{Epoch: f.log.epoch, Next: 1}
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

// lossyBroker carries payloads between the hubs of a test, through lose.
type lossyBroker struct {
	mu   sync.Mutex
	hubs []*Hub
	drop func([]byte) bool // nil: carries all

	published int
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

// setDrop makes the wire lose what lose says; nil: nothing.
func (b *lossyBroker) setDrop(drop func([]byte) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.drop = drop
}

func (b *lossyBroker) Subscribe(context.Context, message.Room) error { return nil }
func (b *lossyBroker) Unsubscribe(message.Room)                      {}

// recordingOutlet records what a client gets.
type recordingOutlet struct {
	mu      sync.Mutex
	frames  []map[string]any
	blocked chan struct{} // Flushed waits for it, if set
}

func (o *recordingOutlet) Send(f protocol.Frame) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.frames = append(o.frames, decodeFrames(f)...)
	return true
}

// decodeFrames returns the JSON objects of some frames that are sent as one.
func decodeFrames(f protocol.Frame) []map[string]any {
	var all []map[string]any
	for rest := []byte(f); len(rest) > 0; {
		n := len(rest) - len(protocol.Payload(rest)) // the first header
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

// fixture is one log, a wire, and some nodes.
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
	f := &fixture{t: t, log: l, broker: &lossyBroker{}, feed: &fakeFeed{log: l}}
	for range nodes {
		cfg := Config{
			Log: l, Feed: f.feed, Batches: l, Directory: l, Broker: f.broker, FeedInterval: 20 * time.Millisecond, TopicIdle: 50 * time.Millisecond,
			Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
		}
		for _, change := range tune {
			change(&cfg)
		}
		h := New(cfg)
		l.onBatchComplete = h.Completed // a batch is appended on the newest node, whichever asks
		f.nodes = append(f.nodes, h)
		f.broker.hubs = append(f.broker.hubs, h)
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			if err := h.Close(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	return f
}

// store puts messages in the log as if another node had stored them and its
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

// eventually waits for a condition, and says what was waited for when it does
// not come.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("waited 10 s for %s", what)
		case <-tick.C:
		}
	}
}
