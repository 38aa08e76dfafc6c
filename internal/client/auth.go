package client

import (
	"context"
	"fmt"
	"time"
)

// A token is refreshed after this fraction of its remaining lifetime, less a
// random jitter, so that clients that connected together do not refresh together.
const (
	refreshFraction = 0.8
	refreshJitter   = 0.1
	minRefreshTime  = time.Second // a token with less left is not refreshed
)

// RefreshToken gets a token from Options.Token and sends it to the service on the
// current connection, as the client does by itself before the token expires. Call
// it when the user's rights have changed. Without a connection it does nothing,
// because the next one gets a token of its own. It returns within half a minute.
// An *Error means that the service refused the token; the old one stays in use.
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
	result := c.doCall(ctx, ref, &call{frame: newRequest("auth", ref, "").text("token", token).end(), auth: true})
	if result.err != nil {
		return fmt.Errorf("refresh the token: %w", result.err)
	}
	return nil
}

// handleAuthenticated records when the new token expires.
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

// scheduleRefresh sets the timer for the next token of conn, the current
// connection. The caller holds mu.
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

// refreshOrReschedule refreshes the token once, and on failure schedules another
// attempt while the old token is valid. Once it has expired, the service closes
// with 4001, and the client reconnects with a fresh one.
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
