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

// A Verifier says who a token speaks for. Its errors hold no part of a token.
type Verifier interface {
	Verify(ctx context.Context, token string) (auth.Identity, error)
	// Anonymous returns who comes without a token, and whether they may come.
	Anonymous() (auth.Identity, bool)
}

// verifyTimeout bounds the check of a token: it may wait for keys.
const verifyTimeout = 5 * time.Second

// queryTokenParam is the parameter of the query that may carry a token, where
// AUTH_QUERY_TOKEN allows it.
const queryTokenParam = "access_token"

// readOffer reads what a handshake brings. More than one token is refused: of
// two nobody knows which one a proxy on the way has checked.
func (s *Server) readOffer(r *http.Request) (protocol.Handshake, error) {
	if r.ContentLength != 0 {
		// What is the body to whoever stands before us would be frames to us.
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

// verify is Verify, bounded. The error is for the client to see.
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

// How connections are counted that are turned away for who they are.
const (
	resultUnauthorized  = "unauthorized"
	resultRemoved       = "removed"
	resultTooManyOfUser = "too_many_user"
)

// A clientIdentity is who a handshake brings, as far as it is known.
type clientIdentity struct {
	identity auth.Identity
	// why tells of who is turned away, for the audit log.
	rejection string
	// known is false for who has brought no token, where one is needed: an
	// auth frame is awaited.
	known bool
}

// authenticateHandshake finds out who comes with a handshake, and gives the place to them or
// makes it one of who is turned away. The error is for who can't even be told
// by a close code; it is one of HTTP.
func (s *Server) authenticateHandshake(ctx context.Context, o protocol.Handshake, p *admissionSlot) (clientIdentity, error) {
	if p.closeCode != 0 {
		return clientIdentity{}, nil
	}
	if o.Token == "" {
		identity, open := s.cfg.Verifier.Anonymous()
		return clientIdentity{identity: identity, known: open}, nil
	}
	identity, err := s.verify(ctx, o.Token)
	if err != nil {
		if e := protocol.ErrorFor(err); e.Code == protocol.CodeUnavailable {
			return clientIdentity{}, e // no refusal: it comes back with the same token
		}
		return clientIdentity{rejection: err.Error()}, p.rejectOrError(protocol.CloseUnauthorized, resultUnauthorized, err)
	}
	code, result, err := s.admitUser(identity.User, p)
	if err != nil {
		return clientIdentity{identity: identity, rejection: err.Error()}, p.rejectOrError(code, result, err)
	}
	return clientIdentity{identity: identity, known: true}, nil
}

// admitUser claims the place for a user, unless that one is kept out or has too
// many; then it says how to tell.
func (s *Server) admitUser(user string, p *admissionSlot) (protocol.CloseCode, string, error) {
	if s.banned(user) {
		return protocol.CloseRemoved, resultRemoved, errBanned
	}
	if !p.assignUser(user) {
		return protocol.CloseTooManyConnections, resultTooManyOfUser, errNoCapacity
	}
	return 0, "", nil
}

// rejectOrError turns the place into one that is told with a close code, which a
// browser shows to its page; or returns why not, for the answer to a handshake.
func (p *admissionSlot) rejectOrError(code protocol.CloseCode, result string, err error) error {
	if p.rejectAfterUpgrade(code, result) {
		return nil
	}
	return err
}

// setIdentity makes the connection somebody's: from here on it is served. It is
// called by who reads it, or before anybody does.
func (k *socket) setIdentity(identity auth.Identity) {
	k.identity = identity
	k.client = k.server.cfg.Hub.NewClient(k.conn, identity.User)
	secret, resumed := k.attachSession(k.offer, identity.User)
	k.offer = protocol.Handshake{} // secrets are not kept for longer than they are used
	k.identified.Store(true)
	k.server.expiry.set(k, identity.Expires)
	k.conn.Send(k.server.welcome(secret, resumed, &identity))
}

// authenticate does what an auth frame asks for: it introduces who has not
// been, or goes on with a fresh token of the same user. Ends says that the
// connection is over, and was told so.
func (k *socket) authenticate(r *protocol.Request) (ends bool, err error) {
	identity, err := k.server.verify(context.Background(), r.Token)
	if !k.identified.Load() {
		return k.authenticateFirst(r, identity, err)
	}
	if err == nil && identity.User != k.identity.User {
		err = errOtherUser
	}
	if err != nil {
		return false, err // the old token goes on
	}
	k.identity = identity
	k.server.expiry.set(k, identity.Expires)
	// What the new token does not open any more is left before the answer.
	k.client.Restrict(func(room message.Room) bool { return identity.May(room, auth.Join) })
	k.conn.Send(protocol.Authenticated(r.Ref, identity.User, untilExpiry(identity.Expires)))
	return false, nil
}

// authenticateFirst introduces who brings a token in the first frame; a wrong one is the
// last that it may send.
func (k *socket) authenticateFirst(r *protocol.Request, identity auth.Identity, err error) (ends bool, _ error) {
	s := k.server
	code := protocol.CloseUnauthorized
	if err == nil {
		code, _, err = s.admitUser(identity.User, k.admission)
	}
	if err != nil && protocol.ErrorFor(err).Code == protocol.CodeUnavailable && code == protocol.CloseUnauthorized {
		return false, err // nothing is known about it: it may be sent again
	}
	if err != nil {
		k.sendError(r, err)
		k.conn.CloseWith(code)
		return true, nil
	}
	k.admission.register(k)
	k.setIdentity(identity)
	k.conn.Send(protocol.Authenticated(r.Ref, identity.User, untilExpiry(identity.Expires)))
	if s.banned(identity.User) { // the bar may have come just before enrol
		k.conn.CloseWith(protocol.CloseRemoved)
		return true, nil
	}
	return false, nil
}

// requestActions are what the requests are that need a right.
var requestActions = map[protocol.Type]auth.Action{
	protocol.TypeJoin:     auth.Join,
	protocol.TypeHistory:  auth.Read,
	protocol.TypePresence: auth.Read,
	protocol.TypePublish:  auth.Publish,
	protocol.TypeSignal:   auth.Signal,
}

// permit says whether the client may do what it asks for; leaving needs no
// right.
func (k *socket) permit(r *protocol.Request) error {
	action, guarded := requestActions[r.Type]
	if !guarded || k.identity.May(r.Room, action) {
		return nil
	}
	if r.Room.Reserved() {
		return protocol.ErrReserved
	}
	return forbidden(action)
}

// forbidden tells which right is missing, and nothing of the room: whether it
// exists is for who may read it.
func forbidden(action auth.Action) error {
	right := "r"
	if action == auth.Publish || action == auth.Signal {
		right = "w"
	}
	return &protocol.Error{Code: protocol.CodeForbidden, Message: "this needs the right " + right + " in this room, which the token or AUTH_ANONYMOUS does not give"}
}

// untilExpiry is how long a token goes on; 0 for one without an end.
func untilExpiry(expires time.Time) time.Duration {
	if expires.IsZero() {
		return 0
	}
	return max(time.Until(expires), time.Millisecond)
}
