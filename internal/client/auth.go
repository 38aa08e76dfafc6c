package client

import (
	"context"
	"fmt"
	"net/http"
	"time"
)

// A token is refreshed after this fraction of its remaining lifetime, less a
// random jitter, so that clients that connected together do not refresh together.
const (
	refreshFraction = 0.8
	refreshJitter   = 0.1
	minRefreshTime  = time.Second // a token with less left is not refreshed
)

// The tokens are those of the current connection, one after the other.
type tokens struct {
	*shared
	calls *calls
	timer *time.Timer // starts the next refresh; nil before the first
}

// refresh is Client.RefreshToken. It locks mu itself.
func (t *tokens) refresh(ctx context.Context) error {
	if t.opts.Token == nil {
		return ErrNoToken
	}
	c := &call{ref: t.nextRef(), auth: true}
	t.locked(func() { c.conn, c.connectCount = t.current, t.connectCount })
	ctx, cancel := context.WithTimeout(ctx, tokenTimeout)
	defer cancel()
	token, err := t.token(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("get a token: %w", err)
	case token == "":
		return fmt.Errorf("%w: Options.Token has returned none", ErrNoToken)
	}
	c.frame = newRequest("auth", c.ref, "").text("token", token).end()
	_, err = t.calls.do(ctx, "refresh the token", c)
	return err
}

// handleAuthenticated records when the new token expires.
func (t *tokens) handleAuthenticated(conn *connection, f *serverFrame) {
	conn.tokenExpires = time.Time{}
	if f.AuthExpires > 0 {
		conn.tokenExpires = time.Now().Add(millis(f.AuthExpires))
	}
	if conn == t.current {
		t.schedule()
	}
	t.calls.complete(f.Ref, f, nil)
}

// schedule sets the timer for the next token of the current connection, if there is
// one.
func (t *tokens) schedule() {
	if t.timer != nil {
		t.timer.Stop()
	}
	conn := t.current
	if conn == nil || t.opts.Token == nil || conn.tokenExpires.IsZero() {
		return
	}
	left := time.Until(conn.tokenExpires)
	if left < minRefreshTime {
		return
	}
	wait := time.Duration(float64(left) * (refreshFraction - refreshJitter*t.opts.random()))
	t.timer = t.afterFunc(wait, func() {
		if t.current == conn && !t.closing {
			t.running.Go(func() { t.refreshOrReschedule(conn) })
		}
	})
}

// refreshOrReschedule refreshes the token once, and on failure schedules another
// attempt while the old token is valid. Once it has expired, the service closes
// with 4001, and the client reconnects with a fresh one. It locks mu itself.
func (t *tokens) refreshOrReschedule(conn *connection) {
	err := t.refresh(t.ctx)
	if err == nil {
		return
	}
	t.opts.Logger.Warn("the token was not refreshed", "err", err)
	t.locked(func() {
		if t.current == conn {
			t.schedule()
		}
	})
}

// header returns the header of a handshake, with a fresh token if Options.Token
// returns one.
func (l *link) header(ctx context.Context, session string) (http.Header, error) {
	header := l.opts.Header.Clone()
	if header == nil {
		header = http.Header{}
	}
	if session != "" {
		header.Set(sessionHeader, session)
	}
	if l.opts.Token == nil {
		return header, nil
	}
	token, err := l.token(ctx)
	if err == nil && token != "" {
		header.Set("Authorization", "Bearer "+token)
	}
	return header, err
}
