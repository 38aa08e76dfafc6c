package client

import (
	"context"
	"fmt"
	"time"
)

// Refreshing takes place at this part of the time that a token has left, and a
// little earlier at random, so that those who came together do not ask together.
const (
	refreshFraction = 0.8
	refreshJitter   = 0.1
	minRefreshTime  = time.Second // it is too late for a token with less
)

// RefreshToken brings the service a fresh token on the living connection, as
// the client does by itself before the token ends: useful when the user's
// rights have changed. Without a connection there is nothing to do, since each
// new one asks for a token. It ends within half a minute. An *Error says that
// the service refused the token.
func (c *Client) RefreshToken(ctx context.Context) error {
	if c.opts.Token == nil {
		return ErrNoToken
	}
	c.mu.Lock()
	conn := c.current
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, tokenTimeout)
	defer cancel()
	token, err := c.opts.Token(ctx)
	if err != nil {
		return fmt.Errorf("get a token: %w", err)
	}
	c.mu.Lock()
	if c.err != nil || conn == nil || c.current != conn {
		defer c.mu.Unlock()
		return c.err
	}
	ref := c.nextRef()
	a := c.doCall(ctx, ref, &call{frame: newRequest("auth", ref, "").text("token", token).end(), auth: true})
	if a.err != nil {
		return fmt.Errorf("refresh the token: %w", a.err)
	}
	return nil
}

// handleAuthenticated begins a token's time anew.
func (c *Client) handleAuthenticated(conn *connection, f *serverFrame) {
	c.mu.Lock()
	conn.tokenExpires = time.Time{}
	if f.AuthExpires > 0 {
		conn.tokenExpires = time.Now().Add(millis(f.AuthExpires))
	}
	if conn == c.current {
		c.scheduleRefresh(conn)
	}
	c.mu.Unlock()
	c.completeCall(f.Ref, callResult{})
}

// scheduleRefresh sees to the next token of the connection that counts. The
// caller holds mu.
func (c *Client) scheduleRefresh(conn *connection) {
	if conn.refreshTimer != nil {
		conn.refreshTimer.Stop()
	}
	left := time.Until(conn.tokenExpires)
	if c.opts.Token == nil || conn.tokenExpires.IsZero() || left < minRefreshTime {
		return
	}
	wait := time.Duration(float64(left) * (refreshFraction - refreshJitter*c.opts.random()))
	conn.refreshTimer = time.AfterFunc(wait, func() {
		c.mu.Lock()
		if c.current == conn && !c.closing {
			c.running.Go(func() { c.refreshOrReschedule(conn) })
		}
		c.mu.Unlock()
	})
}

// refreshOrReschedule tries once, and sees to another try while the old token lasts:
// after it the service closes with 4001, and the client comes back with a fresh
// one.
func (c *Client) refreshOrReschedule(conn *connection) {
	err := c.RefreshToken(c.ctx)
	if err == nil {
		return
	}
	c.opts.Logger.Warn("the token was not refreshed", "err", err)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == conn {
		c.scheduleRefresh(conn)
	}
}
