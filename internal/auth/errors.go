package auth

import "errors"

// Why a token is refused. Each error of Verify wraps exactly one of these; its
// text never holds any part of the token.
var (
	// ErrMissing says: there is no token at all.
	ErrMissing = errors.New("no token was given")

	// ErrMalformed says: these bytes are no token as this service takes them,
	// or a claim has a wrong type or is not there.
	ErrMalformed = errors.New("the token is malformed")

	// ErrSignature says: none of the keys made this signature.
	ErrSignature = errors.New("the token's signature is wrong")

	// ErrAlgorithm says: the token names an algorithm that none of the keys is for.
	ErrAlgorithm = errors.New("the token's algorithm is not accepted")

	// ErrExpired says: the token has ended. A fresh one helps.
	ErrExpired = errors.New("the token has expired")

	// ErrNotYet says: the token is from the future. One of two clocks is wrong.
	ErrNotYet = errors.New("the token is not valid yet")

	// ErrIssuer says: somebody else than AUTH_ISSUER made it.
	ErrIssuer = errors.New("the token's issuer is not accepted")

	// ErrAudience says: it was made for somebody else than AUTH_AUDIENCE.
	ErrAudience = errors.New("the token is for another audience")

	// ErrUser says: the claim sub can't be the name of a user.
	ErrUser = errors.New("the token's user is not accepted")

	// ErrRooms says: the claim rooms is not a list of patterns with rights.
	ErrRooms = errors.New("the token's rooms are not accepted")

	// ErrUnavailable says: the keys could not be fetched, so that nothing is
	// known about the token. It is no refusal: trying again makes sense.
	ErrUnavailable = errors.New("tokens can't be checked at the moment")
)

// The values of the label result of auth_tokens_total; the audit log uses them
// too.
const (
	resultOK          = "ok"
	resultUnavailable = "unavailable"
)

// causes is the closed set of what can be wrong.
var causes = []struct {
	err  error
	name string
}{
	{ErrMissing, "missing"},
	{ErrMalformed, "malformed"},
	{ErrSignature, "signature"},
	{ErrAlgorithm, "algorithm"},
	{ErrExpired, "expired"},
	{ErrNotYet, "not_yet"},
	{ErrIssuer, "issuer"},
	{ErrAudience, "audience"},
	{ErrUser, "user"},
	{ErrRooms, "rooms"},
	{ErrUnavailable, resultUnavailable},
}

// Cause names what an error of Verify is about, in one word of a closed set,
// for metrics and the audit log; it is ok for nil.
func Cause(err error) string {
	if err == nil {
		return resultOK
	}
	for _, c := range causes {
		if errors.Is(err, c.err) {
			return c.name
		}
	}
	return resultUnavailable
}
