package http

import (
	"io"
	"net"
	"time"

	"switchyard/internal/protocol"
)

// Close implements net.Conn, for the library. It waits until the queue is written,
// and gives a client that we closed the time to read the close frame. Both waits
// are bounded, by closeTimeout and lingerTimeout.
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

// closeStatus returns the code of the first close frame that was queued, 0 for
// none, and whether the service decided to close.
func (c *conn) closeStatus() (code protocol.CloseCode, ours bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closeCode, c.closedByServer
}

// abort ends the connection without a close frame.
func (c *conn) abort() { _ = c.Conn.SetDeadline(time.Now()) }
