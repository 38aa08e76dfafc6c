package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"switchyard/internal/message"
)

// tokenTimeout is how long Options.Token may take.
const tokenTimeout = 30 * time.Second

var (
	errHeartbeatTimeout = errors.New("nothing heard for two heartbeats")
	errSkippedMessage   = errors.New("the service skipped a message")
)

// An closeResult is how a connection ended.
type closeResult struct {
	code     int
	err      error
	lifetime time.Duration
	// ours says that a later connection of this client was tried before: a
	// close with 4009 then comes of that one.
	superseded bool
}

// A connection is one connection from its welcome to its end. Two are open during a
// move, so what a room has on a connection is kept here: its seat.
type connection struct {
	// Static.
	sock       *socket
	number     uint64 // in the order of opening
	welcome    Welcome
	openedAt   time.Time     // when the handshake began, the token in hand
	welcomedAt time.Time     // when the welcome came
	ended      chan struct{} // closed when it ended as the second one of a move

	// Guarded by Client.mu.
	memberships  map[message.Room]*membership
	pendingMove  *moveRequest // came while it was the second one
	tokenExpires time.Time    // when the token ends; zero: never
	refreshTimer *time.Timer  // asks for the next token
}

// A membership is a room on one connection.
type membership struct {
	// ref is that of the last join; live says that it was answered. What comes
	// before belongs to an earlier join.
	ref    string
	joined bool
	// epoch is the one that this connection has told of last. Where the room
	// counts in another by now, what still comes in this one is of the past.
	epoch        message.Epoch
	missingAfter Position // where a message was missing, and was asked for again
}

// connect makes a connection up to its welcome. Nil means that there is none,
// and how it ended.
func (c *Client) connect(ctx context.Context) (*connection, closeResult) {
	c.mu.Lock()
	c.connectCount++
	conn := &connection{number: c.connectCount, ended: make(chan struct{}), memberships: make(map[message.Room]*membership)}
	url := c.opts.URLs[c.urlIndex%len(c.opts.URLs)]
	session := c.session
	c.mu.Unlock()

	header, err := c.header(ctx, session)
	if err != nil {
		return nil, closeResult{code: codeAbnormal, err: fmt.Errorf("get a token: %w", err)}
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn.openedAt = time.Now()
	s, code, err := dialSocket(ctx, c.opts.HTTPClient, url, header)
	if err != nil {
		return nil, closeResult{code: code, err: err}
	}
	b, err := s.read(ctx)
	if err == nil {
		conn.welcome, err = decodeWelcome(b)
	}
	if err == nil && (conn.welcome.HeartbeatMS <= 0 || conn.welcome.MaxFrame <= 0) {
		err = errors.New("the welcome has no bounds")
	}
	if err != nil {
		s.abort()
		return nil, closeResult{code: closeCode(err), err: fmt.Errorf("wait for the welcome: %w", err)}
	}
	conn.sock, conn.welcomedAt = s, time.Now()
	if left := conn.welcome.AuthExpiresMS; left > 0 {
		conn.tokenExpires = conn.welcomedAt.Add(millis(left))
	}
	return conn, closeResult{}
}

// header is what a handshake brings, a fresh token included.
func (c *Client) header(ctx context.Context, session string) (http.Header, error) {
	header := c.opts.Header.Clone()
	if header == nil {
		header = http.Header{}
	}
	if session != "" {
		header.Set(sessionHeader, session)
	}
	if c.opts.Token == nil {
		return header, nil
	}
	ctx, cancel := context.WithTimeout(ctx, tokenTimeout)
	defer cancel()
	token, err := c.opts.Token(ctx)
	if err != nil {
		return nil, err
	}
	header.Set("Authorization", "Bearer "+token)
	return header, nil
}

// readLoop reads from a connection until it ends.
func (c *Client) readLoop(conn *connection) closeResult {
	s := conn.sock
	defer s.abort()
	stop := context.AfterFunc(c.ctx, s.cancel)
	defer stop()
	readTimeout := 2 * millis(conn.welcome.HeartbeatMS)
	lastFrame := time.Now()
	readCtx, cancel := context.WithCancelCause(s.ctx)
	defer cancel(nil)
	timer := time.AfterFunc(readTimeout, func() { cancel(errHeartbeatTimeout) })
	defer timer.Stop()
	for {
		b, err := s.read(readCtx)
		if err == nil {
			// Not at each frame: resetting a timer costs more than a clock.
			if now := time.Now(); now.Sub(lastFrame) > readTimeout/16 {
				lastFrame = now
				timer.Reset(readTimeout)
			}
			err = c.handleFrame(conn, b)
		}
		if err != nil {
			if cause := context.Cause(readCtx); errors.Is(cause, errHeartbeatTimeout) {
				err = cause
			}
			return closeResult{code: closeCode(err), err: err, lifetime: time.Since(conn.welcomedAt)}
		}
	}
}

// millis is a time that a frame tells, from nothing to a day: more might not
// fit a Duration, and nothing here waits longer.
func millis(ms int64) time.Duration {
	return time.Duration(min(max(ms, 0), (24*time.Hour).Milliseconds())) * time.Millisecond
}
