package http

import (
	"encoding/binary"
	"errors"
	"io"
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
	// writeTimeout is how long one write of a batch may take: who reads
	// slower than batchBytes in that time is gone.
	writeTimeout = 10 * time.Second
	batchBytes   = 64 << 10
	// closeTimeout bounds a close handshake, and the flush before it.
	closeTimeout = 5 * time.Second
	// lingerTimeout and lingerBytes bound what is read and thrown away after
	// we have refused a client: a socket closed with unread bytes answers with
	// a reset, and the client would never see the close frame (RFC 9112 §9.6
	// has the same for HTTP).
	lingerTimeout = time.Second
	lingerBytes   = 4 << 20
)

// A conn is a hijacked connection whose every write, the websocket library's
// and ours, goes through one bounded queue of whole frames. With nothing
// queued a frame is written at once, without blocking and without a goroutine;
// what the socket does not take is left to a goroutine that lives until the
// queue is empty. Safe for concurrent use.
type conn struct {
	net.Conn
	raw          syscall.RawConn // nil for what is no TCP connection
	limit        int             // bytes queued at most
	totalQueued  *atomic.Int64   // the sum of all queues, for the metric
	tick         *atomic.Int64   // the heartbeat's tick
	preread      []byte          // read by net/http before the upgrade; the reader's
	pongs        pongScanner     // the reader's
	onPong       func(uint64)    // nil: nobody asks; the reader's
	readThrottle *throttle       // the reader's; nil: none

	lastReadTick atomic.Int64 // tick of the last byte read
	sentBytes    atomic.Int64 // bytes queued or written

	mu sync.Mutex
	// Protects following.
	partial        []byte // the rest of what was written in part: it leaves first, whole
	queue          [][]byte
	queuedBytes    int  // of both
	writing        bool // drainLoop owns the socket's write side
	ending         bool // a close frame is queued, or the end came: no more is taken
	closed         bool
	closeCode      protocol.CloseCode // of the first close frame, 0 for none
	closedByServer bool               // it was the service's, not the library's
	linger         bool
	flushed        chan struct{} // closed when the queue is; nil: nobody waits

	// The arguments and results of tryWrite, so that an attempt allocates nothing.
	attempt    func(fd uintptr) bool
	attemptBuf []byte
	attemptN   int
	attemptErr error
}

func newConn(inner net.Conn, preread []byte, limit int, queued, tick *atomic.Int64) *conn {
	c := &conn{Conn: inner, preread: preread, limit: limit, totalQueued: queued, tick: tick}
	c.lastReadTick.Store(tick.Load())
	if tcp, ok := inner.(*net.TCPConn); ok {
		c.raw, _ = tcp.SyscallConn() // an error leaves it nil: the goroutine writes
	}
	c.attempt = func(fd uintptr) bool {
		c.attemptN, c.attemptErr = sendNow(fd, c.attemptBuf)
		return true // never wait for the socket here
	}
	return c
}

// Read implements net.Conn; the one reader is the library's.
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

// inspectRead finds the answers to our pings in what was read, and holds the reader
// up where there is too much of it.
func (c *conn) inspectRead(p []byte) {
	found := c.onPong
	if found == nil {
		found = func(uint64) {}
	}
	before := c.pongs.frames
	c.pongs.scan(p, found)
	c.readThrottle.pause(c.pongs.frames-before, len(p))
}

// Write queues what the library writes: pongs and close frames, whole.
func (c *conn) Write(p []byte) (int, error) {
	f := append([]byte(nil), p...)
	if protocol.IsClose(f) {
		c.mu.Lock()
		// Codes from 1002 on are the library's verdict, not its answer to the
		// client's own close.
		if len(f) >= 4 && c.closeCode == 0 {
			c.closeCode = protocol.CloseCode(binary.BigEndian.Uint16(f[2:]))
			if c.linger = c.closeCode >= protocol.CloseProtocol && c.closeCode < 3000; c.linger {
				f = protocol.CloseFrame(c.closeCode) // with our name for it
			}
			if !utf8.Valid(f[4:]) {
				// The client's own reason, which is not text (RFC 6455 §7.1.6):
				// the library would send it back.
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
			c.startDrainLoop()
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

// enqueueOrClose queues a frame, or ends a client that reads too slowly. Caller holds mu.
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

// queueHandshake queues the answer to the handshake, before any frame.
func (c *conn) queueHandshake(answer []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.enqueue(answer)
}

func (c *conn) enqueue(f []byte) {
	c.queue = append(c.queue, f)
	c.addQueued(len(f))
}

// addQueued puts bytes on the books, or takes them off. Caller holds mu.
func (c *conn) addQueued(n int) {
	c.queuedBytes += n
	c.totalQueued.Add(int64(n))
}

// closeSlow drops every frame not begun and queues a close frame in their place.
// What is begun leaves whole, or the connection ends: a close frame in the
// middle of a message would be read as part of it. The frames are not lost: the
// client resumes from the log. Caller holds mu.
func (c *conn) closeSlow() {
	c.dropQueue()
	c.queueClose(protocol.CloseSlow)
}

// dropQueue drops what is not begun. Caller holds mu.
func (c *conn) dropQueue() {
	for _, f := range c.queue {
		c.addQueued(-len(f))
	}
	c.queue = nil
}

// CloseWith starts a close handshake from our side and returns at once; the
// reader ends when the client has answered, or after closeTimeout. False says
// that the connection was ending already.
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
	_ = c.Conn.SetDeadline(time.Now().Add(closeTimeout)) // a dead socket fails its next call
	c.writeQueued()
}

// writeQueued writes what is queued, as far as the socket takes it. Caller holds mu.
func (c *conn) writeQueued() {
	if c.writing || c.closed || len(c.queue) == 0 {
		return
	}
	if c.raw == nil {
		c.startDrainLoop()
		return
	}
	batch := c.takeBatch()
	buf := batch[0]
	if len(batch) > 1 {
		pooled := buffers.get()
		defer buffers.put(pooled)
		for _, f := range batch {
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
		c.partial = append([]byte(nil), buf[n:]...) // the buffer is only lent
	}
	if c.partial != nil || len(c.queue) > 0 {
		c.startDrainLoop()
		return
	}
	c.notifyFlushed()
}

// takeBatch takes about batchBytes of whole entries off the queue, which stay
// on the books until they are written. Caller holds mu; the queue has some, or
// something is begun, which is a batch of its own.
func (c *conn) takeBatch() [][]byte {
	if c.partial != nil {
		batch := [][]byte{c.partial}
		c.partial = nil
		return batch
	}
	n, size := 1, len(c.queue[0])
	for n < len(c.queue) && size+len(c.queue[n]) <= batchBytes {
		size += len(c.queue[n])
		n++
	}
	batch := c.queue[:n:n]
	if c.queue = c.queue[n:]; len(c.queue) == 0 {
		c.queue = nil
	}
	return batch
}

// tryWrite makes one attempt that never blocks. Caller holds mu.
func (c *conn) tryWrite(p []byte) (int, error) {
	c.attemptBuf, c.attemptN, c.attemptErr = p, 0, nil
	// RawConn, never a saved descriptor: it keeps the number from being closed
	// and given to another user's connection meanwhile.
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

func (c *conn) startDrainLoop() {
	c.writing = true
	go c.drainLoop()
}

// drainLoop writes the queue out, blocking, outside the lock. While it runs
// nobody else touches the socket's write side.
func (c *conn) drainLoop() {
	for {
		c.mu.Lock()
		if c.partial == nil && len(c.queue) == 0 {
			c.writing = false
			if !c.ending {
				// An expired deadline would fail the next attempt.
				_ = c.Conn.SetWriteDeadline(time.Time{})
			}
			c.notifyFlushed()
			c.mu.Unlock()
			return
		}
		batch := net.Buffers(c.takeBatch())
		if !c.ending {
			_ = c.Conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		}
		c.mu.Unlock()
		size := 0
		for _, f := range batch {
			size += len(f)
		}
		_, err := batch.WriteTo(c.Conn)
		c.mu.Lock()
		c.addQueued(-size)
		if err != nil {
			if c.closeCode == 0 && errors.Is(err, os.ErrDeadlineExceeded) {
				// Too slow even for a close frame; counted as what it is.
				c.closeCode, c.closedByServer = protocol.CloseSlow, true
			}
			c.fail()
		}
		c.mu.Unlock()
	}
}

// fail gives the connection up: the reader sees it and ends. Caller holds mu.
func (c *conn) fail() {
	c.ending = true
	c.dropQueue()
	c.addQueued(-len(c.partial))
	c.partial = nil
	_ = c.Conn.SetDeadline(time.Now())
}

// notifyFlushed tells who waits in Flushed. Caller holds mu.
func (c *conn) notifyFlushed() {
	if c.flushed != nil {
		close(c.flushed)
		c.flushed = nil
	}
}

// Close implements net.Conn, for the library: what is queued leaves first, and
// a client that we refused gets the chance to read why. Bounded by
// closeTimeout and lingerTimeout.
func (c *conn) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return net.ErrClosed
	}
	c.closed, c.ending = true, true
	linger := c.linger
	var flushed chan struct{}
	if c.writing {
		_ = c.Conn.SetDeadline(time.Now().Add(closeTimeout))
		if c.flushed == nil {
			c.flushed = make(chan struct{})
		}
		flushed = c.flushed
	} else {
		c.dropQueue()
		c.notifyFlushed()
	}
	c.mu.Unlock()
	if flushed != nil {
		<-flushed // bounded by the deadline
	}
	if tcp, ok := c.Conn.(*net.TCPConn); ok && linger {
		_ = tcp.CloseWrite()
		_ = tcp.SetReadDeadline(time.Now().Add(lingerTimeout))
		_, _ = io.CopyN(io.Discard, tcp, lingerBytes)
	}
	return c.Conn.Close()
}

// closeStatus returns the code of the first close frame that went out, 0 for none,
// and whether it was the service that decided on it.
func (c *conn) closeStatus() (code protocol.CloseCode, ours bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closeCode, c.closedByServer
}

// abort closes the connection without another word.
func (c *conn) abort() { _ = c.Conn.SetDeadline(time.Now()) }
