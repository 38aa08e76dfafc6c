package http

import (
	"context"
	"time"

	"switchyard/internal/auth"
	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

var (
	errNoToken   = &protocol.Error{Code: protocol.CodeUnauthorized, Message: "send an auth frame with a token first: nobody comes in without one"}
	errBanned    = &protocol.Error{Code: protocol.CodeForbidden, Message: "this user was removed, and is kept out for a time"}
	errOtherUser = &protocol.Error{Code: protocol.CodeForbidden, Message: "the token is another user's: open another connection with it"}
)

// setIdentity binds the connection to an identity. From here on its requests are
// served. The caller is the reader, or nothing has been read yet.
func (sock *socket) setIdentity(identity auth.Identity) {
	sock.identity = identity
	sock.reader = readerOf(identity.User, sock.network)
	sock.client = sock.server.cfg.Hub.NewClient(sock.conn, identity.User, sock.reader)
	secret, resumed := sock.attachSession(sock.handshake, identity.User)
	sock.handshake = protocol.Handshake{} // secrets are not kept longer than they are needed
	sock.identified.Store(true)
	sock.server.expiry.Set(sock, identity.Expires)
	sock.usage.freeJoins = sock.session.ResumedRooms()
	sock.usage.carried = sock.server.allowances.open(sock.session.ID(), sock.network, resumed, sock.server.cfg.now())
	sock.conn.Send(sock.server.welcome(secret, resumed, &identity, sock.server.remainingLimits(&sock.usage, identity.User)))
}

// authenticate handles an auth frame: the first one identifies the client, a later
// one carries a fresh token of the same user. ends means that the connection is
// being closed.
func (sock *socket) authenticate(r *protocol.Request) (ends bool, err error) {
	identity, err := sock.server.auth.verify(context.Background(), sock.network, r.Token)
	if !sock.identified.Load() {
		return sock.authenticateFirst(r, identity, err)
	}
	if err == nil && identity.User != sock.identity.User {
		err = errOtherUser
	}
	if err != nil {
		return false, err // the old token stays in use
	}
	sock.identity = identity
	sock.server.expiry.Set(sock, identity.Expires)
	// The client leaves the rooms that the new token does not allow before it gets
	// the answer.
	sock.client.Restrict(func(room message.Room) bool { return identity.May(room, auth.Join) })
	sock.conn.Send(protocol.Authenticated(r.Ref, identity.User, untilExpiry(identity.Expires)))
	return false, nil
}

// authenticateFirst identifies the client by the token of its first auth frame. A
// refused token closes the connection.
func (sock *socket) authenticateFirst(r *protocol.Request, identity auth.Identity, err error) (ends bool, _ error) {
	s := sock.server
	code := protocol.CloseUnauthorized
	if err != nil && protocol.ErrorFor(err).Code != protocol.CodeUnauthorized {
		return false, err // the token was not checked: the client may send it again
	}
	if err == nil {
		if err = s.auth.checkConnects(identity.User); err != nil {
			code = protocol.CloseTooManyConnections
		}
	}
	if err == nil {
		code, _, err = s.auth.admitUser(identity.User, sock.admission)
	}
	if err != nil {
		sock.sendError(r, err)
		sock.conn.CloseWith(code)
		return true, nil
	}
	sock.admission.Register(sock)
	sock.setIdentity(identity)
	sock.conn.Send(protocol.Authenticated(r.Ref, identity.User, untilExpiry(identity.Expires)))
	if s.auth.banned(identity.User) { // the ban may have been set before Register
		sock.conn.CloseWith(protocol.CloseRemoved)
		return true, nil
	}
	return false, nil
}

// requestActions are the requests that need a right, with their action.
var requestActions = map[protocol.Type]auth.Action{
	protocol.TypeJoin:     auth.Join,
	protocol.TypeHistory:  auth.Read,
	protocol.TypePresence: auth.Read,
	protocol.TypePublish:  auth.Publish,
	protocol.TypeSignal:   auth.Signal,
}

// permit returns an error unless a client of this identity may make the request. A
// leave needs no right.
func permit(identity *auth.Identity, r *protocol.Request) error {
	action, guarded := requestActions[r.Type]
	if !guarded || identity.May(r.Room, action) {
		return nil
	}
	if r.Room.Reserved() {
		return protocol.ErrReserved
	}
	return forbidden(action)
}

// forbidden names the missing right. It does not say whether the room exists: only
// readers of the room may know.
func forbidden(action auth.Action) error {
	right := "r"
	if action == auth.Publish || action == auth.Signal {
		right = "w"
	}
	return &protocol.Error{Code: protocol.CodeForbidden, Message: "this needs the right " + right + " in this room, which the token or AUTH_ANONYMOUS does not give"}
}

// untilExpiry returns the time until a token expires, at least 1 ms. It is 0 for no
// expiry.
func untilExpiry(expires time.Time) time.Duration {
	if expires.IsZero() {
		return 0
	}
	return max(time.Until(expires), time.Millisecond)
}
