package http

import (
	"context"
	"fmt"
	"net"
	"sync"
)

// Flushed implements hub.Outlet. A client that stops reading is closed by the
// write deadline, so the wait is bounded.
func (c *conn) Flushed(ctx context.Context) error {
	c.mu.Lock()
	if c.ending {
		c.mu.Unlock()
		return net.ErrClosed
	}
	c.push()
	if !c.writing {
		c.mu.Unlock()
		return nil
	}
	if c.empty == nil {
		c.empty = make(chan struct{})
	}
	empty := c.empty
	c.mu.Unlock()
	select {
	case <-empty:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for a client to read: %w", ctx.Err())
	}
}

// A pool lends byte buffers, so that an idle connection owns none.
type pool struct{ p sync.Pool }

var buffers pool

func (p *pool) get() *[]byte {
	if b, ok := p.p.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, 0, 4096)
	return &b
}

// put takes a buffer back, unless it has grown large.
func (p *pool) put(b *[]byte) {
	if cap(*b) <= batchBytes {
		*b = (*b)[:0]
		p.p.Put(b)
	}
}
