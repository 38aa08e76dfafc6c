package auth

import "errors"

// The reasons why a token is refused. Each error of Verify wraps exactly one of
// these, and its text never contains any part of the token.
var (
	// ErrMissing means that there is no token at all.
	ErrMissing = errors.New("no token was given")

	// ErrMalformed means that the bytes are not a token as this service accepts it,
	// or that a claim is missing or has a wrong type.
	ErrMalformed = errors.New("the token is malformed")

	// ErrSignature means that none of the keys made this signature.
	ErrSignature = errors.New("the token's signature is wrong")

	// ErrAlgorithm means that the token names an algorithm for which there is no
	// key.
	ErrAlgorithm = errors.New("the token's algorithm is not accepted")

	// ErrExpired means that the token has expired. A fresh one helps.
	ErrExpired = errors.New("the token has expired")

	// ErrNotYet means that the token is not valid yet: the clock of the issuer or
	// of this node is wrong.
	ErrNotYet = errors.New("the token is not valid yet")

	// ErrIssuer means that the token's issuer is not AUTH_ISSUER.
	ErrIssuer = errors.New("the token's issuer is not accepted")

	// ErrAudience means that none of the token's audiences is in AUTH_AUDIENCE.
	ErrAudience = errors.New("the token is for another audience")

	// ErrUser means that the claim sub can't be the name of a user.
	ErrUser = errors.New("the token's user is not accepted")

	// ErrRooms means that the claim rooms is not an object of patterns with rights.
	ErrRooms = errors.New("the token's rooms are not accepted")

	// ErrUnavailable means that the keys could not be fetched, so that the token
	// could not be checked. It is not a refusal: the client may try again.
	ErrUnavailable = errors.New("tokens can't be checked at the moment")
)

// Two of the values of the label result of auth_tokens_total. The others are in
// causes.
const (
	resultOK          = "ok"
	resultUnavailable = "unavailable"
)

// causes is the closed set of reasons, each with its value of the label result.
var causes = []struct {
	err  error
	name string
}{
	{ErrUnavailable, resultUnavailable}, // first: it may wrap a check that failed
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
}

// Cause returns the reason of an error of Verify as one word of a closed set, for
// metrics. It returns ok for nil.
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
