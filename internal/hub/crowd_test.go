package hub

import (
	"bytes"
	"context"
	"math"
	"net"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// A countingOutlet is the outlet of one member among thousands. It only keeps how
// far the member is in one room, and whether it got there in order.
type countingOutlet struct {
	mu         sync.Mutex
	last       int
	received   int
	joined     int
	outOfOrder bool     // a message was not the next one
	queued     [][]byte // what a blocked client has not read

	manyRooms  bool          // the member is in many rooms: only received counts
	blocked    chan struct{} // Flushed waits for it, unless it is nil
	flushDelay time.Duration // how long Flushed takes
}

// Send implements Outlet. Frames that a blocked client has not read stay
// referenced, as in the queue of a connection.
func (o *countingOutlet) Send(f protocol.Frame) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.blocked != nil {
		o.queued = append(o.queued, f)
	}
	for rest := []byte(f); len(rest) > 0; {
		n, size := 2, int(rest[1])
		switch size {
		case 126:
			n, size = 4, int(rest[2])<<8|int(rest[3])
		case 127:
			panic("no frame of these tests is this large")
		}
		o.record(rest[n : n+size])
		rest = rest[n+size:]
	}
	return true
}

func (o *countingOutlet) record(b []byte) {
	switch {
	case bytes.HasPrefix(b, []byte(`{"type":"message"`)):
		seq := numberAfter(b, `"seq":`)
		o.outOfOrder = o.outOfOrder || seq != o.last+1 && !o.manyRooms
		o.last = seq
		o.received++
	case bytes.HasPrefix(b, []byte(`{"type":"gap"`)):
		o.last = numberAfter(b, `"to":`)
	case bytes.HasPrefix(b, []byte(`{"type":"joined"`)):
		o.joined++
		if o.last < 0 { // joined without a position
			o.last = numberAfter(b, `"seq":`)
		}
	}
}

// numberAfter returns the number that follows a name.
func numberAfter(b []byte, name string) int {
	b = b[bytes.Index(b, []byte(name))+len(name):]
	end := 0
	for end < len(b) && b[end] >= '0' && b[end] <= '9' {
		end++
	}
	n, _ := strconv.Atoi(string(b[:end]))
	return n
}

// Queue implements Outlet.
func (o *countingOutlet) Queue(f protocol.Frame) bool { return o.Send(f) }

// Flush implements Outlet.
func (o *countingOutlet) Flush() {}

// SendAnswer implements Outlet.
func (o *countingOutlet) SendAnswer(f protocol.Frame) bool { return o.Send(f) }

// Answered implements Outlet.
func (o *countingOutlet) Answered(context.Context) error { return nil }

// Flushed implements Outlet.
func (o *countingOutlet) Flushed(ctx context.Context) error {
	o.mu.Lock()
	blocked := o.blocked
	o.mu.Unlock()
	time.Sleep(o.flushDelay)
	if blocked == nil {
		return nil
	}
	select {
	case <-blocked:
		o.mu.Lock()
		defer o.mu.Unlock()
		o.queued, o.blocked = nil, nil
		return nil
	case <-ctx.Done():
		return net.ErrClosed
	}
}

// progress returns the last seq, and how often joined arrived.
func (o *countingOutlet) progress() (last, joined int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.last, o.joined
}

func (o *countingOutlet) messages() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.received
}

// A crowd is many members on one node.
type crowd struct {
	t       *testing.T
	sim     *simulation
	clients []*Client
	outlets []*countingOutlet
	behind  int           // index of an outlet that was not at the seq that allAt looked for
	blocked chan struct{} // blocks the outlets of new members
}

// addMember adds a member that joins after a seq, or without a position if after
// is negative.
func (c *crowd) addMember(room message.Room, after int) {
	o := &countingOutlet{last: after, blocked: c.blocked}
	client := c.sim.nodes[0].NewClient(o, "", "")
	c.outlets = append(c.outlets, o)
	c.clients = append(c.clients, client)
	c.join(client, room, after)
}

func (c *crowd) join(client *Client, room message.Room, after int) {
	c.t.Helper()
	r := protocol.Request{Type: protocol.TypeJoin, Room: room, HasAfter: after >= 0, After: message.Seq(max(0, after)), Epoch: "e1"}
	if err := client.Handle(context.Background(), &r); err != nil {
		c.t.Fatal(err)
	}
}

// closeAll closes all clients.
func (c *crowd) closeAll() {
	for _, client := range c.clients {
		client.Close(true)
	}
}

// isAt reports whether the outlet is at a seq, having got there in order.
func (o *countingOutlet) isAt(seq int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.last == seq && !o.outOfOrder
}

// countAt returns how many outlets are at a seq.
func (c *crowd) countAt(seq int) int {
	n := 0
	for _, o := range c.outlets {
		if o.isAt(seq) {
			n++
		}
	}
	return n
}

// allAt reports whether all outlets are at a seq. It looks first at the one that
// was not when it was last called.
func (c *crowd) allAt(seq int) bool {
	if c.behind < len(c.outlets) && !c.outlets[c.behind].isAt(seq) {
		return false
	}
	for i, o := range c.outlets {
		if !o.isAt(seq) {
			c.behind = i
			return false
		}
	}
	return true
}

// memoryInUse returns the bytes that the process holds in its heap and in the stacks
// of its goroutines.
func memoryInUse() int {
	heap, stacks := collectedMemory()
	return heap + stacks
}

// heapInUse returns the bytes that the process holds in its heap. It is exact once
// goroutines have ended, whose stacks the runtime returns only in whole spans.
func heapInUse() int {
	heap, _ := collectedMemory()
	return heap
}

// warmGoroutines makes the runtime allocate the descriptors of n goroutines, which it
// keeps for later ones.
func warmGoroutines(n int) {
	end := make(chan struct{})
	for range n {
		go func() { <-end }()
	}
	synctest.Wait()
	close(end)
	synctest.Wait()
}

// collectedMemory returns the least of several collections: a pool's contents survive
// one of them, and a finalizer's object two.
func collectedMemory() (heap, stacks int) {
	heap, stacks = math.MaxInt, math.MaxInt
	for range 4 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		heap, stacks = min(heap, int(m.HeapAlloc)), min(stacks, int(m.StackInuse))
	}
	return heap, stacks
}

// A cost is what the hub spent until all outlets were at a seq.
type cost struct {
	took        time.Duration
	reads       int // of pages, and of one room's head
	feedQueries int // of the commit feed, and for heads by name
	atOnce      int // most concurrent reads
	goroutines  int // most in addition to those before
}

// waitAllAt waits until all outlets are at a seq, and returns the cost.
func (c *crowd) waitAllAt(seq int) cost {
	c.t.Helper()
	c.readCounters(true)
	before, most := runtime.NumGoroutine(), 0
	began := time.Now()
	synctest.Wait()
	for !c.allAt(seq) {
		if time.Since(began) > 2*time.Minute {
			c.t.Fatalf("%d of %d outlets are at %d", c.countAt(seq), len(c.outlets), seq)
		}
		time.Sleep(10 * time.Millisecond)
		synctest.Wait() // so that goroutines which a timer just started do not count
		most = max(most, runtime.NumGoroutine())
	}
	k := c.readCounters(false)
	k.took, k.goroutines = time.Since(began), most-before
	c.t.Logf("%d outlets at %d after %v: %d reads, %d at once, %d queries of the feed, %d more goroutines",
		len(c.outlets), seq, k.took, k.reads, k.atOnce, k.feedQueries, k.goroutines)
	return k
}

func (c *crowd) readCounters(reset bool) cost {
	l := c.sim.log
	l.mu.Lock()
	defer l.mu.Unlock()
	k := cost{reads: l.reads, feedQueries: l.feedQueries, atOnce: l.readsPeak}
	if reset {
		l.reads, l.feedQueries, l.readsPeak = 0, 0, l.readsNow
	}
	return k
}

// expectAtMost fails the test if something cost more than it may.
func (c *crowd) expectAtMost(what string, got, most int) {
	c.t.Helper()
	if got > most {
		c.t.Errorf("%s: %d, want at most %d", what, got, most)
		return
	}
	c.t.Logf("%s: %d, at most %d allowed", what, got, most)
}
