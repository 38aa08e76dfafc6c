package http

import (
	"time"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
	"switchyard/internal/session"
)

// newSessions returns the sessions of the connections of s.
func newSessions(s *Server) *session.Set {
	return session.NewSet(session.Config{
		Node: s.cfg.Node, Store: s.cfg.Sessions, Events: s.cfg.SessionEvents,
		TakeoverTimeout: s.cfg.TakeoverTimeout, Log: s.log,
	})
}

// HandleTakeover handles the event that a newer connection owns a session, or is live in
// its rooms. It does not block.
func (s *Server) HandleTakeover(event message.NodeEvent) { s.sessions.HandleTakeover(event) }

// attachSession gives the connection the session that its handshake offers, or a new
// one. It is called before any request is handled.
func (sock *socket) attachSession(o protocol.Handshake, user string) (secret string, resumed bool) {
	s := sock.server
	sock.session, secret, resumed = s.sessions.Attach(sock, sock.client, o, user)
	if sock.session == nil {
		return "", false
	}
	sock.conn.OnPong(sock.session.PongReceived)
	if sock.session.IsFromOtherNode() {
		s.handshakesMoved.count.Add(1)
	}
	return secret, resumed
}

// rejoin joins the rooms of a resumed session from their confirmed positions, as if
// the client had asked for it, until the connection ends. They count as frames that were sent,
// without a wait: see awaitFrames. It returns nil.
func (sock *socket) rejoin() error {
	for _, p := range sock.session.RoomsToRejoin() {
		if sock.conn.IsEnding() {
			break
		}
		sock.dispatch(&protocol.Request{Type: protocol.TypeJoin, Room: p.Room, Epoch: p.Epoch, After: p.Seq, HasAfter: true})
		sock.countFrames(1)
	}
	return nil
}

// knownSession returns the session of the connection, for callers that are not its
// reader. It is nil until the client is identified: before, the reader may be setting it.
func (sock *socket) knownSession() *session.Session {
	if !sock.identified.Load() {
		return nil
	}
	return sock.session
}

// isIdentifying reports whether a frame is being handled that may identify the client.
// The time for the check of a token and for the lookup of a session bounds that.
func (sock *socket) isIdentifying() bool { return sock.handling.Load() && !sock.identified.Load() }

// isMoving reports whether the client is moving to another connection or has moved.
// Then closing this connection does not make it leave its rooms.
func (sock *socket) isMoving() bool { return sock.IsAskedToMove() || sock.session.IsReleased() }

// Started implements session.Connection.
func (sock *socket) Started() time.Time { return sock.started }

// IsAskedToMove implements session.Connection.
func (sock *socket) IsAskedToMove() bool { return sock.moveRequest.IsMade() }
