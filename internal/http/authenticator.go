package http

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"time"

	"switchyard/internal/admission"
	"switchyard/internal/auth"
	"switchyard/internal/message"
	"switchyard/internal/protocol"
	"switchyard/internal/ratelimit"
)

// A Verifier turns a token into an identity. Its errors contain no part of the
// token. It is safe for concurrent use.
type Verifier interface {
	Verify(ctx context.Context, token string) (auth.Identity, error)
	// Anonymous returns the identity of clients without a token, and whether such
	// clients may connect.
	Anonymous() (auth.Identity, bool)
}

// An authenticator says whom a token belongs to, and whether that user may connect.
type authenticator struct {
	verifier Verifier
	bans     Bans
	failures *failureLimit
	// checks limits how many tokens of an address are checked, by network; see connectLimit.
	checks *ratelimit.Keyed
	// connects limits how often a user may connect, by user; see connectLimit.
	connects   *ratelimit.Keyed
	now        func() time.Duration
	queryToken bool // a token may be in the query
}

// verifyTimeout bounds the check of a token, which may wait for keys.
const verifyTimeout = 5 * time.Second

// queryTokenParam is the query parameter that may carry a token if AUTH_QUERY_TOKEN
// allows it.
const queryTokenParam = "access_token"

// readHandshake reads the token and the session that a handshake offers. It refuses a
// request with more than one token, because it can't know which one a proxy on the way has checked.
func (a *authenticator) readHandshake(r *http.Request) (protocol.Handshake, error) {
	if r.ContentLength != 0 {
		// A proxy would read these bytes as the body, and this node as frames.
		return protocol.Handshake{}, &message.InvalidError{Field: "Content-Length", Reason: "must be 0: a handshake has no body"}
	}
	o, err := protocol.ReadHandshake(r)
	if err != nil || !a.queryToken {
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

// verify calls Verify with a timeout, for a client of this network. The client sees its
// error.
func (a *authenticator) verify(ctx context.Context, network netip.Prefix, token string) (auth.Identity, error) {
	if wait := a.failures.wait(network); wait > 0 {
		return auth.Identity{}, rateLimited("too many tokens with a wrong signature came from this address", wait)
	}
	if network.IsValid() {
		if wait := a.checks.Take(network.String(), a.now(), 1); wait > 0 {
			return auth.Identity{}, rateLimited("too many tokens a second came from this address", wait)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, verifyTimeout)
	defer cancel()
	identity, err := a.verifier.Verify(ctx, token)
	if errors.Is(err, auth.ErrSignature) {
		a.failures.record(network)
	}
	switch {
	case errors.Is(err, auth.ErrUnavailable):
		return identity, &protocol.Error{Code: protocol.CodeUnavailable, Message: err.Error(), RetryAfter: message.RetryAfter}
	case err != nil:
		return identity, &protocol.Error{Code: protocol.CodeUnauthorized, Message: err.Error()}
	}
	return identity, nil
}

// The values of the label result of websocket_connections_total for connections
// that are refused because of their user.
const (
	resultUnauthorized  = "unauthorized"
	resultRemoved       = "removed"
	resultTooManyOfUser = "too_many_user"
	resultRateLimited   = "rate_limited"
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
func (a *authenticator) authenticateHandshake(ctx context.Context, network netip.Prefix, o protocol.Handshake, slot *admission.Slot) (clientIdentity, error) {
	if slot.CloseCode() != 0 {
		return clientIdentity{}, nil
	}
	if o.Token == "" {
		identity, open := a.verifier.Anonymous()
		return clientIdentity{identity: identity, known: open}, nil
	}
	identity, err := a.verify(ctx, network, o.Token)
	if err != nil {
		if e := protocol.ErrorFor(err); e.Code != protocol.CodeUnauthorized {
			return clientIdentity{}, e // not a refusal: the client retries with the same token
		}
		return clientIdentity{rejection: err.Error()}, slot.RejectOrError(protocol.CloseUnauthorized, resultUnauthorized, err)
	}
	if err := a.checkConnects(identity.User); err != nil {
		return clientIdentity{identity: identity}, err
	}
	code, result, err := a.admitUser(identity.User, slot)
	if err != nil {
		return clientIdentity{identity: identity, rejection: err.Error()}, slot.RejectOrError(code, result, err)
	}
	return clientIdentity{identity: identity, known: true}, nil
}

// checkConnects counts a connection of a user, or returns the error that the user connects
// too often.
func (a *authenticator) checkConnects(user string) error {
	if user == "" {
		return nil
	}
	if wait := a.connects.Take(user, a.now(), 1); wait > 0 {
		return rateLimited("this user connects too often", wait)
	}
	return nil
}

// admitUser assigns the slot to a user, unless the user is banned or has too many
// connections. Then it returns the close code, the metric's result and the error.
func (a *authenticator) admitUser(user string, slot *admission.Slot) (protocol.CloseCode, string, error) {
	if a.banned(user) {
		return protocol.CloseRemoved, resultRemoved, errBanned
	}
	if !slot.AssignUser(user) {
		return protocol.CloseTooManyConnections, resultTooManyOfUser, errTooManyOfUser
	}
	return 0, "", nil
}

// banned reports whether a user is banned. Anonymous users never are.
func (a *authenticator) banned(user string) bool {
	if user == "" {
		return false
	}
	_, banned := a.bans.Banned(user)
	return banned
}
