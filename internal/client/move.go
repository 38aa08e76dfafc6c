package client

import (
	"context"
	"errors"
	"time"
)

// joinTimeout is how long a move waits for one more room to be joined on the next
// connection before it discards that connection.
const joinTimeout = 10 * time.Second

var errMoveFailed = errors.New("the next connection reached the node or deployment to avoid, or did not join all rooms")

// A moveRequest is a move frame, with absolute times.
type moveRequest struct {
	avoid     Avoid
	reason    string
	notBefore time.Time // the earliest time of the next attempt
	deadline  time.Time // the move is canceled after it, while the current connection is open
}

// A move makes the next connection, on a goroutine of its own, while the current
// one stays in use.
type move struct {
	// Set when the move is created, never changed.
	ctx          context.Context // ends with the client, or when the move is canceled
	cancel       context.CancelFunc
	previousDone <-chan struct{} // closed when the goroutine of the previous move has ended
	done         chan struct{}   // closed when moveLoop returns

	// Each is a channel with a buffer of one that wakes awaitJoins: allJoined when
	// all rooms are joined on the next connection, progress when one more is.
	allJoined, progress chan struct{}

	// Guarded by Client.mu.
	request    *moveRequest
	inProgress bool // a connection is being made, or is joining its rooms
}

// avoids reports whether w names the deployment or the node to avoid.
func (a Avoid) avoids(w Welcome) bool {
	return (a.Node != "" && a.Node == w.Node) || (a.Deployment != "" && a.Deployment == w.Deployment)
}

// handleMove starts a move that the current connection asks for. A move that the
// next connection asks for is kept until that connection is the current one.
func (c *Client) handleMove(conn *connection, f *serverFrame) {
	now := time.Now()
	req := &moveRequest{avoid: f.Avoid, reason: f.Reason, notBefore: now.Add(millis(f.After)), deadline: now.Add(millis(f.Deadline))}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch conn {
	case c.current:
		c.startMove(req)
	case c.next:
		conn.pendingMove = req
	}
}

// startMove starts a move, which replaces the previous move. An attempt in progress
// continues if it avoids the same node or deployment. The caller holds mu.
func (c *Client) startMove(req *moveRequest) {
	if c.closing {
		return
	}
	if m := c.move; m != nil && m.inProgress && m.request.avoid == req.avoid {
		m.request = req
		return
	}
	c.cancelMove()
	m := &move{
		request: req, previousDone: c.moveDone, done: make(chan struct{}),
		allJoined: make(chan struct{}, 1), progress: make(chan struct{}, 1),
	}
	m.ctx, m.cancel = context.WithCancel(c.ctx)
	c.move, c.moveDone = m, m.done
	c.running.Go(func() { c.moveLoop(m) })
}

// cancelMove cancels the move, if there is one. The caller holds mu.
func (c *Client) cancelMove() {
	if c.move != nil {
		c.move.cancel()
		c.move = nil
	}
}

// moveLoop tries to make the next connection until the client has moved or the
// move is canceled.
func (c *Client) moveLoop(m *move) {
	defer close(m.done)
	defer m.cancel()
	if m.previousDone != nil {
		<-m.previousDone // so that there are never more than two connections
	}
	retryBackoff := backoff{random: c.opts.random}
	for c.awaitMoveTime(m) {
		conn, end := c.connect(m.ctx)
		if conn != nil {
			if c.useMoveConnection(m, conn) {
				return
			}
			end = closeResult{code: codeAbnormal, err: errMoveFailed}
		}
		if c.postponeMove(m, retryBackoff.next(actionBackOff, end.code, 0, time.Now())) {
			c.running.Go(func() { c.connectionLoop(nil, end) })
			return
		}
	}
}

// awaitMoveTime waits until the next attempt is due. It returns false when the move
// is canceled.
func (c *Client) awaitMoveTime(m *move) bool {
	c.mu.Lock()
	notBefore, deadline := m.request.notBefore, m.request.deadline
	c.mu.Unlock()
	at := notBefore
	if deadline.Before(notBefore) {
		at = deadline
	}
	timer := time.NewTimer(time.Until(at))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-m.ctx.Done():
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.move != m || c.closing {
		return false
	}
	if m.inProgress = !notBefore.After(deadline); !m.inProgress {
		c.opts.Logger.Debug("the move was canceled at its deadline", "reason", m.request.reason)
		c.cancelMove()
	}
	return m.inProgress
}

// postponeMove sets the time of the next attempt. It returns true when the current
// connection has ended in the meantime, and the move with it: the caller is then
// responsible for the client's connection.
func (c *Client) postponeMove(m *move, wait time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	m.inProgress = false
	if c.move == m && c.current == nil {
		c.cancelMove()
		return true
	}
	c.urlIndex++
	if at := time.Now().Add(wait); at.After(m.request.notBefore) {
		m.request.notBefore = at
	}
	return false
}

// useMoveConnection makes conn the next connection, joins the rooms there and makes
// it the current one. It discards a connection that cannot be used. It returns true
// when the move is over, and false when another attempt is due.
func (c *Client) useMoveConnection(m *move, conn *connection) bool {
	c.mu.Lock()
	switch {
	case c.move != m || (c.closing && c.current != nil):
		c.mu.Unlock()
		conn.sock.closeUnread()
		return true
	case c.current == nil: // the current connection has ended: any connection is better than none
		c.cancelMove()
		c.sendMoved(conn)
		c.mu.Unlock()
		c.startConnection(conn)
		c.running.Go(func() { c.connectionLoop(conn, closeResult{}) })
		return true
	case m.request.avoid.avoids(conn.welcome):
		c.mu.Unlock()
		conn.sock.closeUnread()
		return false
	}
	c.next, c.signalDedup = conn, c.signalDedup.start()
	c.sendMoved(conn)
	for _, r := range c.rooms {
		if r.position.given {
			c.sendJoin(conn, r)
		}
	}
	c.notifyMove()
	c.mu.Unlock()
	c.running.Go(func() { c.connectionLoop(conn, closeResult{}) })
	return c.awaitJoins(m, conn)
}

// sendMoved reports the time of the handshake on conn, by which the service paces
// the rest of the drain. The caller holds mu.
func (c *Client) sendMoved(conn *connection) {
	if c.welcome.Node == "" {
		return
	}
	conn.sock.send(newRequest("moved", c.nextRef(), "").text("from", c.welcome.Node).
		number("handshake_ms", conn.welcomedAt.Sub(conn.openedAt).Milliseconds()).end())
}

// awaitJoins waits until all rooms are joined on the next connection, and makes it
// the current one. It returns what useMoveConnection does.
func (c *Client) awaitJoins(m *move, conn *connection) bool {
	timer := time.NewTimer(joinTimeout)
	defer timer.Stop()
	for {
		select {
		case <-m.allJoined:
			if c.finishMove(m) {
				return true
			}
		case <-m.progress:
			timer.Reset(joinTimeout)
		case <-conn.ended:
			return false
		case <-timer.C:
			if c.discardNext(conn) {
				return false
			}
		case <-m.ctx.Done():
			c.discardNext(conn)
			return true
		}
	}
}

// notifyMove wakes the move because one more room is joined, or left, on the next
// connection. The caller holds mu.
func (c *Client) notifyMove() {
	if c.next == nil || c.move == nil {
		return
	}
	notify := c.move.progress
	if c.allJoined() {
		notify = c.move.allJoined
	}
	select {
	case notify <- struct{}{}:
	default:
	}
}

// allJoined reports whether all rooms are joined on the next connection. The caller
// holds mu, and there is a next connection.
func (c *Client) allJoined() bool {
	for name := range c.rooms {
		if m := c.next.memberships[name]; m == nil || !m.joined {
			return false
		}
	}
	return true
}

// finishMove makes the next connection the current one and closes the old one, if all
// rooms are joined. It returns false if they are not, or if the move is over.
func (c *Client) finishMove(m *move) bool {
	c.handlerMu.Lock()
	c.mu.Lock()
	if c.move != m || c.next == nil || !c.allJoined() {
		c.mu.Unlock()
		c.handlerMu.Unlock()
		return false
	}
	old := c.current
	event, toRun := c.promoteNext()
	c.mu.Unlock()
	toRun.run()
	c.opts.OnMoved(event)
	c.handlerMu.Unlock()
	old.sock.closeGracefully(codeNormal)
	return true
}

// promoteNext makes the next connection the current one. The caller holds handlerMu
// and mu, and runs the returned callbacks once mu is released.
func (c *Client) promoteNext() (MovedEvent, callbacks) {
	conn := c.next
	event := MovedEvent{From: c.welcome, To: conn.welcome, Reason: c.move.request.reason, Took: time.Since(conn.openedAt)}
	if c.current.refreshTimer != nil {
		c.current.refreshTimer.Stop()
	}
	c.next = nil
	c.cancelMove()
	c.signalDedup.expireSoon()
	return event, c.makeCurrent(conn)
}

// discardNext closes conn if it is still the next connection, and reports whether
// it was.
func (c *Client) discardNext(conn *connection) bool {
	c.mu.Lock()
	if c.next != conn {
		c.mu.Unlock()
		return false
	}
	c.next = nil
	c.signalDedup.expireSoon()
	code := codeDiscarded
	if c.closing { // the session, which this connection has resumed, is to end
		code = codeNormal
	}
	c.mu.Unlock()
	conn.sock.closeGracefully(code)
	return true
}
