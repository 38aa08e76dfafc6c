// Package conn owns the socket behind one WebSocket: its bounded send queue, its close
// handshake, and what its reader may read. See DESIGN.md.
package conn

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"switchyard/internal/protocol"
	"switchyard/internal/ratelimit"
)

const (
	// writeTimeout bounds the time in which a client receives nothing of what is
	// written, and writeLimit one write of at most maxWrite bytes, or of one larger
	// frame. A slower client is closed.
	writeTimeout = 10 * time.Second
	writeLimit   = 5 * time.Minute
	maxWrite     = 64 << 10
	// CloseTimeout bounds a close handshake, and the flush before it.
	CloseTimeout = 5 * time.Second
	// lingerTimeout and lingerBytes bound how much is read and discarded after a
	// close frame of ours. If unread bytes are left at the close, the kernel sends a reset,
	// and the client would never see the close frame (RFC 9112 §9.6 describes the
	// same for HTTP).
	lingerTimeout = time.Second
	lingerBytes   = 4 << 20
)

// Options are what a connection shares with the others of its node, and its limits.
type Options struct {
	// QueueBytes bounds the send queue, in bytes.
	QueueBytes int
	// Budget is that of all connections.
	Budget *Budget
	// Tick counts the turns of the heartbeat loop: wheel.SlotCount of them are a period.
	Tick *atomic.Int64
	// Frames and Bytes limit what is read. The zero Limit is none.
	Frames, Bytes ratelimit.Limit
}

// A Conn is a hijacked connection. All writes, ours and those of the websocket
// library, go through one bounded queue of whole frames. If the queue is empty, a
// frame is written at once, without blocking and without a goroutine. What the
// socket does not accept is written by a goroutine that runs until the queue is
// empty. A Conn is safe for concurrent use.
type Conn struct {
	net.Conn
	limit    int // bytes queued at most
	tick     *atomic.Int64
	preread  []byte       // read by net/http before the upgrade; belongs to the reader
	pongs    pongScanner  // belongs to the reader
	onPong   func(uint64) // nil: pongs are not reported; belongs to the reader
	onExtras func(int)    // likewise
	throttle throttle     // belongs to the reader

	lastReadTick atomic.Int64 // tick of the last byte read
	sentBytes    atomic.Int64 // bytes queued or written

	// mu protects the fields below.
	mu             sync.Mutex
	queue          sendQueue
	direct         directWriter
	writing        bool // writeLoop owns the socket's write side
	ending         bool // a close frame is queued or the connection failed: no more frames are accepted
	failed         bool // it failed or was aborted: nothing is written or awaited, and no deadline is set any more
	closed         bool
	closeCode      protocol.CloseCode // of the first close frame, 0 for none
	closedByServer bool               // the service decided to close, not the library
	linger         bool               // Close reads on for a moment, so that the client gets our close frame
	flushed        chan struct{}      // closed when nothing is queued; nil: nobody waits
	lastAnswer     int64              // sentBytes at the end of the last answer to a read
	answered       chan struct{}      // closed when it has left; nil: nobody waits
	taken          uint64             // bytes that the client had acknowledged at the last StuckFor
	stuckSince     time.Time          // the first StuckFor at which that was so and others waited; zero: none waited
}

// New returns the connection around a hijacked one. preread is what net/http has read
// of it already.
func New(inner net.Conn, preread []byte, o Options) *Conn {
	c := &Conn{
		Conn: inner, preread: preread, limit: o.QueueBytes, tick: o.Tick,
		throttle: throttle{began: time.Now(), frames: o.Frames, bytes: o.Bytes},
	}
	c.queue.budget = o.Budget
	c.direct.init(inner)
	c.MarkRead()
	return c
}

// OnPong sets the function that gets the counter of each answer to our pings. It is
// called by the reader, or before anything is read.
func (c *Conn) OnPong(f func(counter uint64)) { c.onPong = f }

// OnExtras sets the function that gets the number of control frames and fragments that were
// read. Nothing more is read until it returns. It is called by the reader.
func (c *Conn) OnExtras(f func(n int)) { c.onExtras = f }

// MarkRead records that the client has sent something at this tick, or has received
// some of what waited for it.
func (c *Conn) MarkRead() { c.lastReadTick.Store(c.tick.Load()) }

// LastRead returns the tick of the last MarkRead or byte read.
func (c *Conn) LastRead() int64 { return c.lastReadTick.Load() }

// SentBytes returns how many bytes were queued or written for the client.
func (c *Conn) SentBytes() int64 { return c.sentBytes.Load() }

// Read implements net.Conn. Only the websocket library calls it.
func (c *Conn) Read(p []byte) (int, error) {
	if len(c.preread) > 0 {
		n := copy(p, c.preread)
		c.preread = c.preread[n:]
		c.inspectRead(p[:n])
		return n, nil
	}
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.MarkRead()
		c.inspectRead(p[:n])
	}
	return n, err
}

// inspectRead finds the answers to our pings in what was read, and delays the
// reader of a client that sends too much.
func (c *Conn) inspectRead(p []byte) {
	found := c.onPong
	if found == nil {
		found = func(uint64) {}
	}
	frames, extras := c.pongs.frames, c.pongs.extras
	c.pongs.scan(p, found)
	c.throttle.pause(c.pongs.frames-frames, len(p))
	if n := c.pongs.extras - extras; n > 0 && c.onExtras != nil {
		c.onExtras(n)
	}
}

// Write implements net.Conn. The library writes pongs and close frames, each in one
// call.
func (c *Conn) Write(p []byte) (int, error) {
	f := append([]byte(nil), p...)
	if protocol.IsClose(f) {
		c.mu.Lock()
		// The library sends 1002 to 2999 by itself, or echoes the code of the client's
		// close frame, which may be any: both are treated alike. Other codes are echoes.
		if len(f) >= 4 && c.closeCode == 0 {
			c.closeCode = protocol.CloseCode(binary.BigEndian.Uint16(f[2:]))
			if c.linger = c.closeCode >= protocol.CloseProtocol && c.closeCode < 3000; c.linger {
				f = protocol.CloseFrame(c.closeCode) // with our reason text
			}
			if !utf8.Valid(f[4:]) {
				// The client's reason is not UTF-8 (RFC 6455 §7.1.6), and the
				// library would send it back.
				c.closeCode, c.linger = protocol.CloseUTF8, true
				f = protocol.CloseFrame(c.closeCode)
			}
		}
		c.mu.Unlock()
	} else {
		c.throttle.pausePing() // the library writes nothing else but pongs
	}
	c.Send(f)
	return len(p), nil
}

// Send queues a frame and writes what the socket accepts. It implements hub.Outlet.
func (c *Conn) Send(f protocol.Frame) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ending {
		return false
	}
	if c.queue.isEmpty() && !c.writing && c.direct.possible() {
		c.sentBytes.Add(int64(len(f)))
		n, err := c.direct.tryWrite(f)
		if err != nil {
			c.fail()
			return false
		}
		c.ending = protocol.IsClose(f)
		if n < len(f) {
			c.queue.pushPartial(f[n:], f)
			c.startWriteLoop()
		}
		return true
	}
	if !c.enqueueOrClose(f) {
		return false
	}
	c.writeQueued()
	return true
}

// Queue queues a frame, which Flush or the next Send writes. It implements hub.Outlet.
func (c *Conn) Queue(f protocol.Frame) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.ending && c.enqueueOrClose(f)
}

// Flush writes what is queued, as far as the socket accepts it. It implements hub.Outlet.
func (c *Conn) Flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writeQueued()
}

// Flushed waits until nothing is queued. It implements hub.Outlet. A client that stops
// reading is closed by the write deadline, so the wait is bounded.
func (c *Conn) Flushed(ctx context.Context) error {
	c.mu.Lock()
	if c.ending {
		c.mu.Unlock()
		return net.ErrClosed
	}
	c.writeQueued()
	if !c.writing {
		c.mu.Unlock()
		return nil
	}
	if c.flushed == nil {
		c.flushed = make(chan struct{})
	}
	flushed := c.flushed
	c.mu.Unlock()
	select {
	case <-flushed:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for a client to read: %w", ctx.Err())
	}
}

// enqueueOrClose queues a frame, or closes a slow client. Caller holds mu.
func (c *Conn) enqueueOrClose(f protocol.Frame) bool {
	if c.queue.bytes+len(f) > c.limit {
		c.closeSlow()
		return false
	}
	c.sentBytes.Add(int64(len(f)))
	c.queue.push(f)
	c.ending = protocol.IsClose(f)
	return true
}

// QueueHandshake queues the answer to the handshake. It is called before any frame.
func (c *Conn) QueueHandshake(answer []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queue.push(answer)
}

// closeSlow drops all frames of which nothing was written yet, and queues a close
// frame instead. A frame that was written in part must still be sent completely: the
// client would read a close frame in the middle of a message as part of it. The
// dropped frames are not lost, since the client resumes from the log. Caller holds
// mu.
func (c *Conn) closeSlow() {
	c.queue.drop()
	c.queueClose(protocol.CloseSlow)
}

// CloseWith starts a close handshake and returns at once. The reader ends when the
// client has answered, or after CloseTimeout. It returns false if the connection
// was ending already.
func (c *Conn) CloseWith(code protocol.CloseCode) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ending {
		return false
	}
	c.queueClose(code)
	return true
}

// Close implements net.Conn, for the library. It waits until the queue is written,
// and gives a client that we closed the time to read the close frame. Both waits
// are bounded, by CloseTimeout and lingerTimeout.
func (c *Conn) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return net.ErrClosed
	}
	c.closed, c.ending = true, true
	c.notifyAnswered()
	var flushed chan struct{}
	if c.writing {
		if !c.failed {
			_ = c.Conn.SetDeadline(time.Now().Add(CloseTimeout))
		}
		if c.flushed == nil {
			c.flushed = make(chan struct{})
		}
		flushed = c.flushed
	} else {
		c.queue.drop()
		c.notifyFlushed()
	}
	c.mu.Unlock()
	if flushed != nil {
		<-flushed // bounded by the deadline
	}
	if tcp, ok := c.Conn.(*net.TCPConn); ok && c.beginLinger(tcp) {
		_, _ = io.CopyN(io.Discard, tcp, lingerBytes)
	}
	return c.Conn.Close()
}

// beginLinger ends the sending and bounds the reading that gives the client the time to read
// our close frame. It returns false if nothing is to be read.
func (c *Conn) beginLinger(tcp *net.TCPConn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.linger || c.failed {
		return false
	}
	_ = tcp.CloseWrite()
	_ = tcp.SetReadDeadline(time.Now().Add(lingerTimeout))
	return true
}

// IsEnding reports whether the connection is closing, or has failed.
func (c *Conn) IsEnding() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ending
}

// CloseStatus returns the code of the first close frame that was queued, 0 for
// none, and whether the service decided to close.
func (c *Conn) CloseStatus() (code protocol.CloseCode, ours bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closeCode, c.closedByServer
}

// Abort ends the connection at once and without a close frame: it drops what is queued, and
// ends the reader, a write, and the waits of Close.
func (c *Conn) Abort() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail()
}

// queueClose queues the close frame. Caller holds mu.
func (c *Conn) queueClose(code protocol.CloseCode) {
	c.closeCode, c.closedByServer, c.ending, c.linger = code, true, true, true
	c.notifyAnswered()
	c.queue.push(protocol.CloseFrame(code))
	_ = c.Conn.SetDeadline(time.Now().Add(CloseTimeout)) // bounds the reads and writes of a dead socket
	c.writeQueued()
}

// writeQueued writes as much of the queue as the socket accepts without blocking,
// and starts writeLoop for the rest. Caller holds mu.
func (c *Conn) writeQueued() {
	if c.writing || c.closed || c.queue.isEmpty() {
		return
	}
	if !c.direct.possible() {
		c.startWriteLoop()
		return
	}
	frames := c.queue.take()
	buf := frames[0]
	if len(frames) > 1 {
		pooled := GetBuffer()
		defer PutBuffer(pooled)
		for _, f := range frames {
			*pooled = append(*pooled, f...)
		}
		buf = *pooled
	}
	n, err := c.direct.tryWrite(buf)
	c.queue.sent(len(buf))
	if err != nil {
		c.fail() // what was taken is lost
		return
	}
	if n < len(buf) {
		rest := append([]byte(nil), buf[n:]...) // buf goes back to the pool
		c.queue.pushPartial(rest, rest)
	}
	c.notifyAnswered()
	if !c.queue.isEmpty() {
		c.startWriteLoop()
		return
	}
	c.notifyFlushed()
}

func (c *Conn) startWriteLoop() {
	c.writing = true
	go c.writeLoop()
}

// writeLoop writes the queue with blocking writes, outside the lock. While it runs,
// it alone writes to the socket.
func (c *Conn) writeLoop() {
	for {
		c.mu.Lock()
		if c.queue.isEmpty() {
			c.writing = false
			if !c.ending {
				// An expired deadline would fail the next tryWrite.
				_ = c.Conn.SetWriteDeadline(time.Time{})
			}
			c.notifyFlushed()
			c.mu.Unlock()
			return
		}
		frames := c.queue.take()
		if !c.ending {
			_ = c.Conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		}
		c.mu.Unlock()
		size := 0
		for _, f := range frames {
			size += len(f)
		}
		err := c.write(slices.Clone(frames)) // a net.Buffers is consumed
		c.mu.Lock()
		c.queue.sent(size)
		c.notifyAnswered()
		if err != nil {
			if c.closeCode == 0 && !c.failed && errors.Is(err, os.ErrDeadlineExceeded) {
				// The client is too slow even for a close frame. It counts as a
				// slow client.
				c.closeCode, c.closedByServer = protocol.CloseSlow, true
			}
			c.fail()
		}
		c.mu.Unlock()
	}
}

// write writes frames as slowly as the client receives them, within writeLimit. If it
// has received anything until the deadline, it has more time, and counts as alive:
// the pings that it could answer wait behind the frames.
func (c *Conn) write(frames net.Buffers) error {
	began, unacked := time.Now(), c.direct.unacked()
	for {
		n, err := frames.WriteTo(c.Conn)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		pending := unacked + int(n)
		unacked = c.direct.unacked()
		if unacked >= pending || time.Since(began) >= writeLimit || !c.extendWrite() {
			return err
		}
	}
}

// extendWrite gives a write more time, unless the connection is ending.
func (c *Conn) extendWrite() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ending {
		return false
	}
	c.MarkRead()
	_ = c.Conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	return true
}

// fail makes the connection unusable and drops its queue. The expired deadline ends
// the reader and a write. It stays: a deadline that is set again before they run would keep
// them. Caller holds mu.
func (c *Conn) fail() {
	c.ending, c.failed = true, true
	c.queue.clear()
	c.notifyAnswered()
	_ = c.Conn.SetDeadline(time.Now())
}

// notifyFlushed wakes the callers of Flushed and of Close. Caller holds mu.
func (c *Conn) notifyFlushed() {
	if c.flushed != nil {
		close(c.flushed)
		c.flushed = nil
	}
}
