package http

import (
	"context"
	"errors"
	"net/http"
	"time"

	"switchyard/internal/auth"
	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// A Verifier turns a token into an identity. Its errors contain no part of the
// token. It is safe for concurrent use.
type Verifier interface {
	Verify(ctx context.Context, token string) (auth.Identity, error)
	// Anonymous returns the identity of clients without a token, and whether such
	// clients may connect.
	Anonymous() (auth.Identity, bool)
}

// verifyTimeout bounds the check of a token, which may wait for keys.
const verifyTimeout = 5 * time.Second

// queryTokenParam is the query parameter that may carry a token if AUTH_QUERY_TOKEN
// allows it.
const queryTokenParam = "access_token"

// readHandshake reads the token and the session that a handshake offers. It refuses two
// tokens, because it can't know which one a proxy on the way has checked.
func (s *Server) readHandshake(r *http.Request) (protocol.Handshake, error) {
	if r.ContentLength != 0 {
		// A proxy would read these bytes as the body, and this node as frames.
		return protocol.Handshake{}, &message.InvalidError{Field: "Content-Length", Reason: "must be 0: a handshake has no body"}
	}
	o, err := protocol.ReadHandshake(r)
	if err != nil || !s.cfg.AuthQueryToken {
		return o, err
	}
	tokens := r.URL.Query()[queryTokenParam]
	switch {
	case len(tokens) == 0:
	case len(tokens) > 1 || o.Token != "":
		return protocol.Handshake{}, &message.InvalidError{Field: "token", Reason: "must be given once"}
	case tokens[0] == "" || len(tokens[0]) > protocol.MaxTokenLength:
		return protocol.Handshake{}, &message.InvalidError{Field: "token", Reason: "must be of 1 to 8192 bytes"}
	default:
		o.Token = tokens[0]
	}
	return o, nil
}

// verify calls Verify with a timeout. The client sees its error.
func (s *Server) verify(ctx context.Context, token string) (auth.Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, verifyTimeout)
	defer cancel()
	identity, err := s.cfg.Verifier.Verify(ctx, token)
	switch {
	case errors.Is(err, auth.ErrUnavailable):
		return identity, &protocol.Error{Code: protocol.CodeUnavailable, Message: err.Error(), RetryAfter: message.RetryAfter}
	case err != nil:
		return identity, &protocol.Error{Code: protocol.CodeUnauthorized, Message: err.Error()}
	}
	return identity, nil
}

var (
	errNoToken   = &protocol.Error{Code: protocol.CodeUnauthorized, Message: "send an auth frame with a token first: nobody comes in without one"}
	errBanned    = &protocol.Error{Code: protocol.CodeForbidden, Message: "this user was removed, and is kept out for a time"}
	errOtherUser = &protocol.Error{Code: protocol.CodeForbidden, Message: "the token is another user's: open another connection with it"}
)

// The values of the label result of websocket_connections_total for connections
// that are refused because of their user.
const (
	resultUnauthorized  = "unauthorized"
	resultRemoved       = "removed"
	resultTooManyOfUser = "too_many_user"
)

// A clientIdentity is what a handshake says about its client.
type clientIdentity struct {
	identity auth.Identity
	// rejection is why the connection is closed at once, for the audit log.
	rejection string
	// known is false if the client must still send a token in an auth frame.
	known bool
}

// authenticateHandshake determines the identity behind a handshake, and assigns the
// admission slot to its user or marks it for rejection. It returns an error if the
// handshake must be refused over HTTP.
func (s *Server) authenticateHandshake(ctx context.Context, o protocol.Handshake, slot *admissionSlot) (clientIdentity, error) {
	if slot.closeCode != 0 {
		return clientIdentity{}, nil
	}
	if o.Token == "" {
		identity, open := s.cfg.Verifier.Anonymous()
		return clientIdentity{identity: identity, known: open}, nil
	}
	identity, err := s.verify(ctx, o.Token)
	if err != nil {
		if e := protocol.ErrorFor(err); e.Code == protocol.CodeUnavailable {
			return clientIdentity{}, e // not a refusal: the client retries with the same token
		}
		return clientIdentity{rejection: err.Error()}, slot.rejectOrError(protocol.CloseUnauthorized, resultUnauthorized, err)
	}
	code, result, err := s.admitUser(identity.User, slot)
	if err != nil {
		return clientIdentity{identity: identity, rejection: err.Error()}, slot.rejectOrError(code, result, err)
	}
	return clientIdentity{identity: identity, known: true}, nil
}

// admitUser assigns the slot to a user, unless the user is banned or has too many
// connections. Then it returns the close code, the metric's result and the error.
func (s *Server) admitUser(user string, slot *admissionSlot) (protocol.CloseCode, string, error) {
	if s.banned(user) {
		return protocol.CloseRemoved, resultRemoved, errBanned
	}
	if !slot.assignUser(user) {
		return protocol.CloseTooManyConnections, resultTooManyOfUser, errNoCapacity
	}
	return 0, "", nil
}

// setIdentity binds the connection to an identity. From here on its requests are
// served. The caller is the reader, or nothing has been read yet.
func (sock *socket) setIdentity(identity auth.Identity) {
	sock.identity = identity
	sock.client = sock.server.cfg.Hub.NewClient(sock.conn, identity.User)
	secret, resumed := sock.attachSession(sock.handshake, identity.User)
	sock.handshake = protocol.Handshake{} // secrets are not kept longer than they are needed
	sock.identified.Store(true)
	sock.server.expiry.set(sock, identity.Expires)
	sock.conn.Send(sock.server.welcome(secret, resumed, &identity))
}

// authenticate handles an auth frame: the first one identifies the client, a later
// one carries a fresh token of the same user. ends means that the connection is
// being closed.
func (sock *socket) authenticate(r *protocol.Request) (ends bool, err error) {
	identity, err := sock.server.verify(context.Background(), r.Token)
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
	sock.server.expiry.set(sock, identity.Expires)
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
	if err == nil {
		code, _, err = s.admitUser(identity.User, sock.admission)
	}
	if err != nil && protocol.ErrorFor(err).Code == protocol.CodeUnavailable && code == protocol.CloseUnauthorized {
		return false, err // the token could not be checked: the client may send it again
	}
	if err != nil {
		sock.sendError(r, err)
		sock.conn.CloseWith(code)
		return true, nil
	}
	sock.admission.register(sock)
	sock.setIdentity(identity)
	sock.conn.Send(protocol.Authenticated(r.Ref, identity.User, untilExpiry(identity.Expires)))
	if s.banned(identity.User) { // the ban may have been set just before register
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

// permit returns an error unless the client may make the request. A leave needs no
// right.
func (sock *socket) permit(r *protocol.Request) error {
	action, guarded := requestActions[r.Type]
	if !guarded || sock.identity.May(r.Room, action) {
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
