package hub

import (
	"bytes"
	"context"
	"net"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// A countingOutlet is the outlet of one member among thousands: it keeps nothing but how
// far it came in one room, and whether that was in order.
type countingOutlet struct {
	mu         sync.Mutex
	last       int
	received   int
	joined     int
	outOfOrder bool     // a message came that was not the next one
	queued     [][]byte // what a stuck one has not read

	manyRooms  bool          // it is in many rooms: only got counts
	blocked    chan struct{} // Flushed waits for it; nil: not
	flushDelay time.Duration // Flushed takes so long
}

// Send implements Outlet. What a stuck client has not read stays referenced, as
// it does in a connection's queue.
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
			panic("no frame of these tests is so large")
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
		if o.last < 0 { // from now
			o.last = numberAfter(b, `"seq":`)
		}
	}
}

// numberAfter is the number that follows a name.
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

// progress is how far it came, and how often it was told that it is in.
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
	blocked chan struct{} // who comes is stuck on it
}

// addMember adds a member that joins from now, or after a seq.
func (c *crowd) addMember(room message.Room, after int) {
	o := &countingOutlet{last: after, blocked: c.blocked}
	client := c.sim.nodes[0].NewClient(o, "")
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

// closeAll ends all of them.
func (c *crowd) closeAll() {
	for _, client := range c.clients {
		client.Close(true)
	}
}

// countAt says how many are at a seq, having got there in order.
func (c *crowd) countAt(seq int) int {
	n := 0
	for _, o := range c.outlets {
		o.mu.Lock()
		if o.last == seq && !o.outOfOrder {
			n++
		}
		o.mu.Unlock()
	}
	return n
}

// memoryInUse is what the process holds, heap and stacks, in bytes.
func memoryInUse() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc + m.StackInuse)
}
