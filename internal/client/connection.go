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
	errHeartbeatTimeout = errors.New("no frame for two heartbeats")
	errSkippedMessage   = errors.New("the service skipped a message")
)

// A closeResult is how a connection, or an attempt to make one, ended.
type closeResult struct {
	code     int // the close code, or the one that stands for the failure
	err      error
	lifetime time.Duration // since the welcome
	// superseded: this client has tried a later connection, which is then the
	// cause of a close with 4009.
	superseded bool
}

// A connection is one connection from its welcome to its end. Two are open during
// a move, so the state of a room on one of them is kept here: its membership.
type connection struct {
	// Static.
	sock       *socket
	number     uint64 // in the order of opening, from 1
	welcome    Welcome
	openedAt   time.Time     // when the handshake began, after the call of Options.Token
	welcomedAt time.Time     // when the welcome arrived
	ended      chan struct{} // closed when it ended while it was the next one of a move

	// Guarded by Client.mu.
	memberships  map[message.Room]*membership
	pendingMove  *moveRequest // arrived while this was the next connection; started once it is current
	tokenExpires time.Time    // zero: never
	refreshTimer *time.Timer  // starts the next refresh of the token
}

// A membership is a room on one connection.
type membership struct {
	// ref is the ref of the last join, and joined says that it was answered.
	// Messages before the answer belong to an earlier join.
	ref    string
	joined bool
	// epoch is the last one seen on this connection. When the room's position is
	// in another epoch, frames in this one are stale.
	epoch message.Epoch
	// missingAfter is the position after which a message was missing and
	// requested again; zero if none was.
	missingAfter Position
}

// connect makes a connection and reads its welcome. When it fails it returns nil
// and how the attempt ended.
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
		err = errors.New("the welcome has no heartbeat_ms or no max_frame")
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

// header returns the header of a handshake, with a fresh token if Options.Token is
// set.
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
			// The timer is not reset at each frame, because that costs more than
			// reading the clock.
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

// millis converts the milliseconds of a frame to a Duration between zero and a
// day: a larger number could overflow, and the client never waits longer.
func millis(ms int64) time.Duration {
	return time.Duration(min(max(ms, 0), (24*time.Hour).Milliseconds())) * time.Millisecond
}
