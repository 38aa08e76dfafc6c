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

// queryToken is the parameter of the query that may carry a token, where
// AUTH_QUERY_TOKEN allows it.
const queryToken = "access_token"

// readOffer reads what a handshake brings. More than one token is refused: of
// two nobody knows which one a proxy on the way has checked.
func (s *Server) readOffer(r *http.Request) (protocol.Offer, error) {
	if r.ContentLength != 0 {
		// What is the body to whoever stands before us would be frames to us.
		return protocol.Offer{}, &message.InvalidError{Field: "Content-Length", Reason: "must be 0: a handshake has no body"}
	}
	o, err := protocol.ReadOffer(r)
	if err != nil || !s.cfg.AuthQueryToken {
		return o, err
	}
	tokens := r.URL.Query()[queryToken]
	switch {
	case len(tokens) == 0:
	case len(tokens) > 1 || o.Token != "":
		return protocol.Offer{}, &message.InvalidError{Field: "token", Reason: "must be given once"}
	case tokens[0] == "" || len(tokens[0]) > protocol.MaxToken:
		return protocol.Offer{}, &message.InvalidError{Field: "token", Reason: "must be of 1 to 8192 bytes"}
	default:
		o.Token = tokens[0]
	}
	return o, nil
}

// verify is Verify, bounded. The error is for the client to see.
func (s *Server) verify(ctx context.Context, token string) (auth.Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, verifyTimeout)
	defer cancel()
	who, err := s.cfg.Verifier.Verify(ctx, token)
	switch {
	case errors.Is(err, auth.ErrUnavailable):
		return who, &protocol.Error{Code: protocol.CodeUnavailable, Message: err.Error(), RetryAfter: message.RetryAfter}
	case err != nil:
		return who, &protocol.Error{Code: protocol.CodeUnauthorized, Message: err.Error()}
	}
	return who, nil
}

var (
	errNoToken = &protocol.Error{Code: protocol.CodeUnauthorized, Message: "send an auth frame with a token first: nobody comes in without one"}
	errBarred  = &protocol.Error{Code: protocol.CodeForbidden, Message: "this user was removed, and is kept out for a time"}
	errOther   = &protocol.Error{Code: protocol.CodeForbidden, Message: "the token is another user's: open another connection with it"}
)

// How connections are counted that are turned away for who they are.
const (
	resultUnauthorized = "unauthorized"
	resultRemoved      = "removed"
	resultManyOfUser   = "too_many_user"
)

// A guest is who a handshake brings, as far as it is known.
type guest struct {
	who auth.Identity
	// why tells of who is turned away, for the audit log.
	why string
	// known is false for who has brought no token, where one is needed: an
	// auth frame is awaited.
	known bool
}

// receive finds out who comes with a handshake, and gives the place to them or
// makes it one of who is turned away. The error is for who can't even be told
// by a close code; it is one of HTTP.
func (s *Server) receive(ctx context.Context, o protocol.Offer, p *place) (guest, error) {
	if p.told != 0 {
		return guest{}, nil
	}
	if o.Token == "" {
		who, open := s.cfg.Verifier.Anonymous()
		return guest{who: who, known: open}, nil
	}
	who, err := s.verify(ctx, o.Token)
	if err != nil {
		if e := protocol.ErrorFor(err); e.Code == protocol.CodeUnavailable {
			return guest{}, e // no refusal: it comes back with the same token
		}
		return guest{why: err.Error()}, p.orTell(protocol.CloseToken, resultUnauthorized, err)
	}
	code, result, err := s.welcomes(who.User, p)
	if err != nil {
		return guest{who: who, why: err.Error()}, p.orTell(code, result, err)
	}
	return guest{who: who, known: true}, nil
}

// welcomes claims the place for a user, unless that one is kept out or has too
// many; then it says how to tell.
func (s *Server) welcomes(user string, p *place) (protocol.CloseCode, string, error) {
	if s.barred(user) {
		return protocol.CloseRemoved, resultRemoved, errBarred
	}
	if !p.claim(user) {
		return protocol.CloseTooMany, resultManyOfUser, errNoPlace
	}
	return 0, "", nil
}

// orTell turns the place into one that is told with a close code, which a
// browser shows to its page; or returns why not, for the answer to a handshake.
func (p *place) orTell(code protocol.CloseCode, result string, why error) error {
	if p.turnAway(code, result) {
		return nil
	}
	return why
}

// introduce makes the connection somebody's: from here on it is served. It is
// called by who reads it, or before anybody does.
func (k *socket) introduce(who auth.Identity) {
	k.who = who
	k.client = k.server.cfg.Hub.NewClient(k.conn, who.User)
	secret, resumed := k.hold(k.offer, who.User)
	k.offer = protocol.Offer{} // secrets are not kept for longer than they are used
	k.introduced.Store(true)
	k.server.expiry.set(k, who.Expires)
	k.conn.Send(k.server.welcome(secret, resumed, &who))
}

// authenticate does what an auth frame asks for: it introduces who has not
// been, or goes on with a fresh token of the same user. Ends says that the
// connection is over, and was told so.
func (k *socket) authenticate(r *protocol.Request) (ends bool, err error) {
	who, err := k.server.verify(context.Background(), r.Token)
	if !k.introduced.Load() {
		return k.enter(r, who, err)
	}
	if err == nil && who.User != k.who.User {
		err = errOther
	}
	if err != nil {
		return false, err // the old token goes on
	}
	k.who = who
	k.server.expiry.set(k, who.Expires)
	// What the new token does not open any more is left before the answer.
	k.client.Restrict(func(room message.Room) bool { return who.May(room, auth.Join) })
	k.conn.Send(protocol.Authenticated(r.Ref, who.User, untilEnd(who.Expires)))
	return false, nil
}

// enter introduces who brings a token in the first frame; a wrong one is the
// last that it may send.
func (k *socket) enter(r *protocol.Request, who auth.Identity, err error) (ends bool, _ error) {
	s := k.server
	code := protocol.CloseToken
	if err == nil {
		code, _, err = s.welcomes(who.User, k.place)
	}
	if err != nil && protocol.ErrorFor(err).Code == protocol.CodeUnavailable && code == protocol.CloseToken {
		return false, err // nothing is known about it: it may be sent again
	}
	if err != nil {
		k.answer(r, err)
		k.conn.CloseWith(code)
		return true, nil
	}
	k.place.enrol(k)
	k.introduce(who)
	k.conn.Send(protocol.Authenticated(r.Ref, who.User, untilEnd(who.Expires)))
	if s.barred(who.User) { // the bar may have come just before enrol
		k.conn.CloseWith(protocol.CloseRemoved)
		return true, nil
	}
	return false, nil
}

// actions are what the requests are that need a right.
var actions = map[protocol.Type]auth.Action{
	protocol.TypeJoin:     auth.Join,
	protocol.TypeHistory:  auth.Read,
	protocol.TypePresence: auth.Read,
	protocol.TypePublish:  auth.Publish,
	protocol.TypeSignal:   auth.Signal,
}

// permit says whether the client may do what it asks for; leaving needs no
// right.
func (k *socket) permit(r *protocol.Request) error {
	action, guarded := actions[r.Type]
	if !guarded || k.who.May(r.Room, action) {
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

// untilEnd is how long a token goes on; 0 for one without an end.
func untilEnd(expires time.Time) time.Duration {
	if expires.IsZero() {
		return 0
	}
	return max(time.Until(expires), time.Millisecond)
}
