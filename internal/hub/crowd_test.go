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

// A tally is the outlet of one member among thousands: it keeps nothing but how
// far it came in one room, and whether that was in order.
type tally struct {
	mu     sync.Mutex
	last   int
	got    int
	joined int
	wrong  bool     // a message came that was not the next one
	queued [][]byte // what a stuck one has not read

	many  bool          // it is in many rooms: only got counts
	stuck chan struct{} // Flushed waits for it; nil: not
	pace  time.Duration // Flushed takes so long
}

// Send implements Outlet. What a stuck client has not read stays referenced, as
// it does in a connection's queue.
func (o *tally) Send(f protocol.Frame) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.stuck != nil {
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
		o.take(rest[n : n+size])
		rest = rest[n+size:]
	}
	return true
}

func (o *tally) take(b []byte) {
	switch {
	case bytes.HasPrefix(b, []byte(`{"type":"message"`)):
		seq := field(b, `"seq":`)
		o.wrong = o.wrong || seq != o.last+1 && !o.many
		o.last = seq
		o.got++
	case bytes.HasPrefix(b, []byte(`{"type":"gap"`)):
		o.last = field(b, `"to":`)
	case bytes.HasPrefix(b, []byte(`{"type":"joined"`)):
		o.joined++
		if o.last < 0 { // from now
			o.last = field(b, `"seq":`)
		}
	}
}

// field is the number that follows a name.
func field(b []byte, name string) int {
	b = b[bytes.Index(b, []byte(name))+len(name):]
	end := 0
	for end < len(b) && b[end] >= '0' && b[end] <= '9' {
		end++
	}
	n, _ := strconv.Atoi(string(b[:end]))
	return n
}

// Queue implements Outlet.
func (o *tally) Queue(f protocol.Frame) bool { return o.Send(f) }

// Flush implements Outlet.
func (o *tally) Flush() {}

// Flushed implements Outlet.
func (o *tally) Flushed(ctx context.Context) error {
	o.mu.Lock()
	stuck := o.stuck
	o.mu.Unlock()
	time.Sleep(o.pace)
	if stuck == nil {
		return nil
	}
	select {
	case <-stuck:
		o.mu.Lock()
		defer o.mu.Unlock()
		o.queued, o.stuck = nil, nil
		return nil
	case <-ctx.Done():
		return net.ErrClosed
	}
}

// at is how far it came, and how often it was told that it is in.
func (o *tally) at() (last, joined int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.last, o.joined
}

func (o *tally) messages() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.got
}

// A crowd is many members on one node.
type crowd struct {
	t       *testing.T
	arena   *arena
	clients []*Client
	tallies []*tally
	stuck   chan struct{} // who comes is stuck on it
}

// comes adds a member that joins from now, or after a seq.
func (c *crowd) comes(room message.Room, after int) {
	o := &tally{last: after, stuck: c.stuck}
	client := c.arena.nodes[0].NewClient(o, "")
	c.tallies = append(c.tallies, o)
	c.clients = append(c.clients, client)
	c.joins(client, room, after)
}

func (c *crowd) joins(client *Client, room message.Room, after int) {
	c.t.Helper()
	r := protocol.Request{Type: protocol.TypeJoin, Room: room, HasAfter: after >= 0, After: message.Seq(max(0, after)), Epoch: "e1"}
	if err := client.Handle(context.Background(), &r); err != nil {
		c.t.Fatal(err)
	}
}

// goes ends all of them.
func (c *crowd) goes() {
	for _, client := range c.clients {
		client.Close(true)
	}
}

// has says how many are at a seq, having got there in order.
func (c *crowd) has(seq int) int {
	n := 0
	for _, o := range c.tallies {
		o.mu.Lock()
		if o.last == seq && !o.wrong {
			n++
		}
		o.mu.Unlock()
	}
	return n
}

// weight is what the process holds, heap and stacks, in bytes.
func weight() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc + m.StackInuse)
}
