package hub

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"switchyard/internal/message"
)

// A modelLog is the log of the simulation. It keeps the messages of every
// epoch, so that the checker can tell which frames are right at any time. It
// can be slow, down, trimmed, pruned and restored to an older state.
type modelLog struct {
	mu                  sync.Mutex
	epochs              []message.Epoch // the newest last
	messages            map[message.Epoch]map[message.Room][]message.Message
	first               map[message.Epoch]map[message.Room]message.Seq // 0: nothing is trimmed
	stored              int                                            // number of all messages, which names each
	feed                []message.Head                                 // row i has the id i+1
	oldestRow           int                                            // of the feed: older rows are pruned
	reads               int                                            // reads begun
	feedQueries         int                                            // of the feed and of heads
	readsNow, readsPeak int                                            // reads in progress, and the most of them
}

// A logView is how one node sees the log. It implements Log and CommitFeed.
type logView struct {
	*modelLog
	down      bool          // reads fail
	feedDown  bool          // reads of the feed fail
	headsDown bool          // reads of heads by name fail
	delay     time.Duration // how long a read takes; its snapshot is of the beginning
}

var errInjected = errors.New("injected: the log is down")

func newModelLog() *modelLog {
	l := &modelLog{
		messages: map[message.Epoch]map[message.Room][]message.Message{},
		first:    map[message.Epoch]map[message.Room]message.Seq{},
	}
	l.newEpoch()
	return l
}

// newEpoch begins an empty epoch. Caller holds mu once the log is shared.
func (l *modelLog) newEpoch() message.Epoch {
	e := message.Epoch(fmt.Sprintf("e%d", len(l.epochs)+1))
	l.epochs = append(l.epochs, e)
	l.messages[e] = map[message.Room][]message.Message{}
	l.first[e] = map[message.Room]message.Seq{}
	return e
}

func (l *modelLog) epoch() message.Epoch { return l.epochs[len(l.epochs)-1] }

// commit stores messages and returns them as the append worker hands them over.
func (l *modelLog) commit(room message.Room, n, size int) []*message.Publication {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.epoch()
	var batch []*message.Publication
	for range n {
		l.stored++
		data := strconv.AppendInt(make([]byte, 0, max(size, 20)), int64(l.stored), 10)
		data = append(data, bytes.Repeat([]byte{' '}, max(0, size-len(data)))...)
		m := message.Message{
			Draft: message.Draft{Room: room, ID: fmt.Sprintf("m%d", l.stored), Data: data},
			Epoch: e, Seq: message.Seq(len(l.messages[e][room]) + 1), At: time.Now(),
		}
		l.messages[e][room] = append(l.messages[e][room], m)
		batch = append(batch, &message.Publication{Draft: m.Draft, Epoch: e, Seq: m.Seq, At: m.At})
	}
	l.feed = append(l.feed, message.Head{Room: room, Seq: message.Seq(len(l.messages[e][room]))})
	return batch
}

// resend returns a stored message as the outcome of a second publish with its
// id.
func (l *modelLog) resend(room message.Room, seq message.Seq) []*message.Publication {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.messages[l.epoch()][room][seq-1]
	return []*message.Publication{{Draft: m.Draft, Epoch: l.epoch(), Seq: m.Seq, At: m.At, Duplicate: true}}
}

// restore restores an older state, in which each room had that many messages.
func (l *modelLog) restore(heads map[message.Room]int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.epoch()
	e := l.newEpoch()
	for room, n := range heads {
		l.messages[e][room] = slices.Clone(l.messages[old][room][:n])
		// Messages that were trimmed since are back.
		l.first[e][room] = min(l.first[old][room], message.Seq(n+1))
	}
	l.oldestRow = len(l.feed) + 1
}

// head returns the newest seq of a room in an epoch, and whether that epoch
// exists.
func (l *modelLog) head(e message.Epoch, room message.Room) (message.Seq, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	messages, ok := l.messages[e]
	return message.Seq(len(messages[room])), ok
}

// oldest returns the oldest seq that is stored.
func (l *modelLog) oldest(e message.Epoch, room message.Room) message.Seq {
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(1, l.first[e][room])
}

// trim deletes the messages before a seq.
func (l *modelLog) trim(room message.Room, first message.Seq) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.first[l.epoch()][room] = max(first, l.first[l.epoch()][room])
}

// pruneFeed deletes the rows of the feed, except the newest few.
func (l *modelLog) pruneFeed(keep int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.oldestRow = max(l.oldestRow, len(l.feed)+1-min(keep, len(l.feed)))
}

// page returns the answer to a range. Caller holds mu.
func (l *modelLog) page(r message.Range) message.Page {
	e := l.epoch()
	all := l.messages[e][r.Room]
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

// set changes how the node sees the log.
func (v *logView) set(change func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	change()
}

// Read implements Log.
func (v *logView) Read(ctx context.Context, r message.Range) (message.Page, error) {
	v.mu.Lock()
	page, down, delay := v.page(r), v.down, v.delay
	v.reads++
	v.readsNow++
	v.readsPeak = max(v.readsPeak, v.readsNow)
	v.mu.Unlock()
	err := v.respond(ctx, delay, down)
	v.mu.Lock()
	v.readsNow--
	v.mu.Unlock()
	return page, err
}

// respond takes as long as the log does, and fails while it is down.
func (v *logView) respond(ctx context.Context, delay time.Duration, down bool) error {
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if down {
		return errInjected
	}
	return nil
}

// Commits implements CommitFeed.
func (v *logView) Commits(ctx context.Context, cursor message.Cursor) (message.Commits, error) {
	v.mu.Lock()
	v.feedQueries++
	next := len(v.feed) + 1
	c := message.Commits{Epoch: v.epoch(), Next: message.Cursor(strconv.Itoa(next))}
	if cursor != "" {
		from, err := strconv.Atoi(string(cursor))
		c.Incomplete = err != nil || from < v.oldestRow || from > next
		heads := map[message.Room]message.Seq{}
		for i := from - 1; i < len(v.feed) && !c.Incomplete; i++ {
			h := v.feed[i]
			heads[h.Room] = max(heads[h.Room], h.Seq)
		}
		for room, seq := range heads {
			c.Heads = append(c.Heads, message.Head{Room: room, Seq: seq})
		}
	}
	delay, down := v.delay, v.feedDown
	v.mu.Unlock()
	return c, v.respond(ctx, delay, down)
}

// Heads implements CommitFeed.
func (v *logView) Heads(ctx context.Context, rooms []message.Room) (message.Epoch, []message.Head, error) {
	v.mu.Lock()
	v.feedQueries++
	e := v.epoch()
	heads := make([]message.Head, len(rooms))
	for i, room := range rooms {
		heads[i] = message.Head{Room: room, Seq: message.Seq(len(v.messages[e][room]))}
	}
	delay, down := v.delay, v.feedDown || v.headsDown
	v.mu.Unlock()
	return e, heads, v.respond(ctx, delay, down)
}

// Append implements Log. The simulation commits by commit instead.
func (v *logView) Append(*message.Publication) { panic("the simulation does not publish") }

// A fakeBroker carries payloads between nodes when the test says so, in the
// order and as often as it says.
type fakeBroker struct {
	mu    sync.Mutex
	queue []queuedPayload
	nodes []*fakeBrokerNode
}

type queuedPayload struct {
	to   int
	room message.Room
	b    []byte
}

// A fakeBrokerNode is one node's side of a fakeBroker. It implements Broker.
type fakeBrokerNode struct {
	*fakeBroker
	node             int
	subs             map[message.Room]bool
	subscribeBlocked bool // subscriptions do not become active
}

// Publish implements Broker. It queues a payload for each subscribed node.
func (n *fakeBrokerNode) Publish(room message.Room, b []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for to, other := range n.nodes {
		if other.subs[room] {
			n.queue = append(n.queue, queuedPayload{to, room, b})
		}
	}
}

// Subscribe implements Broker.
func (n *fakeBrokerNode) Subscribe(ctx context.Context, room message.Room) error {
	n.mu.Lock()
	blocked := n.subscribeBlocked
	if !blocked {
		n.subs[room] = true
	}
	n.mu.Unlock()
	if blocked {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

// Unsubscribe implements Broker.
func (n *fakeBrokerNode) Unsubscribe(room message.Room) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.subs, room)
}

// subscriptions returns the number of subscribed rooms.
func (n *fakeBrokerNode) subscriptions() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.subs)
}

// resubscribe makes subscriptions active, as a broker does that works again.
func (n *fakeBrokerNode) resubscribe(rooms []message.Room) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.subscribeBlocked = false
	for _, room := range rooms {
		n.subs[room] = true
	}
}

// dequeue removes a payload, or copies it if keep is true.
func (b *fakeBroker) dequeue(i int, keep bool) queuedPayload {
	b.mu.Lock()
	defer b.mu.Unlock()
	got := b.queue[i]
	if !keep {
		b.queue = slices.Delete(b.queue, i, i+1)
	}
	return got
}

func (b *fakeBroker) queued() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.queue)
}

// dropAll loses all queued payloads.
func (b *fakeBroker) dropAll() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.queue = nil
}
