package protocol

import (
	"errors"
	"time"

	"switchyard/internal/message"
)

// The codes of error frames.
const (
	CodeMalformed    = "malformed"      // not a JSON object, or no type
	CodeInvalid      = "invalid"        // a field breaks a bound; the message names both
	CodeUnknownType  = "unknown_type"   // no such request in this version
	CodeTooLarge     = "too_large"      // data over the bound
	CodeConflict     = "conflict"       // the id was used with other data
	CodeUnauthorized = "unauthorized"   // the request needs a valid token
	CodeForbidden    = "forbidden"      // the token does not allow it
	CodeRateLimited  = "rate_limited"   // not done: send it again after retry_after_ms
	CodeTooManyRooms = "too_many_rooms" // the connection is in as many rooms as it may be
	CodeUnavailable  = "unavailable"    // outcome unknown: send it again with the same id
	CodeInternal     = "internal"       // a fault of the service
)

// An Error is the answer to a request that failed. It contains nothing that is
// secret from the client.
type Error struct {
	Code    string
	Message string
	// RetryAfter is when to try again; 0 leaves it open.
	RetryAfter time.Duration
}

// Error implements error.
func (e *Error) Error() string { return e.Code + ": " + e.Message }

// ErrReserved refuses rooms that belong to the service.
var ErrReserved = &Error{Code: CodeForbidden, Message: "rooms that begin with _ belong to the service"}

// ErrorFor is the one table from errors to what clients receive. An unknown
// error is internal, and its text is not revealed.
func ErrorFor(err error) *Error {
	var known *Error
	var invalid *message.InvalidError
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &invalid):
		return &Error{Code: CodeInvalid, Message: invalid.Error()}
	case errors.Is(err, message.ErrConflict):
		return &Error{Code: CodeConflict, Message: "this id was used before with other data"}
	case errors.Is(err, message.ErrUnavailable), errors.Is(err, message.ErrClosed):
		return &Error{
			Code:       CodeUnavailable,
			Message:    "the log did not answer in time; try again, a publish with the same id",
			RetryAfter: message.RetryAfter,
		}
	case errors.Is(err, message.ErrRejected):
		return &Error{Code: CodeInternal, Message: "the message could not be stored"}
	}
	return &Error{Code: CodeInternal, Message: "something went wrong on our side"}
}
