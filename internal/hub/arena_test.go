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

// An arena is some nodes on one ledger, the post between them, and players
// whose frames a judge reads. Its methods are what may happen.
type arena struct {
	*judge
	t       *testing.T // a story's own
	log     *ledger
	post    *post
	nodes   []*Hub
	views   []*view
	pending [][][]*message.Publication // by node: committed, not settled yet
	players []*player
	rooms   []message.Room
	bounds  bounds // of nodes that start
	lines   lines  // of their logs
}

// lines counts what an operator has to read. It implements slog.Handler.
type lines struct{ n atomic.Int64 }

func (l *lines) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }
func (l *lines) WithAttrs([]slog.Attr) slog.Handler               { return l }
func (l *lines) WithGroup(string) slog.Handler                    { return l }
func (l *lines) Handle(context.Context, slog.Record) error        { l.n.Add(1); return nil }

// tiny bounds bring every edge within reach of a few messages.
func tiny() bounds {
	return bounds{
		inboxBytes: 800, holdFrames: 4, holdBytes: 2000,
		ringFrames: 4, ringBytes: 2000, pageFrames: 3, pageBytes: 400,
		earlyBudget: 1 << 20, ringBudget: 1 << 20, pageBudget: 1 << 20, least: 100,
	}
}

func newArena(b bounds, nodes, rooms, players int) *arena {
	l := newLedger()
	a := &arena{bounds: b, log: l, judge: &judge{log: l}, post: &post{}}
	a.faulty = a.hampered
	for i := range nodes {
		a.views = append(a.views, &view{ledger: l})
		a.post.offices = append(a.post.offices, &office{post: a.post, node: i})
		a.nodes = append(a.nodes, nil)
		a.pending = append(a.pending, nil)
		a.start(i)
	}
	for i := range rooms {
		a.rooms = append(a.rooms, message.Room(fmt.Sprintf("r%d", i+1)))
	}
	for i := range players {
		p := &player{
			judge: a.judge, name: fmt.Sprintf("p%d", i+1),
			owed: map[string]*ask{}, seats: map[message.Room]*seat{},
		}
		for _, room := range a.rooms {
			p.seats[room] = &seat{}
		}
		a.players = append(a.players, p)
	}
	return a
}

// start begins a node, which knows nothing.
func (a *arena) start(i int) {
	o := a.post.offices[i]
	o.mu.Lock()
	o.subs = map[message.Room]bool{}
	o.mu.Unlock()
	a.nodes[i] = New(Config{
		Log: a.views[i], Feed: a.views[i], Broker: o, bounds: a.bounds,
		Logger: slog.New(&a.lines), Registerer: prometheus.NewRegistry(),
	})
}

// stop ends a node; it has nobody left, and must not wait for anything.
func (a *arena) stop(i int) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	began := time.Now()
	if err := a.nodes[i].Close(ctx); err != nil || time.Since(began) > 0 {
		a.complain("node %d did not end at once, but after %v: %v", i, time.Since(began), err)
	}
}

// close ends what is left, whatever the outcome.
func (a *arena) close() {
	for _, p := range a.players {
		a.hangUp(p)
	}
	for i := range a.nodes {
		a.stop(i)
	}
}

// settle hands the oldest pending batch of a node to its hub.
func (a *arena) settle(node int) {
	if q := a.pending[node]; len(q) > 0 {
		a.pending[node] = q[1:]
		a.nodes[node].Settled(q[0])
	}
}

// deliver hands over one parcel of the post.
func (a *arena) deliver(i int, keep bool) {
	p := a.post.take(i, keep)
	a.nodes[p.to].Receive(p.room, p.b)
}

// dial gives a player a connection to a node, if it has none.
func (a *arena) dial(p *player, node int) *line {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.line == nil {
		p.node = node
		p.line = &line{player: p, ended: make(chan struct{})}
		p.line.client = a.nodes[node].NewClient(p.line, "")
	}
	return p.line
}

// hangUp ends a player's connection, as http does for whatever reason. The
// client's place is given up after nothing more is taken.
func (a *arena) hangUp(p *player) {
	p.mu.Lock()
	l := p.line
	if l == nil {
		p.mu.Unlock()
		return
	}
	l.dead = true
	close(l.ended)
	p.line = nil
	clear(p.owed)
	for _, s := range p.seats {
		s.in, s.asked = false, ""
	}
	p.mu.Unlock()
	l.client.Close(false)
}

// connection is the player's, nil while it has none.
func (p *player) connection() *line {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.line
}

// stick makes a player's connection slow, and loose fast again.
func (p *player) stick() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.line != nil && p.line.stuck == nil {
		p.line.stuck = make(chan struct{})
	}
}

func (p *player) loose() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.line != nil && p.line.stuck != nil {
		close(p.line.stuck)
		p.line.stuck = nil
	}
}

// join asks for a room and models what may follow: the old stay ends before
// the call does, and the new one begins with its answer.
func (a *arena) join(p *player, room message.Room, k ask) {
	p.mu.Lock()
	l, s := p.line, p.seats[room]
	if len(p.owed) > 20 { // a reader would wait here, and this is the test's goroutine
		p.mu.Unlock()
		return
	}
	p.refs++
	ref := fmt.Sprintf("%d", p.refs)
	if old := p.owed[s.asked]; old != nil {
		old.replaced = true
	}
	k.room = room
	head, _ := a.log.head(k.from.epoch, room)
	k.ahead = k.from.seq > head
	p.owed[ref], s.asked = &k, ref
	p.mu.Unlock()

	r := protocol.Request{Type: protocol.TypeJoin, Room: room, Ref: protocol.Ref(`"` + ref + `"`)}
	if !k.now {
		r.HasAfter, r.After, r.Epoch = true, k.from.seq, k.from.epoch
	}
	if err := l.client.Handle(context.Background(), &r); err != nil {
		a.complain("%s may not join %s: %v", p.name, room, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.asked == ref {
		s.in = false // nothing comes before the answer
	}
}

// leave leaves a room; the answer is given at once.
func (a *arena) leave(p *player, room message.Room) {
	p.mu.Lock()
	l, s := p.line, p.seats[room]
	if l == nil {
		p.mu.Unlock()
		return
	}
	here := s.in || s.asked != ""
	if old := p.owed[s.asked]; old != nil {
		old.replaced = true
	}
	s.leaving = here
	p.mu.Unlock()
	err := l.client.Handle(context.Background(), &protocol.Request{Type: protocol.TypeLeave, Room: room})
	p.mu.Lock()
	defer p.mu.Unlock()
	var invalid *message.InvalidError
	if here != (err == nil) || err != nil && !errors.As(err, &invalid) {
		a.complain("%s left %s, where it was: %v: %v", p.name, room, here, err)
	}
	if s.in || s.leaving {
		a.complain("%s got no answer to its leave of %s", p.name, room)
	}
}

// ping notes where the player is, as a ping goes out to it.
func (a *arena) ping(p *player) {
	l := p.connection()
	if l == nil {
		return
	}
	l.client.Pinged()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.seats {
		if s.in {
			s.pinged = s.at
		}
	}
}

// pong answers the last ping: the player has what went out before it, and no
// more is proved.
func (a *arena) pong(p *player) {
	l := p.connection()
	if l == nil {
		return
	}
	l.client.Ponged()
	got := map[message.Room]position{}
	positions, _ := l.client.Positions(nil)
	for _, at := range positions {
		got[at.Room] = position{at.Epoch, at.Seq}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, room := range a.rooms {
		s := p.seats[room]
		if s.pinged.epoch != "" {
			s.proved = s.pinged
		}
		if at, in := got[room]; in != s.in || in && at != s.proved {
			a.complain("%s is in %s: %v, and proved %v; the hub has %v, %v", p.name, room, s.in, s.proved, in, at)
		}
	}
}

// idle says that no node keeps anything of rooms that nobody is in.
func (a *arena) idle() {
	for i, h := range a.nodes {
		topics, b := len(h.Rooms()), &h.books
		early, rings, pages := b.early.Load(), b.rings.Load(), b.pages.Load()
		if topics+len(h.reads.all) != 0 || early+rings+pages != 0 {
			a.complain("node %d, empty, keeps %d topics, %d reads and %d, %d, %d bytes early, in rings and in pages",
				i, topics, len(h.reads.all), early, rings, pages)
		}
	}
}

// topics tells what the nodes' topics think, for a failure's report.
func (a *arena) topics() string {
	var b strings.Builder
	for i, h := range a.nodes {
		for _, room := range a.rooms {
			if t := h.lookup(room); t != nil {
				t.mu.Lock()
				fmt.Fprintf(&b, "node %d %s: open %v, %s %d of %d, ring %d, held %d, doubts %d settled %d, repairing %v waiting %v, %d live\n",
					i, room, t.open, t.epoch, t.last, t.target, t.ring.len(), t.hold.len(), t.doubts, t.settled, t.repairing, t.waiting, len(t.members))
				t.mu.Unlock()
			}
		}
	}
	return b.String()
}

// unrested names a topic that holds something though nothing is under way, ""
// when there is none.
func (a *arena) unrested() string {
	for i, h := range a.nodes {
		for _, r := range h.Rooms() {
			if r.Held != 0 || r.Behind != 0 {
				return fmt.Sprintf("node %d holds %d of %s, and is %d behind", i, r.Held, r.Room, r.Behind)
			}
		}
	}
	return ""
}

// hampered says whether a node can't reach the log or the broker as it should.
func (a *arena) hampered() bool {
	for i, v := range a.views {
		v.mu.Lock()
		bad := v.down || v.slow > 0
		v.mu.Unlock()
		o := a.post.offices[i]
		o.mu.Lock()
		bad = bad || o.deaf
		o.mu.Unlock()
		if bad {
			return true
		}
	}
	return false
}

// rest lets everything happen that is due now.
func (a *arena) rest(t rapid.TB) {
	t.Helper()
	synctest.Wait()
	a.excuse()
	if v := a.verdict(); v != "" {
		t.Fatal(v)
	}
}
