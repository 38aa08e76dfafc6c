package http

import (
	"context"
	"fmt"
	"net"
	"sync"
)

// Flushed implements hub.Outlet. A client that stops reading is closed by the write
// deadline, so the wait is bounded.
func (c *conn) Flushed(ctx context.Context) error {
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

// A bufferPool lends byte buffers, so that an idle connection owns none. It is safe
// for concurrent use.
type bufferPool struct{ p sync.Pool }

var buffers bufferPool

func (p *bufferPool) get() *[]byte {
	if b, ok := p.p.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, 0, 4096)
	return &b
}

// put returns a buffer to the pool, unless it has grown large.
func (p *bufferPool) put(b *[]byte) {
	if cap(*b) <= batchBytes {
		*b = (*b)[:0]
		p.p.Put(b)
	}
}
