package hub

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"switchyard/internal/message"
)

// A ledger is the log that the property is checked on: it keeps what every
// epoch held, so that a judge can tell what was right at any time, and it can
// be slow, away, trimmed, pruned, and put back to an older state.
type ledger struct {
	mu       sync.Mutex
	epochs   []message.Epoch // the newest last
	books    map[message.Epoch]map[message.Room][]message.Message
	first    map[message.Epoch]map[message.Room]message.Seq // 0: nothing is trimmed
	stored   int                                            // names and numbers each message
	feed     []message.Head                                 // row i has the id i+1
	floor    message.Cursor                                 // of the feed: older rows are pruned
	reads    int                                            // reads begun
	asked    int                                            // of the feed and for heads
	now, max int                                            // reads under way, and most of them
}

// A view is how one node sees the ledger. It implements Log and Feed.
type view struct {
	*ledger
	down     bool // reads fail
	feedDown bool
	slow     time.Duration // how long an answer takes, its snapshot being old by then
}

var errPlanted = errors.New("planted: the log is away")

func newLedger() *ledger {
	l := &ledger{
		books: map[message.Epoch]map[message.Room][]message.Message{},
		first: map[message.Epoch]map[message.Room]message.Seq{},
	}
	l.begin()
	return l
}

// begin starts an epoch, with nothing in it. Caller holds mu, if anybody else
// knows the ledger.
func (l *ledger) begin() message.Epoch {
	e := message.Epoch(fmt.Sprintf("e%d", len(l.epochs)+1))
	l.epochs = append(l.epochs, e)
	l.books[e] = map[message.Room][]message.Message{}
	l.first[e] = map[message.Room]message.Seq{}
	return e
}

func (l *ledger) epoch() message.Epoch { return l.epochs[len(l.epochs)-1] }

// commit stores messages and returns them as the committer hands them over.
func (l *ledger) commit(room message.Room, n, size int) []*message.Publication {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.epoch()
	var batch []*message.Publication
	for range n {
		l.stored++
		data := []byte(strconv.Itoa(l.stored))
		for len(data) < size {
			data = append(data, ' ')
		}
		m := message.Message{
			Draft: message.Draft{Room: room, ID: fmt.Sprintf("m%d", l.stored), Data: data},
			Epoch: e, Seq: message.Seq(len(l.books[e][room]) + 1), At: time.Now(),
		}
		l.books[e][room] = append(l.books[e][room], m)
		batch = append(batch, &message.Publication{Draft: m.Draft, Epoch: e, Seq: m.Seq, At: m.At})
	}
	l.feed = append(l.feed, message.Head{Room: room, Seq: message.Seq(len(l.books[e][room]))})
	return batch
}

// again returns a stored message as a resend of its id would get it.
func (l *ledger) again(room message.Room, seq message.Seq) []*message.Publication {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.books[l.epoch()][room][seq-1]
	return []*message.Publication{{Draft: m.Draft, Epoch: l.epoch(), Seq: m.Seq, At: m.At, Duplicate: true}}
}

// restore puts an older state back, in which each room had so many messages.
func (l *ledger) restore(heads map[message.Room]int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.epoch()
	e := l.begin()
	for room, n := range heads {
		l.books[e][room] = slices.Clone(l.books[old][room][:n])
		// Of what is trimmed by now, some was there then.
		l.first[e][room] = min(l.first[old][room], message.Seq(n+1))
	}
	l.floor = message.Cursor(len(l.feed) + 1)
}

// head is the newest seq of a room in an epoch, and whether there was that epoch.
func (l *ledger) head(e message.Epoch, room message.Room) (message.Seq, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	book, ok := l.books[e]
	return message.Seq(len(book[room])), ok
}

func (l *ledger) oldest(e message.Epoch, room message.Room) message.Seq {
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(1, l.first[e][room])
}

// trim lets go of all before a seq.
func (l *ledger) trim(room message.Room, first message.Seq) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.first[l.epoch()][room] = max(first, l.first[l.epoch()][room])
}

// prune lets go of the feed's rows, but for the newest few.
func (l *ledger) prune(keep int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.floor = max(l.floor, message.Cursor(len(l.feed)+1-min(keep, len(l.feed))))
}

// page is what the log answers to a range now. Caller holds mu.
func (l *ledger) page(r message.Range) message.Page {
	e := l.epoch()
	all := l.books[e][r.Room]
	p := message.Page{Epoch: e, Head: message.Seq(len(all)), First: max(1, l.first[e][r.Room])}
	from := max(int(r.After), int(p.First)-1)
	for size := 0; r.Limit > 0 && from < len(all); from++ {
		m := all[from]
		m.Epoch = e
		if size += len(m.Data); len(p.Messages) == r.Limit || len(p.Messages) > 0 && size > r.MaxBytes {
			p.More = true
			break
		}
		p.Messages = append(p.Messages, m)
	}
	return p
}

// set changes how the node sees the ledger.
func (v *view) set(change func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	change()
}

// Read implements Log.
func (v *view) Read(ctx context.Context, r message.Range) (message.Page, error) {
	v.mu.Lock()
	page, down, slow := v.page(r), v.down, v.slow
	v.reads++
	v.now++
	v.max = max(v.max, v.now)
	v.mu.Unlock()
	err := v.late(ctx, slow, down)
	v.mu.Lock()
	v.now--
	v.mu.Unlock()
	return page, err
}

// late waits as long as the log takes to answer.
func (v *view) late(ctx context.Context, slow time.Duration, down bool) error {
	if slow > 0 {
		select {
		case <-time.After(slow):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if down {
		return errPlanted
	}
	return nil
}

// Commits implements Feed.
func (v *view) Commits(ctx context.Context, cursor message.Cursor) (message.Commits, error) {
	v.mu.Lock()
	v.asked++
	c := message.Commits{Epoch: v.epoch(), Next: message.Cursor(len(v.feed) + 1)}
	if cursor > 0 {
		c.Lost = cursor < v.floor || cursor > c.Next
		heads := map[message.Room]message.Seq{}
		for i := int(cursor) - 1; i < len(v.feed) && !c.Lost; i++ {
			h := v.feed[i]
			heads[h.Room] = max(heads[h.Room], h.Seq)
		}
		for room, seq := range heads {
			c.Heads = append(c.Heads, message.Head{Room: room, Seq: seq})
		}
	}
	slow, down := v.slow, v.feedDown
	v.mu.Unlock()
	return c, v.late(ctx, slow, down)
}

// Heads implements Feed.
func (v *view) Heads(ctx context.Context, rooms []message.Room) (message.Epoch, []message.Head, error) {
	v.mu.Lock()
	v.asked++
	e := v.epoch()
	heads := make([]message.Head, len(rooms))
	for i, room := range rooms {
		heads[i] = message.Head{Room: room, Seq: message.Seq(len(v.books[e][room]))}
	}
	slow, down := v.slow, v.feedDown
	v.mu.Unlock()
	return e, heads, v.late(ctx, slow, down)
}

// Append implements Log; the property commits by the ledger's own doors.
func (v *view) Append(*message.Publication) { panic("not in this test") }

// A post carries payloads between nodes when it is told to, in the order that
// it is told to, as often as it is told to. It implements Broker, for one node.
type post struct {
	mu      sync.Mutex
	parcels []parcel
	offices []*office
}

type parcel struct {
	to   int
	room message.Room
	b    []byte
}

// An office is the post of one node.
type office struct {
	*post
	node int
	subs map[message.Room]bool
	deaf bool // subscriptions do not come through
}

// Publish implements Broker: whoever listens is owed a parcel.
func (o *office) Publish(room message.Room, b []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for to, other := range o.offices {
		if other.subs[room] {
			o.parcels = append(o.parcels, parcel{to, room, b})
		}
	}
}

// Subscribe implements Broker.
func (o *office) Subscribe(ctx context.Context, room message.Room) error {
	o.mu.Lock()
	deaf := o.deaf
	if !deaf {
		o.subs[room] = true
	}
	o.mu.Unlock()
	if deaf {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

// Unsubscribe implements Broker.
func (o *office) Unsubscribe(room message.Room) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.subs, room)
}

// hear subscribes to what the node should have heard of, as a broker does that
// is back.
func (o *office) hear(rooms []message.Room) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.deaf = false
	for _, room := range rooms {
		o.subs[room] = true
	}
}

// take removes a parcel, or copies it.
func (p *post) take(i int, keep bool) parcel {
	p.mu.Lock()
	defer p.mu.Unlock()
	got := p.parcels[i]
	if !keep {
		p.parcels = slices.Delete(p.parcels, i, i+1)
	}
	return got
}

func (p *post) waiting() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.parcels)
}

// lose forgets all parcels.
func (p *post) lose() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.parcels = nil
}
