package conn

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tcpEnds returns both ends of a TCP connection.
func tcpEnds(t testing.TB) (server, client *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialed, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialed.Close(); accepted.Close() })
	return accepted.(*net.TCPConn), dialed.(*net.TCPConn)
}

// tcpPair returns a Conn over real TCP with small buffers, its client, and the
// count of queued bytes.
func tcpPair(t *testing.T, limit int) (*Conn, *net.TCPConn, *Budget) {
	t.Helper()
	server, client := tcpEnds(t)
	_ = client.SetReadBuffer(32 << 10)
	_ = server.SetWriteBuffer(16 << 10)
	queued, tick := NewBudget(1<<40), new(atomic.Int64)
	return New(server, nil, Options{QueueBytes: limit, Budget: queued, Tick: tick}), client, queued
}

// parseFrames splits a stream into the opcodes and payloads of its frames. It fails
// the test unless the stream ends with a whole frame.
func parseFrames(t *testing.T, stream []byte) (ops []byte, payloads [][]byte) {
	t.Helper()
	for len(stream) > 0 {
		if len(stream) < 2 {
			t.Fatalf("the stream ends inside a header: %x", stream)
		}
		head, size := 2, int(stream[1]&0x7f)
		switch {
		case size == 126 && len(stream) >= 4:
			head, size = 4, int(binary.BigEndian.Uint16(stream[2:]))
		case size == 127 && len(stream) >= 10:
			head, size = 10, int(binary.BigEndian.Uint64(stream[2:]))
		}
		if len(stream) < head+size {
			t.Fatalf("a frame of %d bytes has only %d; the stream ends with %q", size, len(stream)-head, stream[len(stream)-10:])
		}
		ops = append(ops, stream[0])
		payloads = append(payloads, stream[head:head+size])
		stream = stream[head+size:]
	}
	return ops, payloads
}

func bigMessage(seq message.Seq, size int) protocol.Frame {
	return protocol.Message(&message.Message{
		Draft: message.Draft{Room: "r", ID: "i", Data: []byte(`"` + strings.Repeat("x", size) + `"`)}, Epoch: "e", Seq: seq,
	})
}

// A close frame must never be inside a message that was written in part. Several
// senders race with the goroutine that writes the rest.
func TestSlowClientsGetWholeFramesThen4208(t *testing.T) {
	for range 5 {
		c, client, queued := tcpPair(t, 256<<10)
		var senders sync.WaitGroup
		for range 4 {
			senders.Go(func() {
				for c.Send(bigMessage(1, 50<<10)) {
				}
			})
		}
		senders.Wait() // they stop over the limit, since the client reads nothing
		_ = client.SetReadDeadline(time.Now().Add(15 * time.Second))
		stream := make(chan []byte, 1)
		go func() {
			all, _ := io.ReadAll(client)
			_ = client.Close() // so that the server need not linger
			stream <- all
		}()
		_ = c.Close()
		ops, payloads := parseFrames(t, <-stream)
		last := len(ops) - 1
		if last < 1 || ops[last] != 0x88 || !bytes.HasPrefix(payloads[last], []byte{0x10, 0x70}) {
			t.Fatalf("the last of %d frames is %x %q, want a close with 4208", len(ops), ops[last], payloads[last])
		}
		for _, op := range ops[:last] {
			if op != 0x81 {
				t.Fatalf("a frame with the first byte %x among the messages", op)
			}
		}
		if queued.Queued() != 0 {
			t.Fatalf("%d bytes are still counted as queued", queued.Queued())
		}
	}
}

// At most QUEUE_BYTES are queued for a client that does not read. The next frame
// closes the client with 4208 and drops the queue.
func TestTheSendQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 1 << 20
		client, server := net.Pipe()
		queued := NewBudget(1 << 40)
		c := New(server, nil, Options{QueueBytes: limit, Budget: queued, Tick: new(atomic.Int64)})
		f := bigMessage(1, 1000)
		accepted := 0
		for c.Queue(f) {
			accepted += len(f)
		}
		if accepted > limit || accepted+len(f) <= limit {
			t.Errorf("%d bytes are queued, want as many whole frames as fit into %d", accepted, limit)
		}
		if code, ours := c.CloseStatus(); code != protocol.CloseSlow || !ours {
			t.Errorf("closed with %d, want 4208", code)
		}
		if got := queued.Queued(); got > 100 {
			t.Errorf("%d bytes are still counted, want those of the close frame", got)
		}
		_ = client.Close()
		_ = c.Close()
	})
}

// Frames that several goroutines send while the client reads slowly arrive whole,
// and those of each sender in order.
func TestASlowReaderGetsEverythingInOrder(t *testing.T) {
	c, client, queued := tcpPair(t, 64<<20)
	const each, size = 200, 3000
	var senders sync.WaitGroup
	for range 3 {
		senders.Go(func() {
			for seq := range message.Seq(each) {
				if !c.Send(bigMessage(seq+1, size)) {
					t.Error("a frame was refused below the limit")
				}
			}
		})
	}
	_ = client.SetReadDeadline(time.Now().Add(30 * time.Second))
	received := make(chan []byte, 1)
	go func() {
		var got bytes.Buffer
		for {
			if _, err := io.CopyN(&got, client, 1500); err != nil {
				received <- got.Bytes()
				return
			}
		}
	}()
	senders.Wait()
	if err := c.Flushed(t.Context()); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	ops, _ := parseFrames(t, <-received)
	if len(ops) != 3*each {
		t.Errorf("%d frames, want %d", len(ops), 3*each)
	}
	if queued.Queued() != 0 {
		t.Errorf("%d bytes are still counted as queued", queued.Queued())
	}
}

func TestNothingFollowsACloseFrame(t *testing.T) {
	c, client, _ := tcpPair(t, 1<<20)
	c.Send(bigMessage(1, 10))
	c.CloseWith(protocol.CloseRestart)
	if c.Send(bigMessage(2, 10)) || c.Queue(bigMessage(3, 10)) {
		t.Error("a frame was accepted after the close frame")
	}
	c.CloseWith(protocol.CloseSlow) // the first reason stays
	done := make(chan struct{})
	go func() { _ = c.Close(); close(done) }()
	all, err := io.ReadAll(client)
	if err != nil {
		t.Fatal(err)
	}
	_ = client.Close()
	<-done
	ops, payloads := parseFrames(t, all)
	if len(ops) != 2 || ops[1] != 0x88 || binary.BigEndian.Uint16(payloads[1]) != 1012 {
		t.Errorf("got %x %q", ops, payloads)
	}
}

// A stalledSocket is the socket of a client that reads nothing until delivered is closed. As
// the runtime does, it looks at a deadline only when its goroutine runs: one that has expired
// and was set again meanwhile did not expire.
type stalledSocket struct {
	net.Conn
	delivered chan struct{}
	deadline  atomic.Pointer[time.Time]
	writes    atomic.Int32
}

func (s *stalledSocket) SetDeadline(t time.Time) error { s.deadline.Store(&t); return nil }

func (s *stalledSocket) SetWriteDeadline(t time.Time) error { return s.SetDeadline(t) }

func (s *stalledSocket) Close() error { return nil }

func (s *stalledSocket) Write(p []byte) (int, error) {
	s.writes.Add(1)
	for first := s.writes.Load() == 1; ; {
		time.Sleep(time.Millisecond)
		if d := s.deadline.Load(); d != nil && !d.IsZero() && !time.Now().Before(*d) {
			return 0, os.ErrDeadlineExceeded
		}
		select {
		case <-s.delivered:
			if first {
				return len(p), nil
			}
		default:
		}
	}
}

// An aborted connection ends at once, although a write is blocked and its reader closes it,
// and although the blocked write just succeeds and more is queued. Its client was not slow.
func TestAnAbortedConnectionEndsAtOnce(t *testing.T) {
	for name, delivers := range map[string]bool{"a write is blocked": false, "a write has just succeeded": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				socket := &stalledSocket{delivered: make(chan struct{})}
				queued := NewBudget(1 << 40)
				c := New(socket, nil, Options{QueueBytes: 1 << 20, Budget: queued, Tick: new(atomic.Int64)})
				c.Send(bigMessage(1, maxWrite)) // each frame is a write of its own
				c.Send(bigMessage(2, maxWrite))
				synctest.Wait()
				began := time.Now()
				if c.Abort(); delivers {
					close(socket.delivered)
					socket.deadline.Store(nil) // the write succeeded before the abort
					time.Sleep(2 * time.Millisecond)
				}
				_ = c.Close() // as the library does when the reader fails
				if took := time.Since(began); took > 10*time.Millisecond {
					t.Errorf("the connection was closed after %v", took)
				}
				synctest.Wait()
				if code, ours := c.CloseStatus(); code != 0 || ours {
					t.Errorf("closed with %d, by the service: %v; want an end without a close frame", code, ours)
				}
				if c.Send(bigMessage(3, 10)) || queued.Queued() != 0 || socket.writes.Load() != 1 {
					t.Errorf("an aborted connection writes: %d writes, %d bytes queued", socket.writes.Load(), queued.Queued())
				}
			})
		})
	}
}

// A slowLink is the socket of a client that receives some bytes a second, until it has
// received as many as last.
type slowLink struct {
	net.Conn
	perSecond, last int
	received        bytes.Buffer
	deadline        atomic.Pointer[time.Time]
}

func (s *slowLink) SetDeadline(t time.Time) error { s.deadline.Store(&t); return nil }

func (s *slowLink) SetWriteDeadline(t time.Time) error { return s.SetDeadline(t) }

func (s *slowLink) Close() error { return nil }

func (s *slowLink) Write(p []byte) (n int, err error) {
	for n < len(p) {
		time.Sleep(time.Second)
		if d := s.deadline.Load(); !d.IsZero() && !time.Now().Before(*d) {
			return n, os.ErrDeadlineExceeded
		}
		some := min(s.perSecond, s.last-s.received.Len(), len(p)-n)
		s.received.Write(p[n : n+some])
		n += some
	}
	return n, nil
}

// A page of 256 KiB arrives on a link that needs minutes for it, and what is received
// shows that the client is alive. A client that receives nothing for 10 s, or needs more
// than 5 minutes, is closed as a slow one.
func TestBytesThatMoveCountAsLife(t *testing.T) {
	const page = 256 << 10
	for name, tt := range map[string]struct {
		perSecond, last int
		arrives         bool
		took            time.Duration // the connection ends or is written, rounded up to writeTimeout
	}{
		"6 KB a second":              {6000, page * 2, true, 50 * time.Second},
		"1.2 KB a second":            {1200, page * 2, true, 250 * time.Second},
		"a link that falls silent":   {6000, 100_000, false, 30 * time.Second},
		"nothing at all":             {6000, 0, false, 10 * time.Second},
		"less than 5 minutes' worth": {100, page * 2, false, 300 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				link, tick := &slowLink{perSecond: tt.perSecond, last: tt.last}, new(atomic.Int64)
				c := New(link, nil, Options{QueueBytes: 1 << 20, Budget: NewBudget(1 << 40), Tick: tick})
				f := bigMessage(1, page)
				c.Send(f)
				for ended := false; !ended; {
					time.Sleep(writeTimeout)
					synctest.Wait()
					tick.Add(1)
					c.mu.Lock()
					ended = !c.writing || c.failed
					c.mu.Unlock()
				}
				if got := time.Duration(tick.Load()) * writeTimeout; got != tt.took {
					t.Errorf("ended after %v, want %v", got, tt.took)
				}
				if got := bytes.Equal(link.received.Bytes(), f); got != tt.arrives {
					t.Errorf("it arrives whole: %v, want %v", got, tt.arrives)
				}
				want := protocol.CloseCode(0)
				if !tt.arrives {
					want = protocol.CloseSlow
				}
				if code, _ := c.CloseStatus(); code != want {
					t.Errorf("closed with %d, want %d", code, want)
				}
				if alive := tick.Load() - c.LastRead(); tt.arrives && alive > 2 {
					t.Errorf("the last sign of life is %v old", time.Duration(alive)*writeTimeout)
				}
				_ = c.Close()
			})
		})
	}
}

// An aborted connection does not wait until its client has read the close frame: what the
// client has sent stays unread, so that it gets a reset.
func TestAnAbortedConnectionDoesNotWaitForItsClient(t *testing.T) {
	c, client, _ := tcpPair(t, 1<<20)
	c.CloseWith(protocol.CloseRestart)
	if _, err := io.ReadFull(client, make([]byte, len(protocol.CloseFrame(protocol.CloseRestart)))); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Write([]byte("unread")); err != nil {
		t.Fatal(err)
	}
	c.Abort()
	_ = c.Close()
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client got %v, want a reset", err)
	}
}

// A flush to a client that is gone drops its frames, and they no longer count as queued.
func TestAFailedFlushLeavesNothingCounted(t *testing.T) {
	c, client, queued := tcpPair(t, 1<<20)
	_ = client.SetLinger(0) // resets the connection
	_ = client.Close()
	for c.Queue(bigMessage(1, 100)) && c.Queue(bigMessage(2, 100)) {
		c.Flush()
	}
	if got := queued.Queued(); got != 0 {
		t.Errorf("%d bytes are still counted as queued", got)
	}
	_ = c.Close()
}

func BenchmarkSend(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		b.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, client) }()
	c := New(server, nil, Options{QueueBytes: 1 << 30, Budget: NewBudget(1 << 40), Tick: new(atomic.Int64)})
	f := bigMessage(1, 126)
	b.ReportAllocs()
	for b.Loop() {
		c.Send(f)
	}
	_ = client.Close()
	_ = c.Close()
}
