package client

import (
	"context"
	"fmt"
	"time"
)

// Refreshing takes place at this part of the time that a token has left, and a
// little earlier at random, so that those who came together do not ask together.
const (
	refreshAt     = 0.8
	refreshSpread = 0.1
	refreshMin    = time.Second // it is too late for a token with less
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
	l := c.link
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, tokenTimeout)
	defer cancel()
	token, err := c.opts.Token(ctx)
	if err != nil {
		return fmt.Errorf("get a token: %w", err)
	}
	c.mu.Lock()
	if c.err != nil || l == nil || c.link != l {
		defer c.mu.Unlock()
		return c.err
	}
	ref := c.nextRef()
	a := c.ask(ctx, ref, &call{frame: newRequest("auth", ref, "").text("token", token).end(), auth: true})
	if a.err != nil {
		return fmt.Errorf("refresh the token: %w", a.err)
	}
	return nil
}

// handleAuthenticated begins a token's time anew.
func (c *Client) handleAuthenticated(l *link, f *serverFrame) {
	c.mu.Lock()
	l.expires = time.Time{}
	if f.AuthExpires > 0 {
		l.expires = time.Now().Add(millis(f.AuthExpires))
	}
	if l == c.link {
		c.scheduleRefresh(l)
	}
	c.mu.Unlock()
	c.answer(f.Ref, answer{})
}

// scheduleRefresh sees to the next token of the connection that counts. The
// caller holds mu.
func (c *Client) scheduleRefresh(l *link) {
	if l.refresh != nil {
		l.refresh.Stop()
	}
	left := time.Until(l.expires)
	if c.opts.Token == nil || l.expires.IsZero() || left < refreshMin {
		return
	}
	wait := time.Duration(float64(left) * (refreshAt - refreshSpread*c.opts.random()))
	l.refresh = time.AfterFunc(wait, func() {
		c.mu.Lock()
		if c.link == l && !c.closing {
			c.running.Go(func() { c.refreshToken(l) })
		}
		c.mu.Unlock()
	})
}

// refreshToken tries once, and sees to another try while the old token lasts:
// after it the service closes with 4001, and the client comes back with a fresh
// one.
func (c *Client) refreshToken(l *link) {
	err := c.RefreshToken(c.ctx)
	if err == nil {
		return
	}
	c.opts.Logger.Warn("the token was not refreshed", "err", err)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.link == l {
		c.scheduleRefresh(l)
	}
}
