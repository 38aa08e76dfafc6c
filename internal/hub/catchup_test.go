package hub

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// A blockingLog is a log whose reads after a seq wait, with their snapshot
// already taken.
type blockingLog struct {
	*memLog
	after   message.Seq
	reached chan struct{} // gets a token for each read that waits
	release chan struct{} // closed to end the waits
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

// A joining member's read that began before a commit must not answer the repair
// of that commit: the log has the message, the read does not.
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
	b := f.client(0) // received 3 from another node; this node has not
	b.must(`{"type":"join","room":"r","after":3,"epoch":"e1"}`)
	<-l.reached // its snapshot ends at 3
	f.store("r", 2)
	f.receiveStored(0, "r", 3)
	f.receiveStored(0, "r", 5) // 4 is lost
	<-l.reached                // the repair reads for itself
	close(l.release)
	a.expectFrames(append([]string{"joined 2"}, messages(3, 5)...)...)
	testkit.Eventually(t, "b to have messages 4 and 5", func() bool {
		return strings.Join(b.received("message", "gap"), ",") == "message 4,message 5"
	})
}

// A client that resumes many rooms gets the next room's page after it has read
// the previous one, however many rooms there are.
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
		case <-time.After(testkit.Timeout):
			t.Fatalf("after %d pages the hub does not wait for the client to read", turns)
		}
		if got := len(a.received("message")); got > 10*(turns+2) {
			t.Fatalf("%d messages were sent after %d pages were read", got, turns+1)
		}
	}
	close(a.out.blocked)
}

// Joining and leaving in a loop, with new rooms each time and the log down,
// costs a bounded number of goroutines.
func TestJoinAndLeaveInALoopUsesBoundedGoroutines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 1)
		f.log.setDown(true)
		const most = 32 // docs/limits.md
		before := runtime.NumGoroutine()
		a := f.client(0)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for i := range 3 * most {
				_ = a.do(`{"type":"join","ref":"%d","room":"n%d"}`, i, i)
				_ = a.do(`{"type":"leave","room":"n%d"}`, i)
			}
		}()
		testkit.Eventually(t, "32 joins to be unanswered", func() bool { return len(a.received("left")) == most })
		if got := runtime.NumGoroutine() - before; got > 4*most {
			t.Errorf("%d goroutines for %d unanswered joins", got, most)
		}
		f.log.setDown(false)
		<-done
		if got := a.received("error", "joined"); len(got) != 3*most {
			t.Errorf("%d of %d joins were answered", len(got), 3*most)
		}
		testkit.Eventually(t, "the topics to be closed", func() bool { return len(f.nodes[0].Rooms()) == 0 })
	})
}

// A page of history has a bound in messages and one in bytes, whatever a reader
// asks for, and at least one message.
func TestHistoryIsBounded(t *testing.T) {
	const messages, size = 200, 256 << 10 // docs/limits.md
	synctest.Test(t, func(t *testing.T) {
		sim := newSimulation(defaultBounds(0), 1, 0, 0)
		defer sim.close()
		sim.log.commit("small", 2*messages, 1)
		sim.log.commit("large", 3, size/2)
		sim.log.commit("huge", 2, size+1)
		for _, tt := range []struct {
			room  message.Room
			limit int
			want  int
		}{{"small", 7, 7}, {"small", 0, messages}, {"small", messages + 1, messages}, {"large", 0, 2}, {"huge", 0, 1}} {
			page, _, err := sim.nodes[0].History(t.Context(), "u:ada", message.Range{Room: tt.room, Limit: tt.limit, MaxBytes: math.MaxInt32})
			if err != nil || len(page.Messages) != tt.want || !page.More {
				t.Errorf("%s with limit %d: got %d messages, more %v, %v; want %d and more", tt.room, tt.limit, len(page.Messages), page.More, err, tt.want)
			}
		}
	})
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
	b := f.client(0) // its read updates the topic
	b.must(`{"type":"join","room":"r","after":0}`)
	b.expectFrames("joined 10", "gap 1-8 trimmed", "message 9", "message 10")
	c := f.client(0)
	c.must(`{"type":"join","room":"r"}`)
	c.expectFrames("joined 10")
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	if first := c.out.frames[0]["first"]; first != 9.0 {
		t.Errorf("joined has first %v, want 9", first)
	}
}

func TestTheReorderBufferIsBoundedAndPruned(t *testing.T) {
	const frames, size = 512, 512 << 10 // docs/limits.md
	var b reorderBuffer
	put := func(seq message.Seq, frame []byte) bool {
		bounds := defaultBounds(0)
		return b.put(&roomFrame{seq: seq, epoch: "e", frame: frame}, bounds.reorderFrames, bounds.reorderBytes)
	}
	for seq := message.Seq(1); seq <= 2*frames; seq++ {
		put(seq, []byte("frame"))
	}
	if b.len() != frames {
		t.Errorf("the buffer holds %d frames, want %d", b.len(), frames)
	}
	if put(5000, []byte("x")) {
		t.Error("a full buffer accepted another frame")
	}
	if _, ok := b.pop(1, "other"); ok {
		t.Error("pop returned a frame of another epoch")
	}
	b.prune(frames-1, "e")
	if f, ok := b.pop(frames, "e"); !ok || f.seq != frames || b.len() != 0 || b.bytes != 0 {
		t.Errorf("after prune, pop returned %v %v and left %d frames, %d bytes", f.seq, ok, b.len(), b.bytes)
	}
	if !put(1, make([]byte, size-1)) || !put(2, []byte("x")) || put(3, []byte("x")) {
		t.Errorf("the buffer does not hold exactly %d bytes", size)
	}
	b.prune(5000, "e")
	if !put(1, make([]byte, size+1)) || put(2, []byte("x")) {
		t.Error("an empty buffer does not hold one frame of any size, and no other")
	}
	b.prune(5000, "e")

	// The buffer does not keep what the log had when the topic opened.
	f := newFixture(t, 1)
	f.store("r", 3)
	top := newTopic(f.nodes[0], "r")
	early := make([]byte, 10)
	top.deliver([]roomFrame{{seq: 2, epoch: "e1", frame: early}, {seq: 5, epoch: "e1", frame: early}})
	top.completeOpen(&message.Page{Epoch: "e1", Head: 3, First: 1})
	if got := top.state(); got.Buffered != 1 || got.Behind != 2 {
		t.Errorf("the topic's state is %+v, want 1 buffered and 2 behind", got)
	}
	top.close()
}

func TestAllRingsShareAMemoryBudget(t *testing.T) {
	f := newFixture(t, 1)
	h := f.nodes[0]
	const budget, ample, least = 256 << 20, 192 << 20, 8 << 10 // docs/limits.md and DESIGN.md
	top := newTopic(h, "r")
	top.completeOpen(&message.Page{Epoch: "e1"})
	fill := func(from, n int) {
		for seq := from; seq < from+n; seq++ {
			top.deliver([]roomFrame{{seq: message.Seq(seq), epoch: "e1", frame: make([]byte, 4096)}})
		}
	}
	fill(1, 50)
	const size = 50 * 4096
	if got := h.memory.rings.Load(); got != size {
		t.Errorf("%d bytes counted, want %d", got, size)
	}
	h.memory.rings.Add(ample - size)
	fill(51, 1) // as much is used as every ring may have its whole size of
	if top.ring.len() != 51 {
		t.Errorf("within the budget a ring holds %d frames, want 51", top.ring.len())
	}
	fill(52, 1)
	if top.ring.bytes > least || top.ring.len() == 0 {
		t.Errorf("over three quarters of the budget a ring holds %d bytes, want at most %d and at least one frame", top.ring.bytes, least)
	}
	h.memory.rings.Add(budget - ample + size)
	if fill(53, 1); top.ring.len() != 0 {
		t.Errorf("over the budget a ring holds %d frames", top.ring.len())
	}
	top.close()
	if got := h.memory.rings.Load(); got != budget {
		t.Errorf("%d bytes are still counted", got-budget)
	}
}

// When the log fails, a client whose twenty joins need it gets twenty refusals
// together, not one after each timeout of the log.
func TestJoinsAreRefusedTogetherWhenTheLogFails(t *testing.T) {
	storm(t, func(c *crowd) {
		const rooms = 20
		for i := range rooms {
			c.sim.log.commit(testRoom(i), 5, 1) // before the topic opens: not in its ring
			c.addMember(testRoom(i), -1)
		}
		c.waitAllAt(5)
		c.logView().set(func() { c.logView().delay = time.Minute })
		o := &recordingOutlet{}
		client := c.sim.nodes[0].NewClient(o, "", "")
		defer client.Close(true)
		for i := range rooms {
			c.join(client, testRoom(i), 0)
		}
		time.Sleep(openTimeout + 2*logTimeout)
		if got := o.refused(); got != rooms || client.RoomCount() != 0 {
			t.Errorf("%d of %d joins were refused, and the client is in %d rooms", got, rooms, client.RoomCount())
		}
	})
}

// refused returns the number of joins that were answered unavailable.
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

// count returns the number of frames of a type.
func (o *recordingOutlet) count(kind string) (n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, f := range o.frames {
		if f["type"] == kind {
			n++
		}
	}
	return n
}

// A viewWithHole omits the second message of one room.
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
		client := c.sim.nodes[0].NewClient(o, "", "")
		defer client.Close(true)
		for i := range rooms {
			c.join(client, testRoom(i), 0)
		}
		time.Sleep(time.Second)
		if got := o.refused(); got != 1 || client.RoomCount() != rooms-1 {
			t.Errorf("%d joins were refused, want 1, and the client is in %d rooms", got, client.RoomCount())
		}
	})
}

// slowReaders let a reader have a thousand bytes a second, and ten thousand at once.
type slowReaders struct {
	mu    sync.Mutex
	since time.Time
	paid  time.Duration // after since
	total int
}

func (r *slowReaders) ReadDebt(reader string) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if reader != "u:ada" {
		return time.Hour
	}
	return max(0, r.paid-10*time.Second-time.Since(r.since))
}

func (r *slowReaders) ChargeRead(_ string, bytes int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if passed := time.Since(r.since); r.paid < passed {
		r.since, r.paid = time.Now(), 0
	}
	r.total += bytes
	r.paid += time.Duration(bytes) * time.Millisecond
}

// A user who joins rooms from far back, again and again, gets what was missed at the rate
// of its reads, and is refused nothing.
func TestAReplayIsPacedByItsReader(t *testing.T) {
	storm(t, func(c *crowd) {
		const rooms, messages = 10, 50
		for i := range rooms {
			c.sim.log.commit(testRoom(i), messages, 100)
			c.addMember(testRoom(i), -1)
		}
		c.waitAllAt(messages)
		readers := &slowReaders{since: time.Now()}
		c.sim.nodes[0].cfg.Readers = readers
		o := &recordingOutlet{}
		client := c.sim.nodes[0].NewClient(o, "ada", "u:ada")
		defer client.Close(true)
		began := time.Now()
		for i := range rooms {
			c.join(client, testRoom(i), 0)
		}
		for o.count("message") < rooms*messages {
			time.Sleep(100 * time.Millisecond)
		}
		took := time.Since(began)
		readers.mu.Lock()
		total := readers.total
		readers.mu.Unlock()
		paid := time.Duration(total)*time.Millisecond - 10*time.Second
		room := time.Duration(total/rooms) * time.Millisecond
		if took < paid-room || took > paid+room || paid < 10*time.Second {
			t.Errorf("%d bytes were replayed within %v, want about %v", total, took, paid)
		}
		if o.refused() > 0 {
			t.Errorf("%d joins were refused", o.refused())
		}
	})
}
