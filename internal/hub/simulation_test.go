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

// A simulation is some nodes on one model log, a broker between them, and
// clients whose frames a checker checks. Its methods are the events that may
// happen.
type simulation struct {
	*checker
	t        *testing.T // only in a scenario
	log      *modelLog
	broker   *fakeBroker
	nodes    []*Hub
	logViews []*logView
	pending  [][][]*message.Publication // by node: committed, not yet completed
	clients  []*simClient
	rooms    []message.Room
	bounds   bounds          // of nodes that start
	logLines countingHandler // of all nodes
}

// A countingHandler counts the log lines that an operator would see. It
// implements slog.Handler.
type countingHandler struct{ n atomic.Int64 }

func (h *countingHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo
}
func (h *countingHandler) WithAttrs([]slog.Attr) slog.Handler        { return h }
func (h *countingHandler) WithGroup(string) slog.Handler             { return h }
func (h *countingHandler) Handle(context.Context, slog.Record) error { h.n.Add(1); return nil }

// tinyBounds returns bounds that a few messages reach.
func tinyBounds() bounds {
	return bounds{
		inboxBytes: 800, reorderFrames: 4, reorderBytes: 2000,
		ringFrames: 4, ringBytes: 2000, pageFrames: 3, pageBytes: 400,
		undeliveredBudget: 1 << 20, ringBudget: 1 << 20, pageBudget: 1 << 20, minBytes: 100, roomBytes: 1 << 30,
	}
}

func newSimulation(b bounds, nodes, rooms, clients int) *simulation {
	l := newModelLog()
	sim := &simulation{bounds: b, log: l, checker: &checker{log: l}, broker: &fakeBroker{}}
	sim.faultActive = sim.anyFault
	for i := range nodes {
		sim.logViews = append(sim.logViews, &logView{modelLog: l})
		sim.broker.nodes = append(sim.broker.nodes, &fakeBrokerNode{fakeBroker: sim.broker, node: i})
		sim.nodes = append(sim.nodes, nil)
		sim.pending = append(sim.pending, nil)
		sim.start(i)
	}
	for i := range rooms {
		sim.rooms = append(sim.rooms, message.Room(fmt.Sprintf("r%d", i+1)))
	}
	for i := range clients {
		c := &simClient{
			checker: sim.checker, name: fmt.Sprintf("p%d", i+1),
			pendingJoins: map[string]*pendingJoin{}, rooms: map[message.Room]*roomModel{},
		}
		for _, room := range sim.rooms {
			c.rooms[room] = &roomModel{}
		}
		sim.clients = append(sim.clients, c)
	}
	return sim
}

// start starts a node with empty state.
func (sim *simulation) start(i int) {
	o := sim.broker.nodes[i]
	o.mu.Lock()
	o.subs = map[message.Room]bool{}
	o.mu.Unlock()
	sim.nodes[i] = New(Config{
		Log: sim.logViews[i], Feed: sim.logViews[i], Broker: o, bounds: sim.bounds,
		Logger: slog.New(&sim.logLines), Registerer: prometheus.NewRegistry(),
	})
}

// stop stops a node, which has no clients. It must not wait for anything.
func (sim *simulation) stop(i int) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	began := time.Now()
	if err := sim.nodes[i].Close(ctx); err != nil || time.Since(began) > 0 {
		sim.failf("node %d took %v to stop, want none: %v", i, time.Since(began), err)
	}
}

// close ends all connections and nodes.
func (sim *simulation) close() {
	for _, c := range sim.clients {
		sim.disconnect(c)
	}
	for i := range sim.nodes {
		sim.stop(i)
	}
}

// completeNext hands the oldest committed batch of a node to its hub.
func (sim *simulation) completeNext(node int) {
	if q := sim.pending[node]; len(q) > 0 {
		sim.pending[node] = q[1:]
		sim.nodes[node].Completed(q[0])
	}
}

// deliver delivers one payload of the broker, or a copy of it.
func (sim *simulation) deliver(i int, keep bool) {
	p := sim.broker.dequeue(i, keep)
	sim.nodes[p.to].Receive(p.room, p.b)
}

// dial opens a connection of the client to a node, if it has none.
func (sim *simulation) dial(c *simClient, node int) *simConn {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil {
		c.node = node
		c.conn = &simConn{owner: c, ended: make(chan struct{})}
		c.conn.client = sim.nodes[node].NewClient(c.conn, "", "")
	}
	return c.conn
}

// disconnect ends a client's connection, as the HTTP server does. The outlet
// accepts nothing more before the client leaves its rooms.
func (sim *simulation) disconnect(c *simClient) {
	c.mu.Lock()
	conn := c.conn
	if conn == nil {
		c.mu.Unlock()
		return
	}
	conn.closed = true
	close(conn.ended)
	c.conn = nil
	clear(c.pendingJoins)
	for _, model := range c.rooms {
		model.joined, model.joinRef = false, ""
	}
	c.mu.Unlock()
	conn.client.Close(false)
}

// connection returns the client's connection, or nil.
func (c *simClient) connection() *simConn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conn
}

// makeSlow makes the client's connection block after each page, until makeFast.
func (c *simClient) makeSlow() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil && c.conn.blocked == nil {
		c.conn.blocked = make(chan struct{})
	}
}

func (c *simClient) makeFast() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil && c.conn.blocked != nil {
		close(c.conn.blocked)
		c.conn.blocked = nil
	}
}

// join joins a room and models what may follow: the earlier membership ends
// before the call returns, and the new one begins with the answer.
func (sim *simulation) join(c *simClient, room message.Room, j pendingJoin) {
	c.mu.Lock()
	conn, model := c.conn, c.rooms[room]
	if len(c.pendingJoins) > 20 { // the hub would block, and this is the test's only goroutine
		c.mu.Unlock()
		return
	}
	c.refs++
	ref := fmt.Sprintf("%d", c.refs)
	if old := c.pendingJoins[model.joinRef]; old != nil {
		old.replaced = true
	}
	j.room = room
	head, _ := sim.log.head(j.from.epoch, room)
	j.ahead = j.from.seq > head
	c.pendingJoins[ref], model.joinRef = &j, ref
	c.mu.Unlock()

	r := protocol.Request{Type: protocol.TypeJoin, Room: room, Ref: protocol.Ref(`"` + ref + `"`)}
	if !j.fromNow {
		r.HasAfter, r.After, r.Epoch = true, j.from.seq, j.from.epoch
	}
	if err := conn.client.Handle(context.Background(), &r); err != nil {
		sim.failf("%s could not join %s: %v", c.name, room, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if model.joinRef == ref {
		model.joined = false // no frame precedes the answer
	}
}

// leave leaves a room. The hub answers before the call returns.
func (sim *simulation) leave(c *simClient, room message.Room) {
	c.mu.Lock()
	conn, model := c.conn, c.rooms[room]
	if conn == nil {
		c.mu.Unlock()
		return
	}
	here := model.joined || model.joinRef != ""
	if old := c.pendingJoins[model.joinRef]; old != nil {
		old.replaced = true
	}
	model.leaving = here
	c.mu.Unlock()
	err := conn.client.Handle(context.Background(), &protocol.Request{Type: protocol.TypeLeave, Room: room})
	c.mu.Lock()
	defer c.mu.Unlock()
	var invalid *message.InvalidError
	if here != (err == nil) || err != nil && !errors.As(err, &invalid) {
		sim.failf("%s left %s: was a member: %v, error: %v", c.name, room, here, err)
	}
	if model.joined || model.leaving {
		sim.failf("%s got no answer to its leave of %s", c.name, room)
	}
}

// ping records where the client is, as a ping does.
func (sim *simulation) ping(c *simClient) {
	conn := c.connection()
	if conn == nil {
		return
	}
	conn.client.PingSent()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, model := range c.rooms {
		if model.joined {
			model.atPing = model.at
		}
	}
}

// pong answers the last ping: it confirms what was sent before the ping, and no
// more.
func (sim *simulation) pong(c *simClient) {
	conn := c.connection()
	if conn == nil {
		return
	}
	conn.client.PongReceived()
	got := map[message.Room]modelPosition{}
	positions, _ := conn.client.Positions(nil)
	for _, at := range positions {
		got[at.Room] = modelPosition{at.Epoch, at.Seq}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, room := range sim.rooms {
		model := c.rooms[room]
		if model.atPing.epoch != "" {
			model.confirmed = model.atPing
		}
		if at, in := got[room]; in != model.joined || in && at != model.confirmed {
			sim.failf("%s is in %s: %v, and confirmed %v; the hub says %v, %v", c.name, room, model.joined, model.confirmed, in, at)
		}
	}
}

// checkIdle checks that the nodes keep nothing of rooms without members.
func (sim *simulation) checkIdle() {
	for i, h := range sim.nodes {
		topics, b := len(h.Rooms()), &h.memory
		if n := sim.broker.nodes[i].subscriptions(); n != 0 {
			sim.failf("node %d, without members, keeps %d subscriptions", i, n)
		}
		undelivered, rings, pages := b.undelivered.Load(), b.rings.Load(), b.pages.Load()
		if topics+len(h.readSlots.all) != 0 || undelivered+rings+pages != 0 {
			sim.failf("node %d, without members, keeps %d topics, %d reads, and %d, %d, %d bytes in inboxes, rings and pages",
				i, topics, len(h.readSlots.all), undelivered, rings, pages)
		}
	}
}

// describeTopics returns the state of all topics, for the report of a failure.
func (sim *simulation) describeTopics() string {
	var b strings.Builder
	for i, h := range sim.nodes {
		for _, room := range sim.rooms {
			if t := h.lookup(room); t != nil {
				t.mu.Lock()
				fmt.Fprintf(&b, "node %d %s: open %v, %s %d of %d, ring %d, buffered %d, mismatches %d resolved %d, repairing %v scheduled %v, %d live\n",
					i, room, t.open, t.epoch, t.last, t.knownHead, t.ring.len(), t.reorder.len(), t.epochMismatches, t.mismatchesResolved, t.repairing, t.repairScheduled, len(t.members))
				t.mu.Unlock()
			}
		}
	}
	return b.String()
}

// busyTopic describes a topic that still buffers or lacks messages, "" if there
// is none.
func (sim *simulation) busyTopic() string {
	for i, h := range sim.nodes {
		for _, r := range h.Rooms() {
			if r.Buffered != 0 || r.Behind != 0 {
				return fmt.Sprintf("node %d buffers %d of %s, and is %d behind", i, r.Buffered, r.Room, r.Behind)
			}
		}
	}
	return ""
}

// anyFault reports whether a node cannot use the log or the broker normally.
func (sim *simulation) anyFault() bool {
	for i, v := range sim.logViews {
		v.mu.Lock()
		bad := v.down || v.delay > 0
		v.mu.Unlock()
		o := sim.broker.nodes[i]
		o.mu.Lock()
		bad = bad || o.subscribeBlocked
		o.mu.Unlock()
		if bad {
			return true
		}
	}
	return false
}

// runDue runs everything that is due now, and fails the test if a check failed.
func (sim *simulation) runDue(t rapid.TB) {
	t.Helper()
	synctest.Wait()
	sim.extendGrace()
	if v := sim.firstFailure(); v != "" {
		t.Fatal(v)
	}
}
