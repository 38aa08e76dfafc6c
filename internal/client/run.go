package client

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"switchyard/internal/message"
)

var (
	errSilence = errors.New("nothing heard for two heartbeats")
	errHole    = errors.New("the service skipped a message")
)

// An ending is how a connection ended.
type ending struct {
	code  int
	err   error
	lived time.Duration
}

// runLoop holds one connection after the other until the client ends. It
// alone calls handlers.
func (c *Client) runLoop() {
	defer close(c.done)
	pace := pacer{random: c.opts.random}
	for attempt := 0; ; attempt++ {
		c.opts.OnState(StateEvent{State: Connecting})
		end := c.runConnection(c.opts.URLs[attempt%len(c.opts.URLs)])
		if c.isClosing() {
			c.finish(ErrClosed, end)
			return
		}
		v := judge(end.code)
		if v == stayAway || (v == freshToken && c.opts.Token == nil) {
			c.finish(&ClosedError{Code: end.code, Err: end.err}, end)
			return
		}
		if v == comeBack {
			attempt-- // this address is fine
		}
		wait := pace.next(v, end.code, end.lived, time.Now())
		c.opts.Logger.Debug("connection ended", "code", end.code, "err", end.err, "retry_in", wait)
		c.opts.OnState(StateEvent{State: Waiting, Err: end.err, Code: end.code, RetryIn: wait})
		select {
		case <-time.After(wait):
		case <-c.ctx.Done():
			c.finish(ErrClosed, end)
			return
		}
	}
}

// runConnection makes a connection and reads from it until it ends.
func (c *Client) runConnection(url string) ending {
	s, w, end := c.connect(url)
	if s == nil {
		return end
	}
	defer s.drop()
	stop := context.AfterFunc(c.ctx, s.cancel)
	defer stop()
	start := time.Now()
	silence := 2 * time.Duration(w.HeartbeatMS) * time.Millisecond
	heard := start
	watch, cancel := context.WithCancelCause(s.ctx)
	defer cancel(nil)
	timer := time.AfterFunc(silence, func() { cancel(errSilence) })
	defer timer.Stop()

	c.begin(s, w)
	defer c.detach(s)
	for {
		b, err := s.read(watch)
		if err == nil {
			// Not at each frame: resetting a timer costs more than a clock.
			if now := time.Now(); now.Sub(heard) > silence/16 {
				heard = now
				timer.Reset(silence)
			}
			err = c.handle(b)
		}
		if err != nil {
			if cause := context.Cause(watch); errors.Is(cause, errSilence) {
				err = cause
			}
			end = ending{code: closeCode(err), err: err, lived: time.Since(start)}
			if end.code == codeTooBig {
				c.dropLargest(s, err)
			}
			return end
		}
	}
}

// connect makes a connection up to its welcome. A nil socket means that there
// is none, and how it ended.
func (c *Client) connect(url string) (*socket, Welcome, ending) {
	ctx, cancel := context.WithTimeout(c.ctx, dialTimeout)
	defer cancel()
	header := c.opts.Header.Clone()
	if header == nil {
		header = http.Header{}
	}
	if c.opts.Token != nil {
		token, err := c.opts.Token(ctx)
		if err != nil {
			return nil, Welcome{}, ending{code: codeAbnormal, err: fmt.Errorf("get a token: %w", err)}
		}
		header.Set("Authorization", "Bearer "+token)
	}
	s, code, err := dialSocket(ctx, c.opts.HTTPClient, url, header)
	if err != nil {
		return nil, Welcome{}, ending{code: code, err: err}
	}
	var w Welcome
	b, err := s.read(ctx)
	if err == nil {
		w, err = decodeWelcome(b)
	}
	if err == nil && (w.HeartbeatMS <= 0 || w.MaxFrame <= 0) {
		err = errors.New("the welcome has no bounds")
	}
	if err != nil {
		s.drop()
		return nil, Welcome{}, ending{code: closeCode(err), err: fmt.Errorf("wait for the welcome: %w", err)}
	}
	return s, w, ending{}
}

// begin puts the connection to use: rooms are rejoined from their positions,
// then what was not answered is sent again, in order.
func (c *Client) begin(s *socket, w Welcome) {
	c.mu.Lock()
	c.sock, c.welcome = s, w
	close(c.live)
	for _, r := range c.rooms {
		c.sendJoin(r)
	}
	outcomes := c.resend()
	for _, ref := range slices.Sorted(maps.Keys(c.calls)) {
		s.send(c.calls[ref].frame)
	}
	c.mu.Unlock()
	outcomes.tell()
	c.opts.OnState(StateEvent{State: Live, Welcome: w})
}

func (c *Client) detach(s *socket) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sock != s {
		return
	}
	c.sock = nil
	c.live = make(chan struct{})
	for _, r := range c.rooms {
		r.live, r.ref = false, ""
	}
}

// finish answers everything that waits and says goodbye to the application.
func (c *Client) finish(why error, end ending) {
	c.mu.Lock()
	c.err = why
	c.cancel()
	outcomes := c.failAll(why)
	for ref, call := range c.calls {
		delete(c.calls, ref)
		call.answer <- answer{err: why}
	}
	for name, r := range c.rooms {
		delete(c.rooms, name)
		r.tell(Joined{}, why)
	}
	c.mu.Unlock()
	outcomes.tell()
	c.opts.OnState(StateEvent{State: Closed, Err: why, Code: end.code})
}

// handle takes one frame. An error ends the connection.
func (c *Client) handle(b []byte) error {
	f, err := decodeFrame(b)
	if err != nil {
		return err
	}
	switch f.Type {
	case "message":
		return c.handleMessage(f)
	case "ack":
		c.handleAck(f)
	case "joined":
		c.handleJoined(f)
	case "gap":
		return c.handleGap(f)
	case "signal":
		c.handleSignal(f)
	case "history":
		h, err := f.history()
		c.answer(f.Ref, answer{history: h, err: err})
	case "error":
		c.handleError(f)
	}
	return nil // heartbeat, left, and what later versions add
}

// handleError finds by the ref whose error it is.
func (c *Client) handleError(f *serverFrame) {
	if c.refuseCall(f.Ref, f.err()) || c.refuseJoin(f.Ref, f.err()) || c.refusePublish(f.Ref, f.err()) {
		return
	}
	c.opts.Logger.Warn("the service reports an error", "code", f.Code, "message", f.Message, "room", f.Room)
}

// checkSize says whether the service takes a frame; before the first welcome
// nobody knows. The caller holds mu.
func (c *Client) checkSize(frame []byte, room message.Room) error {
	if c.welcome.MaxFrame > 0 && len(frame) > c.welcome.MaxFrame {
		return fmt.Errorf("%w: a frame of %d bytes for %s, the bound is %d", ErrTooLarge, len(frame), room, c.welcome.MaxFrame)
	}
	return nil
}
