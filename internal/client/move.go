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
	*shared
	link         *link
	ctx          context.Context // ends with the client, or when the move is canceled
	cancel       context.CancelFunc
	previousDone <-chan struct{} // closed when the goroutine of the previous move has ended
	done         chan struct{}   // closed when its loop returns

	// Guarded by mu.
	request    *moveRequest
	inProgress bool // a connection is being made, or is joining its rooms
}

// avoids reports whether w names the deployment or the node to avoid.
func (a Avoid) avoids(w Welcome) bool {
	return (a.Node != "" && a.Node == w.Node) || (a.Deployment != "" && a.Deployment == w.Deployment)
}

// loop tries to make the next connection until the client has moved or the move is
// canceled.
func (m *move) loop() {
	defer close(m.done)
	defer m.cancel()
	if m.previousDone != nil {
		<-m.previousDone // so that there are never more than two connections
	}
	retryBackoff := backoff{random: m.opts.random}
	for m.awaitTime() {
		conn, end := m.link.connect(m.ctx)
		if conn != nil {
			if m.use(conn) {
				return
			}
			end = closeResult{code: codeAbnormal, err: errMoveFailed}
		} else if m.link.dropSilent(m) {
			return
		}
		if m.postpone(retryBackoff.next(actionBackOff, end.code, 0, time.Now())) {
			m.running.Go(func() { m.link.connectionLoop(nil, end) })
			return
		}
	}
}

// awaitTime waits until the next attempt is due, and begins it. It returns false
// when the move is canceled, also because the attempt would be after the deadline.
func (m *move) awaitTime() (begun bool) {
	var at, deadline time.Time
	m.locked(func() { at, deadline = m.request.notBefore, m.request.deadline })
	late := at.After(deadline)
	if late {
		at = deadline
	}
	timer := time.NewTimer(time.Until(at))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-m.ctx.Done():
		return false
	}
	m.locked(func() {
		m.inProgress = m.link.move == m && !m.closing && !late
		if begun = m.inProgress; late && m.link.move == m {
			m.opts.Logger.Debug("the move was canceled at its deadline", "reason", m.request.reason)
			m.link.cancelMove()
		}
	})
	return begun
}

// postpone sets the time of the next attempt. It returns true when the current
// connection has ended in the meantime, and the move with it: the caller is then
// responsible for the client's connection.
func (m *move) postpone(wait time.Duration) (takesOver bool) {
	m.locked(func() {
		m.inProgress = false
		if takesOver = m.link.move == m && m.current == nil; takesOver {
			m.link.cancelMove()
			return
		}
		m.link.urlIndex++
		if at := time.Now().Add(wait); at.After(m.request.notBefore) {
			m.request.notBefore = at
		}
	})
	return takesOver
}

// use makes conn the next connection, joins the rooms there and makes it the
// current one. It discards a connection that cannot be used. It returns true when
// the move has ended, and false when another attempt is due.
func (m *move) use(conn *connection) bool {
	var usable, ended bool
	m.locked(func() {
		switch {
		case m.link.move != m || (m.closing && m.current != nil):
			ended = true
		case m.current == nil: // it has ended: any connection is better than none
			usable, ended = true, true
			m.link.cancelMove()
			m.sendMoved(conn)
		case !m.request.avoid.avoids(conn.welcome):
			usable = true
			m.next = conn
			m.sendMoved(conn)
			m.link.parts.rooms.joinNext()
		}
	})
	switch {
	case !usable:
		conn.sock.closeUnread()
		return ended
	case ended:
		m.link.startConnection(conn)
	}
	m.running.Go(func() { m.link.connectionLoop(conn, closeResult{}) })
	return ended || m.awaitJoins(conn)
}

// sendMoved reports the time of the handshake on conn, by which the service paces
// the rest of the drain. The caller holds mu.
func (m *move) sendMoved(conn *connection) {
	if m.welcome.Node == "" || m.request.reason == reasonSilence {
		return
	}
	conn.send(newRequest("moved", m.nextRef(), "").text("from", m.welcome.Node).
		number("handshake_ms", conn.welcomedAt.Sub(conn.openedAt).Milliseconds()).end(), kindJoin)
}

// awaitJoins waits until all rooms are joined on the next connection, and makes it
// the current one. It returns what use does.
func (m *move) awaitJoins(conn *connection) bool {
	timer := time.NewTimer(joinTimeout)
	defer timer.Stop()
	for {
		select {
		case <-conn.allJoined:
			if m.finish() {
				return true
			}
		case <-conn.progress:
			timer.Reset(joinTimeout)
		case <-conn.ended:
			return false
		case <-timer.C:
			if m.discard(conn) {
				return false
			}
		case <-m.ctx.Done():
			m.discard(conn)
			return true
		}
	}
}

// finish makes the next connection the current one and closes the old one, if all
// rooms are joined. It returns false if they are not, or if the move has ended.
func (m *move) finish() (moved bool) {
	var old *connection
	m.exclusiveLocked(func() {
		if moved = m.link.move == m && m.next != nil && m.link.parts.rooms.allJoined(); moved {
			old = m.current
			m.link.promoteNext()
		}
	})
	if moved {
		old.sock.closeGracefully(codeNormal)
	}
	return moved
}

// discard closes conn if it is still the next connection, and reports whether it
// was.
func (m *move) discard(conn *connection) (discarded bool) {
	code := codeDiscarded
	m.locked(func() {
		if discarded = m.next == conn; discarded {
			m.link.dropNext()
		}
		if m.closing { // the session, which this connection has resumed, is to end
			code = codeNormal
		}
	})
	if discarded {
		conn.sock.closeGracefully(code)
	}
	return discarded
}
