package conn

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"switchyard/internal/protocol"
)

// pipeConn returns a connection whose client reads only by the second result.
func pipeConn(t *testing.T, b *Budget) (*Conn, net.Conn) {
	t.Helper()
	client, server := net.Pipe()
	c := New(server, nil, Options{QueueBytes: 2 << 20, Budget: b, Tick: new(atomic.Int64)})
	t.Cleanup(func() { c.Abort(); _ = client.Close(); _ = c.Close() })
	return c, client
}

// A frame that waits for a thousand clients takes its memory once, until the last of them
// has it or is gone, beside a place in each queue.
func TestAFrameThatWaitsForManyCountsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(1 << 20)
		shared := bigMessage(1, 100_000)
		size := int64(len(shared))
		var conns []*Conn
		var clients []net.Conn
		for range 1000 {
			c, client := pipeConn(t, b)
			c.Queue(shared)
			conns, clients = append(conns, c), append(clients, client)
		}
		if b.Held() != size+1000*slotBytes || b.Queued() != 1000*size {
			t.Errorf("%d bytes held, %d queued, want %d and a thousand times that", b.Held(), b.Queued(), size)
		}
		if share, _ := conns[0].Share(); share != len(shared)/1000+slotBytes {
			t.Errorf("%d bytes are the share of one", share)
		}
		private := bigMessage(2, 5000)
		conns[0].Queue(private)
		if share, _ := conns[0].Share(); share != len(shared)/1000+len(private)+2*slotBytes {
			t.Errorf("%d bytes are the share of one with a frame of its own", share)
		}
		for i, c := range conns {
			if i%2 == 0 {
				c.Abort()
				continue
			}
			c.Flush()
			go func() { _, _ = io.Copy(io.Discard, clients[i]) }()
		}
		synctest.Wait()
		if b.Held() != 0 || b.Queued() != 0 {
			t.Errorf("%d bytes held, %d queued when nothing waits", b.Held(), b.Queued())
		}
		if b.IsSpent() || len(b.Tight()) > 0 {
			t.Error("the budget was exceeded")
		}
	})
}

// Many small frames take more by their places in the queues than by themselves.
func TestThePlacesInQueuesAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(1 << 20)
		shared := bigMessage(1, 100)
		var conns []*Conn
		for range 100 {
			c, _ := pipeConn(t, b)
			conns = append(conns, c)
		}
		for n := 0; !b.IsSpent(); n++ {
			if n > 1<<20/slotBytes {
				t.Fatal("places cost nothing")
			}
			conns[n%100].Queue(shared)
		}
		for _, c := range conns {
			if share, _ := c.Share(); share < 1<<20/100-2*slotBytes {
				t.Errorf("the share of one is %d bytes", share)
			}
			c.Abort()
		}
		if b.Held() != 0 {
			t.Errorf("%d bytes held when nothing waits", b.Held())
		}
	})
}

// The kernel took a part of the frame. The rest is in memory until the client takes it.
func TestAFrameThatIsBeingWrittenIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(1 << 20)
		c, _ := pipeConn(t, b)
		f := bigMessage(1, 100_000)
		c.Send(f)
		synctest.Wait() // the write waits for the client
		if share, ending := c.Share(); share != len(f)+slotBytes || ending {
			t.Errorf("%d bytes are the client's, ending %v, want %d", share, ending, len(f))
		}
		c.CloseSlow(CloseTimeout)
		if share, ending := c.Share(); share < len(f) || !ending {
			t.Errorf("closed: %d bytes are the client's, ending %v", share, ending)
		}
	})
}

func TestABudgetSaysWhenItIsSpent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit, answer = 1_000_000, 300_000
		b := NewBudget(limit)
		c, _ := pipeConn(t, b)
		f := bigMessage(1, 90_000)
		for b.Held()+int64(len(f))+slotBytes <= limit {
			c.Queue(append(protocol.Frame(nil), f...))
		}
		if b.IsSpent() || len(b.Tight()) > 0 {
			t.Errorf("spent at %d bytes", b.Held())
		}
		waiting := make(chan error, 1)
		go func() { waiting <- b.Reserve(t.Context(), "ann", answer) }()
		synctest.Wait()
		short, isShort, urgent := b.Shortage()
		if len(b.Tight()) != 1 || short != b.Held()+answer-limit/4*3 || !isShort || urgent {
			t.Errorf("an answer waits: %d bytes are short at %d, urgent %v", short, b.Held(), urgent)
		}
		time.Sleep(urgentAfter)
		if _, _, urgent := b.Shortage(); !urgent {
			t.Error("it is not urgent though an answer waits for a second")
		}
		<-b.Tight()
		c.Queue(append(protocol.Frame(nil), f...))
		if !b.IsSpent() || len(b.Tight()) != 1 {
			t.Errorf("not spent at %d bytes", b.Held())
		}
		if excess, isShort, urgent := b.Shortage(); excess != b.Held()-limit/10*9 || !isShort || !urgent {
			t.Errorf("%d bytes are too many at %d, want what is over nine tenths", excess, b.Held())
		}
		synctest.Wait()
		if len(waiting) > 0 {
			t.Error("an answer did not wait until it fits")
		}
		c.Abort()
		synctest.Wait()
		if err := <-waiting; err != nil {
			t.Errorf("when it fits again: %v", err)
		}
		if _, isShort, _ := b.Shortage(); isShort {
			t.Error("short although nothing waits")
		}
		// What is reserved is used like what is held.
		for !b.IsSpent() {
			c, _ := pipeConn(t, b)
			c.Queue(bigMessage(1, 90_000))
			if b.Held() > limit-answer+100_000 {
				t.Fatalf("not spent with %d bytes held and %d reserved", b.Held(), answer)
			}
		}
		b.Free(answer)
	})
}

// Reserve fails when there is no memory for five seconds, and the next caller goes on.
func TestTheWaitForMemoryIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(1 << 20)
		if err := b.Reserve(t.Context(), "ann", 1<<20); err != nil {
			t.Errorf("the first has all of it: %v", err)
		}
		small := make(chan error, 1)
		go func() {
			time.Sleep(time.Second)
			small <- b.Reserve(t.Context(), "bob", 1000)
		}()
		began := time.Now()
		if err := b.Reserve(t.Context(), "ann", 1<<20); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != 5*time.Second {
			t.Errorf("without memory: %v after %v, want an error after 5 s", err, time.Since(began))
		}
		b.Free(1 << 20)
		if err := <-small; err != nil {
			t.Errorf("the one behind it: %v", err)
		}
	})
}

// Frames of rooms can't wait. What can has three quarters.
func TestAQuarterIsKeptForWhatCannotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(1000)
		if err := b.Reserve(t.Context(), "ann", 750); err != nil {
			t.Errorf("three quarters: %v", err)
		}
		if err := b.Reserve(t.Context(), "ann", 1); err == nil {
			t.Error("more than three quarters are reserved")
		}
	})
}

// A reader with many reservations delays another's by one of them.
func TestReadersTakeTurnsForMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(1 << 20)
		reserve := func(reader string, order chan<- string) {
			go func() {
				if err := b.Reserve(t.Context(), reader, 1<<20); err != nil {
					t.Errorf("%s: %v", reader, err)
				}
				order <- reader
			}()
			synctest.Wait()
		}
		order := make(chan string, 6)
		for _, reader := range []string{"ann", "ann", "ann", "ann", "bob", "eve"} {
			reserve(reader, order)
		}
		got := ""
		for range 6 {
			got += " " + <-order
			b.Free(1 << 20)
			synctest.Wait()
		}
		if got != " ann ann bob eve ann ann" {
			t.Errorf("served%s", got)
		}
		if !b.waiting.IsEmpty() || b.used() != 0 {
			t.Errorf("%d bytes are used; somebody waits: %v", b.used(), !b.waiting.IsEmpty())
		}
	})
}

// A client that takes nothing causes one answer, and not one for each of its requests.
func TestTheNextAnswerWaitsUntilTheLastIsTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(1 << 20)
		c, client := pipeConn(t, b)
		answer, later := bigMessage(1, 1000), bigMessage(2, 1000)
		if err := c.Answered(t.Context()); err != nil {
			t.Errorf("the first: %v", err)
		}
		c.SendAnswer(answer)
		c.Send(later)
		taken := make(chan error, 1)
		go func() { taken <- c.Answered(t.Context()) }()
		synctest.Wait()
		if len(taken) > 0 {
			t.Error("the answer counts as taken while it waits")
		}
		if _, err := io.ReadFull(client, make([]byte, len(answer)+len(later))); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := <-taken; err != nil {
			t.Errorf("after it was read: %v", err)
		}
		c.SendAnswer(answer)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.Answered(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("within a second: %v", err)
		}
		c.CloseSlow(CloseTimeout)
		if err := c.Answered(t.Context()); err != nil {
			t.Errorf("once the client is closed: %v", err)
		}
	})
}

// The kernel takes some bytes for a client that takes none. That is noticed, too.
func TestAClientThatTakesNothingIsStuck(t *testing.T) {
	c, client, _ := tcpPair(t, 1<<20)
	for c.Send(bigMessage(1, 20_000)) && c.SentBytes() < 1<<19 { // more than both buffers hold
	}
	if c.IsStuck() {
		t.Error("stuck at once")
	}
	c.mu.Lock()
	c.stuckSince = c.stuckSince.Add(-writeTimeout) // as if it had waited that long
	c.mu.Unlock()
	if !c.IsStuck() {
		t.Error("not stuck after the write timeout")
	}
	if _, err := io.ReadFull(client, make([]byte, 1<<18)); err != nil {
		t.Fatal(err)
	}
	if c.IsStuck() {
		t.Error("stuck although bytes were taken")
	}
}
