package conn

import "time"

// CloseSlow closes a client that takes what is sent to it too slowly. It has timeout to
// take the close frame, and what was written in part before it. CloseSlow returns false if
// the connection was ending already.
func (c *Conn) CloseSlow(timeout time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ending {
		return false
	}
	if c.closeSlow(); !c.failed {
		_ = c.Conn.SetDeadline(time.Now().Add(timeout))
	}
	return true
}

// StuckFor returns how long the client has taken nothing, although something waits for it
// here or in the socket, as far as earlier calls saw: the first one after it begins
// returns 0. So do all where the system does not say what a client has taken.
func (c *Conn) StuckFor() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	taken, known := c.direct.taken()
	switch {
	case !known || c.queue.bytes+c.direct.unacked() == 0:
		c.stuckSince = time.Time{}
		return 0
	case c.stuckSince.IsZero() || taken != c.taken:
		c.stuckSince = time.Now()
	}
	c.taken = taken
	return time.Since(c.stuckSince)
}

// IsStuck reports whether the client has taken nothing for so long that a write would have
// failed: the kernel may still have room.
func (c *Conn) IsStuck() bool { return c.StuckFor() >= writeTimeout }

// Share returns how many bytes of the budget this connection uses, and whether it is
// ending, which frees them soon. A frame that waits for others as well counts in part.
func (c *Conn) Share() (bytes int, ending bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.queue.share(), c.ending
}
