package http

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode/utf8"

	"switchyard/internal/protocol"
)

const (
	// writeTimeout bounds one write of at most maxWrite bytes, or of one larger
	// frame. A client that reads more slowly is closed.
	writeTimeout = 10 * time.Second
	maxWrite     = 64 << 10
	// closeTimeout bounds a close handshake, and the flush before it.
	closeTimeout = 5 * time.Second
	// lingerTimeout and lingerBytes bound how much is read and discarded after a
	// close frame of ours. If unread bytes are left at the close, the kernel sends a reset,
	// and the client would never see the close frame (RFC 9112 §9.6 describes the
	// same for HTTP).
	lingerTimeout = time.Second
	lingerBytes   = 4 << 20
)

// A conn is a hijacked connection. All writes, ours and those of the websocket
// library, go through one bounded queue of whole frames. If the queue is empty, a
// frame is written at once, without blocking and without a goroutine. What the
// socket does not accept is written by a goroutine that runs until the queue is
// empty. A conn is safe for concurrent use.
type conn struct {
	net.Conn
	raw          syscall.RawConn // nil: not a TCP connection
	limit        int             // bytes queued at most
	totalQueued  *atomic.Int64   // the sum of all connections, for the metric
	tick         *atomic.Int64   // the heartbeat's tick
	preread      []byte          // read by net/http before the upgrade; belongs to the reader
	pongs        pongScanner     // belongs to the reader
	onPong       func(uint64)    // nil: pongs are not reported; belongs to the reader
	readThrottle *throttle       // nil: none; belongs to the reader

	lastReadTick atomic.Int64 // tick of the last byte read
	sentBytes    atomic.Int64 // bytes queued or written

	// mu protects the fields below.
	mu             sync.Mutex
	partial        []byte // the rest of a write that the socket accepted in part; it must leave first and whole
	queue          [][]byte
	queuedBytes    int  // of partial and queue
	writing        bool // writeLoop owns the socket's write side
	ending         bool // a close frame is queued or the connection failed: no more frames are accepted
	closed         bool
	closeCode      protocol.CloseCode // of the first close frame, 0 for none
	closedByServer bool               // the service decided to close, not the library
	linger         bool
	flushed        chan struct{} // closed when nothing is queued; nil: nobody waits

	// The arguments and results of tryWrite. They are fields so that a write
	// allocates nothing.
	attempt    func(fd uintptr) bool
	attemptBuf []byte
	attemptN   int
	attemptErr error
}

func newConn(inner net.Conn, preread []byte, limit int, queued, tick *atomic.Int64) *conn {
	c := &conn{Conn: inner, preread: preread, limit: limit, totalQueued: queued, tick: tick}
	c.lastReadTick.Store(tick.Load())
	if tcp, ok := inner.(*net.TCPConn); ok {
		c.raw, _ = tcp.SyscallConn() // an error leaves it nil: then writeLoop does all writes
	}
	c.attempt = func(fd uintptr) bool {
		c.attemptN, c.attemptErr = sendNow(fd, c.attemptBuf)
		return true // done: do not wait until the socket is writable
	}
	return c
}

// Read implements net.Conn. Only the websocket library calls it.
func (c *conn) Read(p []byte) (int, error) {
	if len(c.preread) > 0 {
		n := copy(p, c.preread)
		c.preread = c.preread[n:]
		c.inspectRead(p[:n])
		return n, nil
	}
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.lastReadTick.Store(c.tick.Load())
		c.inspectRead(p[:n])
	}
	return n, err
}

// inspectRead finds the answers to our pings in what was read, and delays the
// reader of a client that sends too much.
func (c *conn) inspectRead(p []byte) {
	found := c.onPong
	if found == nil {
		found = func(uint64) {}
	}
	before := c.pongs.frames
	c.pongs.scan(p, found)
	c.readThrottle.pause(c.pongs.frames-before, len(p))
}

// Write implements net.Conn. The library writes pongs and close frames, each in one
// call.
func (c *conn) Write(p []byte) (int, error) {
	f := append([]byte(nil), p...)
	if protocol.IsClose(f) {
		c.mu.Lock()
		// A code from 1002 on is the library's own decision. A lower one answers
		// the client's close frame.
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
		c.readThrottle.pausePing() // the library writes nothing else but pongs
	}
	c.Send(f)
	return len(p), nil
}

// Send implements hub.Outlet.
func (c *conn) Send(f protocol.Frame) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ending {
		return false
	}
	if len(c.queue) == 0 && !c.writing && c.raw != nil {
		c.sentBytes.Add(int64(len(f)))
		n, err := c.tryWrite(f)
		if err != nil {
			c.fail()
			return false
		}
		c.ending = protocol.IsClose(f)
		if n < len(f) {
			c.partial = f[n:]
			c.addQueued(len(c.partial))
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

// Queue implements hub.Outlet.
func (c *conn) Queue(f protocol.Frame) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.ending && c.enqueueOrClose(f)
}

// Flush implements hub.Outlet.
func (c *conn) Flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writeQueued()
}

// enqueueOrClose queues a frame, or closes a slow client. Caller holds mu.
func (c *conn) enqueueOrClose(f protocol.Frame) bool {
	if c.queuedBytes+len(f) > c.limit {
		c.closeSlow()
		return false
	}
	c.sentBytes.Add(int64(len(f)))
	c.enqueue(f)
	c.ending = protocol.IsClose(f)
	return true
}

// queueHandshake queues the answer to the handshake. It is called before any frame.
func (c *conn) queueHandshake(answer []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.enqueue(answer)
}

func (c *conn) enqueue(f []byte) {
	c.queue = append(c.queue, f)
	c.addQueued(len(f))
}

// addQueued changes the counts of queued bytes by n. Caller holds mu.
func (c *conn) addQueued(n int) {
	c.queuedBytes += n
	c.totalQueued.Add(int64(n))
}

// closeSlow drops all frames of which nothing was written yet, and queues a close
// frame instead. A frame that was written in part must still be sent completely: the client would read a close frame
// in the middle of a message as part of it. The dropped frames are not lost, since
// the client resumes from the log. Caller holds mu.
func (c *conn) closeSlow() {
	c.dropQueue()
	c.queueClose(protocol.CloseSlow)
}

// dropQueue drops the frames of which nothing was written yet. Caller holds mu.
func (c *conn) dropQueue() {
	for _, f := range c.queue {
		c.addQueued(-len(f))
	}
	c.queue = nil
}

// CloseWith starts a close handshake and returns at once. The reader ends when the
// client has answered, or after closeTimeout. It returns false if the connection
// was ending already.
func (c *conn) CloseWith(code protocol.CloseCode) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ending {
		return false
	}
	c.queueClose(code)
	return true
}

// queueClose queues the close frame. Caller holds mu.
func (c *conn) queueClose(code protocol.CloseCode) {
	c.closeCode, c.closedByServer, c.ending, c.linger = code, true, true, true
	c.enqueue(protocol.CloseFrame(code))
	_ = c.Conn.SetDeadline(time.Now().Add(closeTimeout)) // bounds the reads and writes of a dead socket
	c.writeQueued()
}

// writeQueued writes as much of the queue as the socket accepts without blocking,
// and starts writeLoop for the rest. Caller holds mu.
func (c *conn) writeQueued() {
	if c.writing || c.closed || len(c.queue) == 0 {
		return
	}
	if c.raw == nil {
		c.startWriteLoop()
		return
	}
	frames := c.takeFrames()
	buf := frames[0]
	if len(frames) > 1 {
		pooled := buffers.get()
		defer buffers.put(pooled)
		for _, f := range frames {
			*pooled = append(*pooled, f...)
		}
		buf = *pooled
	}
	n, err := c.tryWrite(buf)
	if err != nil {
		c.fail()
		return
	}
	c.addQueued(-n)
	if n < len(buf) {
		c.partial = append([]byte(nil), buf[n:]...) // buf goes back to the pool
	}
	if c.partial != nil || len(c.queue) > 0 {
		c.startWriteLoop()
		return
	}
	c.notifyFlushed()
}

// takeFrames dequeues whole frames of about maxWrite bytes together, or the rest of
// a write that the socket accepted in part. The bytes stay counted until they are
// written. Caller holds mu, and something is queued.
func (c *conn) takeFrames() [][]byte {
	if c.partial != nil {
		frames := [][]byte{c.partial}
		c.partial = nil
		return frames
	}
	n, size := 1, len(c.queue[0])
	for n < len(c.queue) && size+len(c.queue[n]) <= maxWrite {
		size += len(c.queue[n])
		n++
	}
	frames := c.queue[:n:n]
	if c.queue = c.queue[n:]; len(c.queue) == 0 {
		c.queue = nil
	}
	return frames
}

// tryWrite makes one write that never blocks. Caller holds mu.
func (c *conn) tryWrite(p []byte) (int, error) {
	c.attemptBuf, c.attemptN, c.attemptErr = p, 0, nil
	// RawConn, never a saved file descriptor: RawConn keeps the descriptor from
	// being closed and reused for another user's connection meanwhile.
	err := c.raw.Write(c.attempt)
	c.attemptBuf = nil
	if err == nil {
		err = c.attemptErr
	}
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR) {
		err = nil
	}
	return max(c.attemptN, 0), err
}

func (c *conn) startWriteLoop() {
	c.writing = true
	go c.writeLoop()
}

// writeLoop writes the queue with blocking writes, outside the lock. While it runs,
// it alone writes to the socket.
func (c *conn) writeLoop() {
	for {
		c.mu.Lock()
		if c.partial == nil && len(c.queue) == 0 {
			c.writing = false
			if !c.ending {
				// An expired deadline would fail the next tryWrite.
				_ = c.Conn.SetWriteDeadline(time.Time{})
			}
			c.notifyFlushed()
			c.mu.Unlock()
			return
		}
		frames := net.Buffers(c.takeFrames())
		if !c.ending {
			_ = c.Conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		}
		c.mu.Unlock()
		size := 0
		for _, f := range frames {
			size += len(f)
		}
		_, err := frames.WriteTo(c.Conn)
		c.mu.Lock()
		c.addQueued(-size)
		if err != nil {
			if c.closeCode == 0 && errors.Is(err, os.ErrDeadlineExceeded) {
				// The client is too slow even for a close frame. It counts as a
				// slow client.
				c.closeCode, c.closedByServer = protocol.CloseSlow, true
			}
			c.fail()
		}
		c.mu.Unlock()
	}
}

// fail makes the connection unusable and drops its queue. The expired deadline ends
// the reader. Caller holds mu.
func (c *conn) fail() {
	c.ending = true
	c.dropQueue()
	c.addQueued(-len(c.partial))
	c.partial = nil
	_ = c.Conn.SetDeadline(time.Now())
}

// notifyFlushed wakes the callers of Flushed. Caller holds mu.
func (c *conn) notifyFlushed() {
	if c.flushed != nil {
		close(c.flushed)
		c.flushed = nil
	}
}
