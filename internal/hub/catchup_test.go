package hub

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"switchyard/internal/message"
)

// blockingLog is a log whose pages after a position wait, with the snapshot taken.
type blockingLog struct {
	*memLog
	after   message.Seq
	reached chan struct{} // gets a token for each read that waits
	release chan struct{} // closed to let them go
}

func (l *blockingLog) Read(ctx context.Context, r message.Range) (message.Page, error) {
	p, err := l.memLog.Read(ctx, r)
	if r.Limit > 0 && r.After == l.after {
		select {
		case l.reached <- struct{}{}:
		default:
		}
		select {
		case <-l.release:
		case <-ctx.Done():
			return message.Page{}, ctx.Err()
		}
	}
	return p, err
}

// receiveStored hands a stored message to a node, as its broker would.
func (f *fixture) receiveStored(node int, room message.Room, seq int) {
	f.log.mu.Lock()
	m := f.log.rooms[room][seq-1]
	f.log.mu.Unlock()
	p := payload{kind: kindMessages, origin: 1}
	p.add(&message.Publication{Draft: m.Draft, Epoch: m.Epoch, Seq: m.Seq, At: m.At})
	f.nodes[node].Receive(room, p.encode())
}

// A joiner's read from before a commit must not answer the repair of that
// commit: the log has the message, the read does not know it.
func TestARepairDoesNotReuseAnOlderRead(t *testing.T) {
	f := newFixture(t, 1)
	f.feed.off = true
	l := &blockingLog{memLog: f.log, after: 3, reached: make(chan struct{}, 8), release: make(chan struct{})}
	f.nodes[0].cfg.Log = l
	f.store("r", 2)
	a := f.client(0)
	a.must(`{"type":"join","room":"r"}`)
	a.expectFrames("joined 2")
	f.store("r", 1)
	b := f.client(0) // has seen 3 on another node; this one has not
	b.must(`{"type":"join","room":"r","after":3,"epoch":"e1"}`)
	<-l.reached // its snapshot ends at 3
	f.store("r", 2)
	f.receiveStored(0, "r", 3)
	f.receiveStored(0, "r", 5) // 4 is lost
	<-l.reached                // the repair reads for itself
	close(l.release)
	a.expectFrames(append([]string{"joined 2"}, messages(3, 5)...)...)
	eventually(t, "b to have the rest", func() bool {
		return strings.Join(b.received("message", "gap"), ",") == "message 4,message 5"
	})
}

// A client that resumes many rooms gets the next one's page when the last one
// has left its queue, however many there are.
func TestAClientsRoomsCatchUpOnePageAtATime(t *testing.T) {
	f := newFixture(t, 1)
	const rooms = 20
	for i := range rooms {
		f.store(message.Room(fmt.Sprintf("r%d", i)), 10)
	}
	a := f.client(0)
	a.out.blocked = make(chan struct{})
	for i := range rooms {
		a.must(`{"type":"join","room":"r%d","after":0}`, i)
	}
	for turns := 0; len(a.received("message")) < 10*rooms; turns++ {
		select {
		case a.out.blocked <- struct{}{}: // the client has read what is queued
		case <-time.After(10 * time.Second):
			t.Fatalf("after %d turns nobody waits for the client to read", turns)
		}
		if got := len(a.received("message")); got > 10*(turns+2) {
			t.Fatalf("%d messages are queued after %d turns", got, turns+1)
		}
	}
	close(a.out.blocked)
}

// Joining and leaving in a loop, new names each time and the log away, costs
// a bounded number of goroutines.
func TestJoinAndLeaveInALoopUsesBoundedGoroutines(t *testing.T) {
	f := newFixture(t, 1)
	f.log.mu.Lock()
	f.log.down = true
	f.log.mu.Unlock()
	before := runtime.NumGoroutine()
	a := f.client(0)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 3 * maxPendingJoins {
			_ = a.do(`{"type":"join","ref":"%d","room":"n%d"}`, i, i)
			_ = a.do(`{"type":"leave","room":"n%d"}`, i)
		}
	}()
	eventually(t, "the joins to fill up", func() bool { return len(a.received("left")) == maxPendingJoins })
	if got := runtime.NumGoroutine() - before; got > 4*maxPendingJoins {
		t.Errorf("%d goroutines for %d joins without an answer", got, maxPendingJoins)
	}
	f.log.mu.Lock()
	f.log.down = false
	f.log.mu.Unlock()
	<-done
	if got := a.received("error", "joined"); len(got) != 3*maxPendingJoins {
		t.Errorf("%d of %d joins were answered", len(got), 3*maxPendingJoins)
	}
	eventually(t, "the topics to go", func() bool { return len(f.nodes[0].Rooms()) == 0 })
}

func TestJoinedReportsTheOldestStoredMessage(t *testing.T) {
	f := newFixture(t, 1)
	f.store("r", 10)
	a := f.client(0)
	a.must(`{"type":"join","room":"r"}`)
	a.expectFrames("joined 10")
	f.log.mu.Lock()
	f.log.first = 9
	f.log.mu.Unlock()
	b := f.client(0) // asks the log, and the topic learns
	b.must(`{"type":"join","room":"r","after":0}`)
	b.expectFrames("joined 10", "gap 1-8 trimmed", "message 9", "message 10")
	c := f.client(0)
	c.must(`{"type":"join","room":"r"}`)
	c.expectFrames("joined 10")
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	if first := c.out.frames[0]["first"]; first != 9.0 {
		t.Errorf("first %v, want 9", first)
	}
}

func TestTheReorderBufferIsBoundedAndPruned(t *testing.T) {
	var h reorderBuffer
	b := defaultBounds()
	for seq := 1; seq <= 2*b.reorderFrames; seq++ {
		h.put(&roomFrame{seq: message.Seq(seq), epoch: "e", frame: []byte("frame")}, b.reorderFrames, b.reorderBytes)
	}
	if h.len() != b.reorderFrames {
		t.Errorf("holds %d", h.len())
	}
	if h.put(&roomFrame{seq: 5000, epoch: "e", frame: []byte("x")}, b.reorderFrames, b.reorderBytes) {
		t.Error("took one more")
	}
	if _, ok := h.pop(1, "other"); ok {
		t.Error("gave a message of another epoch")
	}
	last := message.Seq(b.reorderFrames)
	h.prune(last-1, "e")
	if e, ok := h.pop(last, "e"); !ok || e.seq != last || h.len() != 0 || h.bytes != 0 {
		t.Errorf("%v %v, %d left, %d bytes", e.seq, ok, h.len(), h.bytes)
	}
	big := roomFrame{seq: 1, epoch: "e", frame: make([]byte, b.reorderBytes)}
	if !h.put(&big, b.reorderFrames, b.reorderBytes) || h.put(&roomFrame{seq: 2, epoch: "e", frame: []byte("x")}, b.reorderFrames, b.reorderBytes) {
		t.Error("the bound in bytes is not kept")
	}
	h.prune(5000, "e")

	f := newFixture(t, 1) // what the log knew when the topic opened is not held
	f.store("r", 3)
	top := newTopic(f.nodes[0], "r")
	top.deliver([]roomFrame{{seq: 2, epoch: "e1", frame: big.frame[:10]}, {seq: 5, epoch: "e1", frame: big.frame[:10]}})
	top.completeOpen(&message.Page{Epoch: "e1", Head: 3, First: 1})
	if got := top.state(); got.Held != 1 || got.Behind != 2 {
		t.Errorf("%+v", got)
	}
	top.close()
}

func TestAllRingsShareAMemoryBudget(t *testing.T) {
	f := newFixture(t, 1)
	h := f.nodes[0]
	budget := h.cfg.bounds.ringBudget
	top := newTopic(h, "r")
	top.completeOpen(&message.Page{Epoch: "e1"})
	fill := func(from, n int) {
		for seq := from; seq < from+n; seq++ {
			top.deliver([]roomFrame{{seq: message.Seq(seq), epoch: "e1", frame: make([]byte, 4096)}})
		}
	}
	fill(1, 50)
	if got := h.memory.rings.Load(); got != 50*4096 {
		t.Errorf("%d bytes on the books", got)
	}
	h.memory.rings.Add(budget)
	fill(51, 1)
	if top.ring.bytes > h.cfg.bounds.minBytes || top.ring.len() == 0 {
		t.Errorf("over the budget a ring holds %d bytes", top.ring.bytes)
	}
	top.close()
	if got := h.memory.rings.Load(); got != budget {
		t.Errorf("%d bytes stay on the books", got-budget)
	}
}

// A client whose twenty joins need the log, when it fails, is not told so
// twenty times one after the other, each after the log's own time.
func TestJoinsAreRefusedTogetherWhenTheLogFails(t *testing.T) {
	storm(t, func(c *crowd) {
		const rooms = 20
		for i := range rooms {
			c.sim.log.commit(testRoom(i), 5, 1) // before the room is live: in no ring
			c.addMember(testRoom(i), -1)
		}
		c.waitAllAt(5)
		c.logView().set(func() { c.logView().delay = time.Minute })
		o := &recordingOutlet{}
		client := c.sim.nodes[0].NewClient(o, "")
		defer client.Close(true)
		for i := range rooms {
			c.join(client, testRoom(i), 0)
		}
		time.Sleep(openTimeout + 2*logTimeout)
		if got := o.refused(); got != rooms || client.RoomCount() != 0 {
			t.Errorf("%d of %d joins are refused, and the client is in %d rooms", got, rooms, client.RoomCount())
		}
	})
}

// refused is how many joins were answered unavailable.
func (o *recordingOutlet) refused() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := 0
	for _, f := range o.frames {
		if f["type"] == "error" && f["code"] == "unavailable" {
			n++
		}
	}
	return n
}

// A viewWithHole has no second message in one room.
type viewWithHole struct{ *logView }

func (v viewWithHole) Read(ctx context.Context, r message.Range) (message.Page, error) {
	p, err := v.logView.Read(ctx, r)
	if r.Room == testRoom(0) && len(p.Messages) > 1 {
		p.Messages = append(p.Messages[:1:1], p.Messages[2:]...)
	}
	return p, err
}

func TestOnlyTheRoomThatCannotBeReadIsRefused(t *testing.T) {
	storm(t, func(c *crowd) {
		const rooms = 5
		for i := range rooms {
			c.sim.log.commit(testRoom(i), 5, 1)
			c.addMember(testRoom(i), -1)
		}
		c.waitAllAt(5)
		c.sim.nodes[0].cfg.Log = viewWithHole{c.logView()}
		o := &recordingOutlet{}
		client := c.sim.nodes[0].NewClient(o, "")
		defer client.Close(true)
		for i := range rooms {
			c.join(client, testRoom(i), 0)
		}
		time.Sleep(time.Second)
		if got := o.refused(); got != 1 || client.RoomCount() != rooms-1 {
			t.Errorf("%d joins are refused, and the client is in %d rooms", got, client.RoomCount())
		}
	})
}
