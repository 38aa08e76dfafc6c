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
	errSilence = errors.New("nothing heard for two heartbeats")
	errHole    = errors.New("the service skipped a message")
)

// An ending is how a connection ended.
type ending struct {
	code  int
	err   error
	lived time.Duration
	// ours says that a later connection of this client was tried before: a
	// close with 4009 then comes of that one.
	ours bool
}

// A link is one connection from its welcome to its end. Two are open during a
// move, so what a room has on a connection is kept here: its seat.
type link struct {
	// Static.
	sock    *socket
	number  uint64 // in the order of opening
	welcome Welcome
	opened  time.Time     // when the handshake began, the token in hand
	since   time.Time     // when the welcome came
	gone    chan struct{} // closed when it ended as the second one of a move

	// Guarded by Client.mu.
	seats   map[message.Room]*seat
	asked   *moveOrder  // came while it was the second one
	expires time.Time   // when the token ends; zero: never
	refresh *time.Timer // asks for the next token
}

// A seat is a room on one connection.
type seat struct {
	// ref is that of the last join; live says that it was answered. What comes
	// before belongs to an earlier join.
	ref  string
	live bool
	// epoch is the one that this connection has told of last. Where the room
	// counts in another by now, what still comes in this one is of the past.
	epoch message.Epoch
	hole  Position // where a message was missing, and was asked for again
}

// connect makes a connection up to its welcome. Nil means that there is none,
// and how it ended.
func (c *Client) connect(ctx context.Context) (*link, ending) {
	c.mu.Lock()
	c.opened++
	l := &link{number: c.opened, gone: make(chan struct{}), seats: make(map[message.Room]*seat)}
	url := c.opts.URLs[c.attempt%len(c.opts.URLs)]
	session := c.session
	c.mu.Unlock()

	header, err := c.header(ctx, session)
	if err != nil {
		return nil, ending{code: codeAbnormal, err: fmt.Errorf("get a token: %w", err)}
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	l.opened = time.Now()
	s, code, err := dialSocket(ctx, c.opts.HTTPClient, url, header)
	if err != nil {
		return nil, ending{code: code, err: err}
	}
	b, err := s.read(ctx)
	if err == nil {
		l.welcome, err = decodeWelcome(b)
	}
	if err == nil && (l.welcome.HeartbeatMS <= 0 || l.welcome.MaxFrame <= 0) {
		err = errors.New("the welcome has no bounds")
	}
	if err != nil {
		s.drop()
		return nil, ending{code: closeCode(err), err: fmt.Errorf("wait for the welcome: %w", err)}
	}
	l.sock, l.since = s, time.Now()
	if left := l.welcome.AuthExpiresMS; left > 0 {
		l.expires = l.since.Add(millis(left))
	}
	return l, ending{}
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
func (c *Client) readLoop(l *link) ending {
	s := l.sock
	defer s.drop()
	stop := context.AfterFunc(c.ctx, s.cancel)
	defer stop()
	silence := 2 * millis(l.welcome.HeartbeatMS)
	heard := time.Now()
	watch, cancel := context.WithCancelCause(s.ctx)
	defer cancel(nil)
	timer := time.AfterFunc(silence, func() { cancel(errSilence) })
	defer timer.Stop()
	for {
		b, err := s.read(watch)
		if err == nil {
			// Not at each frame: resetting a timer costs more than a clock.
			if now := time.Now(); now.Sub(heard) > silence/16 {
				heard = now
				timer.Reset(silence)
			}
			err = c.handle(l, b)
		}
		if err != nil {
			if cause := context.Cause(watch); errors.Is(cause, errSilence) {
				err = cause
			}
			return ending{code: closeCode(err), err: err, lived: time.Since(l.since)}
		}
	}
}

// millis is a time that a frame tells, from nothing to a day: more might not
// fit a Duration, and nothing here waits longer.
func millis(ms int64) time.Duration {
	return time.Duration(min(max(ms, 0), (24*time.Hour).Milliseconds())) * time.Millisecond
}
