package hub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// An simulation is some nodes on one ledger, the post between them, and players
// whose frames a judge reads. Its methods are what may happen.
type simulation struct {
	*checker
	t        *testing.T // a story's own
	log      *modelLog
	broker   *fakeBroker
	nodes    []*Hub
	logViews []*logView
	pending  [][][]*message.Publication // by node: committed, not settled yet
	clients  []*simClient
	rooms    []message.Room
	bounds   bounds          // of nodes that start
	logLines countingHandler // of their logs
}

// countingHandler counts what an operator has to read. It implements slog.Handler.
type countingHandler struct{ n atomic.Int64 }

func (l *countingHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo
}
func (l *countingHandler) WithAttrs([]slog.Attr) slog.Handler        { return l }
func (l *countingHandler) WithGroup(string) slog.Handler             { return l }
func (l *countingHandler) Handle(context.Context, slog.Record) error { l.n.Add(1); return nil }

// tinyBounds bounds bring every edge within reach of a few messages.
func tinyBounds() bounds {
	return bounds{
		inboxBytes: 800, reorderFrames: 4, reorderBytes: 2000,
		ringFrames: 4, ringBytes: 2000, pageFrames: 3, pageBytes: 400,
		undeliveredBudget: 1 << 20, ringBudget: 1 << 20, pageBudget: 1 << 20, minBytes: 100,
	}
}

func newSimulation(b bounds, nodes, rooms, clients int) *simulation {
	l := newModelLog()
	a := &simulation{bounds: b, log: l, checker: &checker{log: l}, broker: &fakeBroker{}}
	a.faultActive = a.anyFault
	for i := range nodes {
		a.logViews = append(a.logViews, &logView{modelLog: l})
		a.broker.nodes = append(a.broker.nodes, &fakeBrokerNode{fakeBroker: a.broker, node: i})
		a.nodes = append(a.nodes, nil)
		a.pending = append(a.pending, nil)
		a.start(i)
	}
	for i := range rooms {
		a.rooms = append(a.rooms, message.Room(fmt.Sprintf("r%d", i+1)))
	}
	for i := range clients {
		p := &simClient{
			checker: a.checker, name: fmt.Sprintf("p%d", i+1),
			pendingJoins: map[string]*pendingJoin{}, rooms: map[message.Room]*roomModel{},
		}
		for _, room := range a.rooms {
			p.rooms[room] = &roomModel{}
		}
		a.clients = append(a.clients, p)
	}
	return a
}

// start begins a node, which knows nothing.
func (a *simulation) start(i int) {
	o := a.broker.nodes[i]
	o.mu.Lock()
	o.subs = map[message.Room]bool{}
	o.mu.Unlock()
	a.nodes[i] = New(Config{
		Log: a.logViews[i], Feed: a.logViews[i], Broker: o, bounds: a.bounds,
		Logger: slog.New(&a.logLines), Registerer: prometheus.NewRegistry(),
	})
}

// stop ends a node; it has nobody left, and must not wait for anything.
func (a *simulation) stop(i int) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	began := time.Now()
	if err := a.nodes[i].Close(ctx); err != nil || time.Since(began) > 0 {
		a.failf("node %d did not end at once, but after %v: %v", i, time.Since(began), err)
	}
}

// close ends what is left, whatever the outcome.
func (a *simulation) close() {
	for _, p := range a.clients {
		a.disconnect(p)
	}
	for i := range a.nodes {
		a.stop(i)
	}
}

// completeNext hands the oldest pending batch of a node to its hub.
func (a *simulation) completeNext(node int) {
	if q := a.pending[node]; len(q) > 0 {
		a.pending[node] = q[1:]
		a.nodes[node].Completed(q[0])
	}
}

// deliver hands over one parcel of the post.
func (a *simulation) deliver(i int, keep bool) {
	p := a.broker.dequeue(i, keep)
	a.nodes[p.to].Receive(p.room, p.b)
}

// dial gives a player a connection to a node, if it has none.
func (a *simulation) dial(p *simClient, node int) *simConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn == nil {
		p.node = node
		p.conn = &simConn{owner: p, ended: make(chan struct{})}
		p.conn.client = a.nodes[node].NewClient(p.conn, "")
	}
	return p.conn
}

// disconnect ends a player's connection, as http does for whatever reason. The
// client's place is given up after nothing more is taken.
func (a *simulation) disconnect(p *simClient) {
	p.mu.Lock()
	l := p.conn
	if l == nil {
		p.mu.Unlock()
		return
	}
	l.closed = true
	close(l.ended)
	p.conn = nil
	clear(p.pendingJoins)
	for _, s := range p.rooms {
		s.joined, s.joinRef = false, ""
	}
	p.mu.Unlock()
	l.client.Close(false)
}

// connection is the player's, nil while it has none.
func (p *simClient) connection() *simConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.conn
}

// makeSlow makes a player's connection slow, and loose fast again.
func (p *simClient) makeSlow() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn != nil && p.conn.blocked == nil {
		p.conn.blocked = make(chan struct{})
	}
}

func (p *simClient) makeFast() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn != nil && p.conn.blocked != nil {
		close(p.conn.blocked)
		p.conn.blocked = nil
	}
}

// join asks for a room and models what may follow: the old stay ends before
// the call does, and the new one begins with its answer.
func (a *simulation) join(p *simClient, room message.Room, k pendingJoin) {
	p.mu.Lock()
	l, s := p.conn, p.rooms[room]
	if len(p.pendingJoins) > 20 { // a reader would wait here, and this is the test's goroutine
		p.mu.Unlock()
		return
	}
	p.refs++
	ref := fmt.Sprintf("%d", p.refs)
	if old := p.pendingJoins[s.joinRef]; old != nil {
		old.replaced = true
	}
	k.room = room
	head, _ := a.log.head(k.from.epoch, room)
	k.ahead = k.from.seq > head
	p.pendingJoins[ref], s.joinRef = &k, ref
	p.mu.Unlock()

	r := protocol.Request{Type: protocol.TypeJoin, Room: room, Ref: protocol.Ref(`"` + ref + `"`)}
	if !k.fromNow {
		r.HasAfter, r.After, r.Epoch = true, k.from.seq, k.from.epoch
	}
	if err := l.client.Handle(context.Background(), &r); err != nil {
		a.failf("%s may not join %s: %v", p.name, room, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.joinRef == ref {
		s.joined = false // nothing comes before the answer
	}
}

// leave leaves a room; the answer is given at once.
func (a *simulation) leave(p *simClient, room message.Room) {
	p.mu.Lock()
	l, s := p.conn, p.rooms[room]
	if l == nil {
		p.mu.Unlock()
		return
	}
	here := s.joined || s.joinRef != ""
	if old := p.pendingJoins[s.joinRef]; old != nil {
		old.replaced = true
	}
	s.leaving = here
	p.mu.Unlock()
	err := l.client.Handle(context.Background(), &protocol.Request{Type: protocol.TypeLeave, Room: room})
	p.mu.Lock()
	defer p.mu.Unlock()
	var invalid *message.InvalidError
	if here != (err == nil) || err != nil && !errors.As(err, &invalid) {
		a.failf("%s left %s, where it was: %v: %v", p.name, room, here, err)
	}
	if s.joined || s.leaving {
		a.failf("%s got no answer to its leave of %s", p.name, room)
	}
}

// ping notes where the player is, as a ping goes out to it.
func (a *simulation) ping(p *simClient) {
	l := p.connection()
	if l == nil {
		return
	}
	l.client.PingSent()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.rooms {
		if s.joined {
			s.atPing = s.at
		}
	}
}

// pong answers the last ping: the player has what went out before it, and no
// more is proved.
func (a *simulation) pong(p *simClient) {
	l := p.connection()
	if l == nil {
		return
	}
	l.client.PongReceived()
	got := map[message.Room]modelPosition{}
	positions, _ := l.client.Positions(nil)
	for _, at := range positions {
		got[at.Room] = modelPosition{at.Epoch, at.Seq}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, room := range a.rooms {
		s := p.rooms[room]
		if s.atPing.epoch != "" {
			s.confirmed = s.atPing
		}
		if at, in := got[room]; in != s.joined || in && at != s.confirmed {
			a.failf("%s is in %s: %v, and proved %v; the hub has %v, %v", p.name, room, s.joined, s.confirmed, in, at)
		}
	}
}

// checkIdle says that no node keeps anything of rooms that nobody is in.
func (a *simulation) checkIdle() {
	for i, h := range a.nodes {
		topics, b := len(h.Rooms()), &h.memory
		undelivered, rings, pages := b.undelivered.Load(), b.rings.Load(), b.pages.Load()
		if topics+len(h.readSlots.all) != 0 || undelivered+rings+pages != 0 {
			a.failf("node %d, empty, keeps %d topics, %d reads and %d, %d, %d bytes early, in rings and in pages",
				i, topics, len(h.readSlots.all), undelivered, rings, pages)
		}
	}
}

// describeTopics tells what the nodes' topics think, for a failure's report.
func (a *simulation) describeTopics() string {
	var b strings.Builder
	for i, h := range a.nodes {
		for _, room := range a.rooms {
			if t := h.lookup(room); t != nil {
				t.mu.Lock()
				fmt.Fprintf(&b, "node %d %s: open %v, %s %d of %d, ring %d, held %d, doubts %d settled %d, repairing %v waiting %v, %d live\n",
					i, room, t.open, t.epoch, t.last, t.target, t.ring.len(), t.reorder.len(), t.epochMismatches, t.mismatchesResolved, t.repairing, t.repairScheduled, len(t.members))
				t.mu.Unlock()
			}
		}
	}
	return b.String()
}

// busyTopic names a topic that holds something though nothing is under way, ""
// when there is none.
func (a *simulation) busyTopic() string {
	for i, h := range a.nodes {
		for _, r := range h.Rooms() {
			if r.Held != 0 || r.Behind != 0 {
				return fmt.Sprintf("node %d holds %d of %s, and is %d behind", i, r.Held, r.Room, r.Behind)
			}
		}
	}
	return ""
}

// anyFault says whether a node can't reach the log or the broker as it should.
func (a *simulation) anyFault() bool {
	for i, v := range a.logViews {
		v.mu.Lock()
		bad := v.down || v.delay > 0
		v.mu.Unlock()
		o := a.broker.nodes[i]
		o.mu.Lock()
		bad = bad || o.subscribeBlocked
		o.mu.Unlock()
		if bad {
			return true
		}
	}
	return false
}

// runDue lets everything happen that is due now.
func (a *simulation) runDue(t rapid.TB) {
	t.Helper()
	synctest.Wait()
	a.extendGrace()
	if v := a.firstFailure(); v != "" {
		t.Fatal(v)
	}
}
