package client

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"switchyard/internal/message"
)

// run is the client's first goroutine.
func (c *Client) run() {
	c.tell(StateEvent{State: Connecting})
	l, end := c.connect(c.ctx)
	if l != nil {
		c.begin(l)
	}
	c.carryOnLoop(l, end)
}

// carryOnLoop reads the connection that counts, and then holds one after the
// other until the client ends. At each moment one goroutine is here with it, or
// on its way to one; a move may hand that over to another.
func (c *Client) carryOnLoop(l *link, end ending) {
	for {
		if l != nil {
			end = c.readLoop(l)
			if end.code == codeTooBig {
				c.dropLargest(l, end.err)
			}
			if c.handOver(l, &end) {
				return
			}
		}
		if !c.pause(end) {
			return
		}
		c.tell(StateEvent{State: Connecting})
		if l, end = c.connect(c.ctx); l != nil {
			c.begin(l)
		}
	}
}

// pause waits as long as the end of the last connection asks for. False says
// that the client has ended.
func (c *Client) pause(end ending) bool {
	if c.isClosing() {
		c.finish(ErrClosed, end)
		return false
	}
	v := judge(end.code)
	if end.code == codeReplaced && end.ours {
		v = comeBack
	}
	if v == stayAway || (v == freshToken && c.opts.Token == nil) {
		c.finish(&ClosedError{Code: end.code, Err: end.err}, end)
		return false
	}
	if v != comeBack { // else this address is fine
		c.mu.Lock()
		c.attempt++
		c.mu.Unlock()
	}
	wait := c.pace.next(v, end.code, end.lived, time.Now())
	c.opts.Logger.Debug("connection ended", "code", end.code, "err", end.err, "retry_in", wait)
	c.tell(StateEvent{State: Waiting, Err: end.err, Code: end.code, RetryIn: wait})
	select {
	case <-time.After(wait):
		return true
	case <-c.ctx.Done():
		c.finish(ErrClosed, end)
		return false
	}
}

// tell tells of a change of state.
func (c *Client) tell(e StateEvent) {
	c.turn.Lock()
	defer c.turn.Unlock()
	c.opts.OnState(e)
}

// begin puts a first connection, or one after a time without any, to use: rooms
// are rejoined from their positions, then what was not answered is sent again,
// in order.
func (c *Client) begin(l *link) {
	c.turn.Lock()
	defer c.turn.Unlock()
	c.mu.Lock()
	o := c.attach(l)
	close(c.live)
	c.mu.Unlock()
	o.tell()
	c.opts.OnState(StateEvent{State: Live, Welcome: l.welcome})
}

// attach makes l the connection that counts. The caller holds mu.
func (c *Client) attach(l *link) (o outcomes) {
	c.link, c.welcome = l, l.welcome
	if l.welcome.Session != "" {
		c.session = l.welcome.Session
	}
	for _, r := range c.rooms {
		if l.seats[r.name] == nil {
			c.sendJoin(l, r)
		}
	}
	for _, r := range c.rooms {
		if r.watched {
			l.sock.send(newRequest("presence", c.nextRef(), r.name).end())
		}
	}
	o = c.resend()
	for _, ref := range slices.Sorted(maps.Keys(c.calls)) {
		c.repeat(l, ref)
	}
	c.scheduleRefresh(l)
	if l.asked != nil {
		c.plan(l.asked)
	}
	return o
}

// handOver takes leave of a connection that has ended. True says that the
// client goes on elsewhere already: there is nothing left to do here.
func (c *Client) handOver(l *link, end *ending) bool {
	c.turn.Lock()
	defer c.turn.Unlock()
	c.mu.Lock()
	if l.refresh != nil {
		l.refresh.Stop()
	}
	end.ours = l.number < c.opened
	switch {
	case c.link != l:
		if c.next == l {
			c.next = nil
			c.echoes.fade()
			close(l.gone)
		}
		c.mu.Unlock()
		return true
	case c.closing:
	case c.next != nil:
		event, o := c.promote()
		c.mu.Unlock()
		o.tell()
		c.opts.OnMoved(event)
		return true
	}
	c.link = nil
	c.live = make(chan struct{})
	followed := !c.closing && c.move != nil && c.move.trying
	if c.move != nil && !followed {
		c.callOff()
	}
	c.mu.Unlock()
	if followed { // its goroutine is on the way to a connection, and carries on
		c.opts.OnState(StateEvent{State: Connecting})
	}
	return followed
}

// finish answers everything that waits and says goodbye to the application.
func (c *Client) finish(why error, end ending) {
	defer close(c.done)
	if errors.Is(why, ErrClosed) {
		<-c.parted // a second connection may be taking leave still
	}
	c.turn.Lock()
	defer c.turn.Unlock()
	c.mu.Lock()
	c.err = why
	c.cancel()
	o := c.failAll(why)
	for ref, call := range c.calls {
		delete(c.calls, ref)
		call.answer <- answer{err: why}
	}
	for name, r := range c.rooms {
		delete(c.rooms, name)
		r.tell(Joined{}, why)
	}
	c.mu.Unlock()
	o.tell()
	c.opts.OnState(StateEvent{State: Closed, Err: why, Code: end.code})
}

// handle takes one frame of a connection. An error ends that.
func (c *Client) handle(l *link, b []byte) error {
	f, err := decodeFrame(b)
	if err != nil {
		return err
	}
	c.turn.Lock()
	defer c.turn.Unlock()
	c.witness(l, f)
	switch f.Type {
	case "message":
		return c.handleMessage(l, f)
	case "ack":
		c.handleAck(f)
	case "joined":
		c.handleJoined(l, f)
	case "gap":
		return c.handleGap(l, f)
	case "signal":
		c.handleSignal(l, f)
	case "presence":
		c.handlePresence(l, f)
	case "history":
		h, err := f.history()
		c.answer(f.Ref, answer{history: h, err: err})
	case "move":
		c.handleMove(l, f)
	case "authenticated":
		c.handleAuthenticated(l, f)
	case "error":
		c.handleError(l, f)
	}
	return nil // heartbeat, left, and what later versions add
}

// handleError finds by the ref whose error it is.
func (c *Client) handleError(l *link, f *serverFrame) {
	if c.refuseCall(f.Ref, f.err()) || c.refuseJoin(l, f.Ref, f.err()) || c.refusePublish(f.Ref, f.err()) {
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
