package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"switchyard/internal/message"
)

// tokenTimeout is how long Options.Token may take.
const tokenTimeout = 30 * time.Second

// lateClose is how much longer a connection without a token waits for its welcome: a
// service that requires one waits as long as dialTimeout for it, and then says so.
const lateClose = 5 * time.Second

var (
	errHeartbeatTimeout = errors.New("no frame for two heartbeats")
	errSilent           = errors.New("no answer to a ping, and no second connection")
)

// A link makes one connection after the other and reads them. It alone decides
// which one is current, and which goroutine is responsible for it.
type link struct {
	// Static after construction.
	*shared
	parts             *parts
	connectionsClosed chan struct{} // closed when close has closed all connections
	done              chan struct{} // closed when the client has ended
	wake              chan struct{} // ends the wait for the next attempt

	// Guarded by mu.
	move        *move           // nil without a move
	moveDone    <-chan struct{} // closed when the goroutine of the last move has ended
	live        chan struct{}   // closed while current is set
	last        *connection     // the current connection, or the one before; nil before the first
	session     string          // the session to resume at the next connect
	urlIndex    int             // index into URLs, modulo their number
	waiting     bool            // for the next attempt
	failures    int             // attempts that failed before the first welcome
	lastFailure error           // of the last of them

	backoff backoff // owned by the goroutine in connectionLoop
}

// open makes the current connection. Its results are those of connect.
func (l *link) open() (*connection, closeResult) {
	l.emitState(StateEvent{State: Connecting})
	conn, end := l.connect(l.ctx)
	if conn != nil {
		l.startConnection(conn)
	}
	return conn, end
}

// connectionLoop reads conn until it ends, and then makes and reads one connection
// after the other until the client ends. conn is nil when the last attempt
// failed, and end says how.
//
// One goroutine at a time is responsible for the current connection: it reads
// it here, or is establishing the next one. A move starts a second loop for the
// next connection, which takes over when that becomes the current one; the loop
// of the old connection then returns.
func (l *link) connectionLoop(conn *connection, end closeResult) {
	for {
		if conn != nil {
			end = l.readLoop(conn)
			if end.code == codeTooBig {
				l.exclusiveLocked(func() { l.parts.outbox.failLargest(conn, end.err) })
			}
			if l.connectionEnded(conn, &end) {
				return
			}
		}
		if !l.awaitReconnect(end) {
			return
		}
		conn, end = l.open()
	}
}

// awaitReconnect waits until the next attempt is due, as the end of the last
// connection requires. It returns false when the client has ended.
func (l *link) awaitReconnect(end closeResult) bool {
	closing := false
	l.locked(func() {
		closing = l.closing
		l.countFailure(end)
	})
	if closing {
		l.finish(ErrClosed, end)
		return false
	}
	action := actionForCode(end.code)
	if end.code == codeReplaced && end.superseded {
		action = actionReconnectSoon
	}
	if action == actionStop || (action == actionNewToken && l.opts.Token == nil) {
		l.finish(&ClosedError{Code: end.code, Err: end.err}, end)
		return false
	}
	if action != actionReconnectSoon { // otherwise nothing is wrong with this URL
		l.locked(func() { l.urlIndex++ })
	}
	wait := l.backoff.next(action, end.code, end.lifetime, time.Now())
	l.opts.Logger.Debug("connection ended", "code", end.code, "err", end.err, "retry_in", wait)
	l.locked(func() { l.waiting = true })
	l.emitState(StateEvent{State: Waiting, Err: end.err, Code: end.code, RetryIn: wait})
	ended := false
	select {
	case <-time.After(wait):
	case <-l.wake:
	case <-l.ctx.Done():
		ended = true
	}
	l.locked(func() {
		l.waiting = false
		select {
		case <-l.wake: // it came together with the end of the wait
		default:
		}
	})
	if ended {
		l.finish(ErrClosed, end)
	}
	return !ended
}

// countFailure remembers why the client has not connected yet. The second failure is
// logged, because nothing else reports it to a program that only waits. The caller holds mu.
func (l *link) countFailure(end closeResult) {
	if l.welcome.HeartbeatMS > 0 {
		return // it was live
	}
	l.lastFailure = end.err
	if l.failures++; l.failures == 2 {
		l.opts.Logger.Warn("two connections have failed: is the address right, does the service run, and do the proxies before it pass WebSockets on?",
			"urls", l.opts.URLs, "err", end.err)
	}
}

// connect makes a connection and reads its welcome. When it fails it returns nil
// and how the attempt ended.
func (l *link) connect(ctx context.Context) (*connection, closeResult) {
	var conn *connection
	var url, session string
	l.locked(func() {
		l.connectCount++
		conn = &connection{number: l.connectCount, ended: make(chan struct{}), memberships: make(map[message.Room]*membership)}
		url, session = l.opts.URLs[l.urlIndex%len(l.opts.URLs)], l.session
	})
	header, err := l.header(ctx, session)
	if err != nil {
		return nil, closeResult{code: codeAbnormal, err: fmt.Errorf("get a token: %w", err)}
	}
	timeout := dialTimeout
	if l.opts.Token != nil && header.Get("Authorization") == "" {
		timeout += lateClose
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn.openedAt = time.Now()
	s, code, err := dialSocket(ctx, l.opts.HTTPClient, url, header)
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
	conn.sock, conn.welcomedAt, conn.pacer = s, time.Now(), newPacer(conn.welcome.Limits)
	if left := conn.welcome.AuthExpiresMS; left > 0 {
		conn.tokenExpires = conn.welcomedAt.Add(millis(left))
	}
	return conn, closeResult{}
}

// readLoop reads from a connection until it ends.
func (l *link) readLoop(conn *connection) closeResult {
	s := conn.sock
	defer s.abort()
	stop := context.AfterFunc(l.ctx, s.cancel)
	defer stop()
	readTimeout := 2 * millis(conn.welcome.HeartbeatMS)
	lastReset := time.Now()
	readCtx, cancel := context.WithCancelCause(s.ctx)
	defer cancel(nil)
	timer := time.AfterFunc(readTimeout, func() { cancel(errHeartbeatTimeout) })
	defer timer.Stop()
	// A large frame may take a slow link longer than readTimeout. The timer is not reset
	// at each part, because that costs more than reading the clock.
	s.parts.onBytes = func() {
		if now := time.Now(); now.Sub(lastReset) > readTimeout/16 {
			lastReset = now
			timer.Reset(readTimeout)
		}
	}
	for {
		b, err := s.read(readCtx)
		if err == nil {
			err = l.handleFrame(conn, b)
		}
		if err != nil {
			if cause := context.Cause(readCtx); errors.Is(cause, errHeartbeatTimeout) {
				err = cause
			}
			l.locked(func() {
				if conn.silent && closeCode(err) == codeAbnormal {
					err = errSilent
				}
			})
			return closeResult{code: closeCode(err), err: err, lifetime: time.Since(conn.welcomedAt)}
		}
	}
}

func (l *link) emitState(e StateEvent) { l.exclusive(func() { l.opts.OnState(e) }) }

// handleFrame handles one frame of a connection. An error ends the connection.
func (l *link) handleFrame(conn *connection, b []byte) error {
	f, err := decodeFrame(b)
	if err != nil {
		return err
	}
	l.exclusive(func() {
		l.parts.observeFrame(conn, f)
		l.locked(func() {
			switch {
			case f.Type == "move":
				l.handleMove(conn, f)
			case f.Ref != "" && f.Ref == conn.probe:
				l.answered(conn)
			default:
				err = l.parts.handleFrame(conn, f)
			}
		})
	})
	return err
}

// startConnection makes conn the current connection when there is none, and the
// client connected.
func (l *link) startConnection(conn *connection) {
	l.exclusiveLocked(func() {
		l.makeCurrent(conn)
		close(l.live)
		l.queue(func() { l.opts.OnState(StateEvent{State: Live, Welcome: conn.welcome}) })
	})
}

// makeCurrent makes conn the current connection: the parts rejoin the rooms from
// their positions, and then resend, in order, what has no answer yet. The caller
// holds handlerMu and mu.
func (l *link) makeCurrent(conn *connection) {
	if l.last != nil {
		conn.pacer.adopt(&l.last.pacer)
	}
	l.current, l.last, l.welcome = conn, conn, conn.welcome
	if conn.welcome.Session != "" {
		l.session = conn.welcome.Session
	}
	l.parts.calls.reset()
	l.parts.rooms.rejoin()
	l.parts.outbox.resend()
	l.parts.calls.pump()
	l.parts.tokens.schedule()
	if conn.pendingMove != nil {
		l.startMove(conn.pendingMove)
	}
}

// connectionEnded cleans up after conn, which has ended. It returns true when
// another goroutine is responsible for the client's connection, so that the
// caller has nothing left to do.
func (l *link) connectionEnded(conn *connection, end *closeResult) (handedOver bool) {
	l.exclusiveLocked(func() {
		end.superseded = conn.number < l.connectCount
		handedOver = true
		switch {
		case l.next == conn:
			l.dropNext()
			close(conn.ended)
		case l.current != conn: // the client has moved
		case l.next != nil && !l.closing:
			l.promoteNext()
		default:
			l.current = nil
			l.live = make(chan struct{})
			l.parts.tokens.schedule()
			if handedOver = l.move != nil && l.move.inProgress && !l.closing; !handedOver {
				l.cancelMove()
				return
			}
			// The move is making a connection, and that becomes the current one.
			l.queue(func() { l.opts.OnState(StateEvent{State: Connecting}) })
		}
	})
	return handedOver
}

// close closes the connections, and lets the client end.
func (l *link) close() {
	var conns []*connection
	l.locked(func() { l.closing, conns = true, []*connection{l.current, l.next} })
	var wg sync.WaitGroup
	for _, conn := range conns {
		if conn != nil {
			wg.Go(func() { conn.sock.closeGracefully(codeNormal) })
		}
	}
	wg.Wait()
	close(l.connectionsClosed)
	l.cancel()
}

// finish ends the client: every pending request fails with cause, and the state
// becomes Closed.
func (l *link) finish(cause error, end closeResult) {
	defer close(l.done)
	if errors.Is(cause, ErrClosed) {
		<-l.connectionsClosed // close may still be closing the next connection
	}
	l.exclusiveLocked(func() {
		l.err = cause
		l.cancel()
		l.parts.outbox.fail(cause)
		l.parts.calls.fail(cause)
		l.parts.rooms.fail(cause)
		l.queue(func() { l.opts.OnState(StateEvent{State: Closed, Err: cause, Code: end.code}) })
	})
}

// handleMove starts a move that the current connection asks for. A move that the
// next connection asks for is kept until that connection is the current one. The
// caller holds mu, as for the methods below.
func (l *link) handleMove(conn *connection, f *serverFrame) {
	now := time.Now()
	req := &moveRequest{avoid: f.Avoid, reason: f.Reason, notBefore: now.Add(millis(f.After)), deadline: now.Add(millis(f.Deadline))}
	switch conn {
	case l.current:
		l.startMove(req)
	case l.next:
		conn.pendingMove = req
	}
}

// startMove starts a move, which replaces the previous move. An attempt in progress
// continues if it avoids the same node or deployment.
func (l *link) startMove(req *moveRequest) {
	if l.closing {
		return
	}
	if m := l.move; m != nil && m.inProgress && m.request.avoid == req.avoid {
		m.request = req
		return
	}
	l.cancelMove()
	m := &move{shared: l.shared, link: l, request: req, previousDone: l.moveDone, done: make(chan struct{})}
	m.ctx, m.cancel = context.WithCancel(l.ctx)
	l.move, l.moveDone = m, m.done
	l.running.Go(m.loop)
}

// cancelMove cancels the move, if there is one.
func (l *link) cancelMove() {
	if l.move != nil {
		l.move.cancel()
		l.move = nil
	}
}

// promoteNext makes the next connection the current one. The caller holds handlerMu
// as well.
func (l *link) promoteNext() {
	conn := l.next
	event := MovedEvent{From: l.welcome, To: conn.welcome, Reason: l.move.request.reason, Took: time.Since(conn.openedAt)}
	l.dropNext()
	l.cancelMove()
	l.makeCurrent(conn)
	l.queue(func() { l.opts.OnMoved(event) })
}

// dropNext forgets the next connection.
func (l *link) dropNext() {
	l.next = nil
	l.parts.rooms.signalDedup.expireSoon()
}
