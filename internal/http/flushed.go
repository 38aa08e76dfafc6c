package http

import (
	"context"
	"fmt"
	"net"
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
