package client

import "time"

// probeTimeout is the time in which the service answers a ping.
const probeTimeout = 3 * time.Second

// reasonSilence is that of a move that the client itself decides on.
const reasonSilence = "silence"

// reconnect is Client.Reconnect. The caller holds mu.
func (l *link) reconnect() {
	if l.waiting {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
	conn := l.current
	if conn == nil || l.closing || l.move != nil || conn.probe != "" {
		return
	}
	ref := l.nextRef()
	conn.probe = ref
	conn.sock.send(newRequest("ping", ref, "").end())
	l.afterFunc(probeTimeout, func() {
		if l.current != conn || conn.probe != ref || l.closing {
			return
		}
		conn.silent = true
		now := time.Now()
		l.startMove(&moveRequest{reason: reasonSilence, notBefore: now, deadline: now.Add(24 * time.Hour)})
	})
}

// answered handles the answer to a ping. A second connection is not needed any more,
// unless it is welcomed already. The caller holds mu.
func (l *link) answered(conn *connection) {
	conn.probe, conn.silent = "", false
	if conn == l.current && l.next == nil && l.move != nil && l.move.request.reason == reasonSilence {
		l.cancelMove()
	}
}

// dropSilent ends the current connection if it has not answered a ping, because the
// attempt of m to make a second one has failed, too. The goroutine that reads it then
// goes on. It locks mu itself.
func (l *link) dropSilent(m *move) (dropped bool) {
	l.locked(func() {
		if dropped = l.move == m && l.current != nil && l.current.silent; dropped {
			l.cancelMove()
			l.current.sock.abort()
		}
	})
	return dropped
}
