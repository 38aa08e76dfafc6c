package client

import (
	"context"
	"errors"
	"time"
)

// joinTimeout is how long a move waits for the next room to be joined on the
// second connection, until it takes that for broken.
const joinTimeout = 10 * time.Second

var errMoveFailed = errors.New("moved to what is to be avoided, or could not join there")

// A moveRequest is what the service asked for, and when.
type moveRequest struct {
	avoid     Avoid
	reason    string
	notBefore time.Time // not before
	deadline  time.Time // off after it, if the first connection lives still
}

// A move is on its way to a second connection, on a goroutine of its own. The
// first one serves meanwhile.
type move struct {
	// Static.
	ctx      context.Context // ends with the client, or when the move is off
	cancel   context.CancelFunc
	previous <-chan struct{} // closed when the move before this one is done
	done     chan struct{}   // closed by moveLoop as its last act

	// settled gets a token when all rooms may be joined on the second
	// connection, progress when one more is.
	allJoined, progress chan struct{}

	// Guarded by Client.mu.
	request    *moveRequest
	inProgress bool // a connection is being made, or settles in
}

// avoids says whether a connection is one to get away from.
func (a Avoid) avoids(w Welcome) bool {
	return (a.Node != "" && a.Node == w.Node) || (a.Deployment != "" && a.Deployment == w.Deployment)
}

// handleMove heeds the connection that counts. What the second one asks for is
// kept until it does.
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

// startMove makes order the move: only the last one counts. A try under way goes on
// where the same is to be avoided. The caller holds mu.
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
		request: req, previous: c.moveDone, done: make(chan struct{}),
		allJoined: make(chan struct{}, 1), progress: make(chan struct{}, 1),
	}
	m.ctx, m.cancel = context.WithCancel(c.ctx)
	c.move, c.moveDone = m, m.done
	c.running.Go(func() { c.moveLoop(m) })
}

// cancelMove ends the move, if there is one. The caller holds mu.
func (c *Client) cancelMove() {
	if c.move != nil {
		c.move.cancel()
		c.move = nil
	}
}

// moveLoop tries until the client is elsewhere, or the move is off.
func (c *Client) moveLoop(m *move) {
	defer close(m.done)
	defer m.cancel()
	if m.previous != nil {
		<-m.previous // there are never more than two connections
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

// awaitMoveTime waits for the time to try. False says that the move is off.
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
		c.opts.Logger.Debug("the move is off", "reason", m.request.reason)
		c.cancelMove()
	}
	return m.inProgress
}

// postponeMove sets the time of the next try. True says that the first connection has
// ended meanwhile, and with it the move: somebody has to carry on.
func (c *Client) postponeMove(m *move, wait time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	m.inProgress = false
	if c.move == m && c.current == nil {
		c.cancelMove()
		return true
	}
	c.urlIndex++
	if slot := time.Now().Add(wait); slot.After(m.request.notBefore) {
		m.request.notBefore = slot
	}
	return false
}

// useMoveConnection puts a new connection to use, as far as it is of any. True says that
// the move is over, one way or the other; false that another try is due.
func (c *Client) useMoveConnection(m *move, conn *connection) bool {
	c.mu.Lock()
	switch {
	case c.move != m || (c.closing && c.current != nil):
		c.mu.Unlock()
		conn.sock.closeUnread()
		return true
	case c.current == nil: // the first has ended, and anything is better than nothing
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

// sendMoved tells a connection how long it took, for the sake of those who move
// after this client. The caller holds mu.
func (c *Client) sendMoved(conn *connection) {
	if c.welcome.Node == "" {
		return
	}
	conn.sock.send(newRequest("moved", c.nextRef(), "").text("from", c.welcome.Node).
		number("handshake_ms", conn.welcomedAt.Sub(conn.openedAt).Milliseconds()).end())
}

// awaitJoins waits until all rooms are joined on the second connection, which then
// takes the place of the first. It returns what arrive does.
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

// notifyMove tells the move that one more room is joined, or left, on the second
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

// allJoined says whether all rooms are joined on the second connection. The caller
// holds mu and knows of one.
func (c *Client) allJoined() bool {
	for name := range c.rooms {
		if m := c.next.memberships[name]; m == nil || !m.joined {
			return false
		}
	}
	return true
}

// finishMove lets go of the first connection if the second can do without it.
func (c *Client) finishMove(m *move) bool {
	c.handlerMu.Lock()
	c.mu.Lock()
	if c.move != m || c.next == nil || !c.allJoined() {
		c.mu.Unlock()
		c.handlerMu.Unlock()
		return false
	}
	first := c.current
	event, o := c.promoteNext()
	c.mu.Unlock()
	o.deliver()
	c.opts.OnMoved(event)
	c.handlerMu.Unlock()
	first.sock.closeGracefully(codeNormal)
	return true
}

// promoteNext makes the second connection the one that counts. The caller holds mu
// and turn, and tells what is returned.
func (c *Client) promoteNext() (MovedEvent, outcomes) {
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

// discardNext closes the second connection, unless it is that no longer.
func (c *Client) discardNext(conn *connection) bool {
	c.mu.Lock()
	if c.next != conn {
		c.mu.Unlock()
		return false
	}
	c.next = nil
	c.signalDedup.expireSoon()
	code := codeDiscarded
	if c.closing { // then the session ends, which is this connection's by now
		code = codeNormal
	}
	c.mu.Unlock()
	conn.sock.closeGracefully(code)
	return true
}
