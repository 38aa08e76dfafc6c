package client

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"switchyard/internal/message"
)

// run is the client's first goroutine: it makes the first connection.
func (c *Client) run() {
	c.emitState(StateEvent{State: Connecting})
	conn, end := c.connect(c.ctx)
	if conn != nil {
		c.startConnection(conn)
	}
	c.connectionLoop(conn, end)
}

// connectionLoop reads conn until it ends, and then makes and reads one connection
// after the other until the client ends. conn is nil when the last attempt
// failed, and end says how.
//
// One goroutine at a time is responsible for the current connection: it reads
// it here, or is establishing the next one. A move starts a second loop for the
// next connection, which takes over when that becomes the current one; the loop
// of the old connection then returns.
func (c *Client) connectionLoop(conn *connection, end closeResult) {
	for {
		if conn != nil {
			end = c.readLoop(conn)
			if end.code == codeTooBig {
				c.failLargest(conn, end.err)
			}
			if c.connectionEnded(conn, &end) {
				return
			}
		}
		if !c.awaitReconnect(end) {
			return
		}
		c.emitState(StateEvent{State: Connecting})
		if conn, end = c.connect(c.ctx); conn != nil {
			c.startConnection(conn)
		}
	}
}

// awaitReconnect waits until the next attempt is due, as the end of the last
// connection requires. It returns false when the client has ended.
func (c *Client) awaitReconnect(end closeResult) bool {
	if c.isClosing() {
		c.finish(ErrClosed, end)
		return false
	}
	action := actionForCode(end.code)
	if end.code == codeReplaced && end.superseded {
		action = actionReconnectSoon
	}
	if action == actionStop || (action == actionNewToken && c.opts.Token == nil) {
		c.finish(&ClosedError{Code: end.code, Err: end.err}, end)
		return false
	}
	if action != actionReconnectSoon { // otherwise nothing is wrong with this URL
		c.mu.Lock()
		c.urlIndex++
		c.mu.Unlock()
	}
	wait := c.backoff.next(action, end.code, end.lifetime, time.Now())
	c.opts.Logger.Debug("connection ended", "code", end.code, "err", end.err, "retry_in", wait)
	c.emitState(StateEvent{State: Waiting, Err: end.err, Code: end.code, RetryIn: wait})
	select {
	case <-time.After(wait):
		return true
	case <-c.ctx.Done():
		c.finish(ErrClosed, end)
		return false
	}
}

// emitState calls OnState.
func (c *Client) emitState(e StateEvent) {
	c.handlerMu.Lock()
	defer c.handlerMu.Unlock()
	c.opts.OnState(e)
}

// startConnection makes conn the current connection when there is none, and the
// client connected.
func (c *Client) startConnection(conn *connection) {
	c.handlerMu.Lock()
	defer c.handlerMu.Unlock()
	c.mu.Lock()
	toRun := c.makeCurrent(conn)
	close(c.live)
	c.mu.Unlock()
	toRun.run()
	c.opts.OnState(StateEvent{State: Live, Welcome: conn.welcome})
}

// makeCurrent makes conn the current connection: it rejoins the rooms from their
// positions, and then resends, in order, what has no answer yet. The caller holds
// handlerMu and mu, and runs the returned callbacks once mu is released.
func (c *Client) makeCurrent(conn *connection) (toRun callbacks) {
	c.current, c.welcome = conn, conn.welcome
	if conn.welcome.Session != "" {
		c.session = conn.welcome.Session
	}
	for _, r := range c.rooms {
		if conn.memberships[r.name] == nil {
			c.sendJoin(conn, r)
		}
	}
	for _, r := range c.rooms {
		if r.watched {
			conn.sock.send(newRequest("presence", c.nextRef(), r.name).end())
		}
	}
	toRun = c.resendPending()
	for _, ref := range slices.Sorted(maps.Keys(c.calls)) {
		c.resendCall(conn, ref)
	}
	c.scheduleRefresh(conn)
	if conn.pendingMove != nil {
		c.startMove(conn.pendingMove)
	}
	return toRun
}

// connectionEnded cleans up after conn, which has ended. It returns true when
// another goroutine is responsible for the client's connection, so that the
// caller has nothing left to do.
func (c *Client) connectionEnded(conn *connection, end *closeResult) bool {
	c.handlerMu.Lock()
	defer c.handlerMu.Unlock()
	c.mu.Lock()
	if conn.refreshTimer != nil {
		conn.refreshTimer.Stop()
	}
	end.superseded = conn.number < c.connectCount
	switch {
	case c.current != conn:
		if c.next == conn {
			c.next = nil
			c.signalDedup.expireSoon()
			close(conn.ended)
		}
		c.mu.Unlock()
		return true
	case c.closing:
	case c.next != nil:
		event, toRun := c.promoteNext()
		c.mu.Unlock()
		toRun.run()
		c.opts.OnMoved(event)
		return true
	}
	c.current = nil
	c.live = make(chan struct{})
	moveContinues := !c.closing && c.move != nil && c.move.inProgress
	if c.move != nil && !moveContinues {
		c.cancelMove()
	}
	c.mu.Unlock()
	if moveContinues { // moveLoop is making a connection, and that becomes the current one
		c.opts.OnState(StateEvent{State: Connecting})
	}
	return moveContinues
}

// finish ends the client: every pending request fails with cause, and the state
// becomes Closed.
func (c *Client) finish(cause error, end closeResult) {
	defer close(c.done)
	if errors.Is(cause, ErrClosed) {
		<-c.connectionsClosed // Close may still be closing the next connection
	}
	c.handlerMu.Lock()
	defer c.handlerMu.Unlock()
	c.mu.Lock()
	c.err = cause
	c.cancel()
	toRun := c.failPending(cause)
	for ref, call := range c.calls {
		delete(c.calls, ref)
		call.result <- callResult{err: cause}
	}
	for name, r := range c.rooms {
		delete(c.rooms, name)
		r.completeJoin(Joined{}, cause)
	}
	c.mu.Unlock()
	toRun.run()
	c.opts.OnState(StateEvent{State: Closed, Err: cause, Code: end.code})
}

// handleFrame handles one frame of a connection. An error ends the connection.
func (c *Client) handleFrame(conn *connection, b []byte) error {
	f, err := decodeFrame(b)
	if err != nil {
		return err
	}
	c.handlerMu.Lock()
	defer c.handlerMu.Unlock()
	c.observeFrame(conn, f)
	switch f.Type {
	case "message":
		return c.handleMessage(conn, f)
	case "ack":
		c.handleAck(f)
	case "joined":
		c.handleJoined(conn, f)
	case "gap":
		return c.handleGap(conn, f)
	case "signal":
		c.handleSignal(conn, f)
	case "presence":
		c.handlePresence(conn, f)
	case "history":
		h, err := f.history()
		c.completeCall(f.Ref, callResult{history: h, err: err})
	case "move":
		c.handleMove(conn, f)
	case "authenticated":
		c.handleAuthenticated(conn, f)
	case "error":
		c.handleError(conn, f)
	}
	return nil // heartbeat, left, and types that later versions add
}

// handleError passes an error to the request with its ref. An error of no request
// is only logged.
func (c *Client) handleError(conn *connection, f *serverFrame) {
	if c.handleCallError(f.Ref, f.err()) || c.handleJoinError(conn, f.Ref, f.err()) || c.handlePublishError(f.Ref, f.err()) {
		return
	}
	c.opts.Logger.Warn("the service reported an error", "code", f.Code, "message", f.Message, "room", f.Room)
}

// checkSize returns ErrTooLarge for a frame over the service's max_frame, which is
// unknown before the first welcome. The caller holds mu.
func (c *Client) checkSize(frame []byte, room message.Room) error {
	if c.welcome.MaxFrame > 0 && len(frame) > c.welcome.MaxFrame {
		return fmt.Errorf("%w: a frame of %d bytes for %s, the limit is %d", ErrTooLarge, len(frame), room, c.welcome.MaxFrame)
	}
	return nil
}
