package client

import (
	"errors"
	"fmt"
	"time"
)

var (
	// ErrClosed: the client was closed.
	ErrClosed = errors.New("the client is closed")

	// ErrOutcomeUnknown: the message was sent and no answer came in time. It
	// may be stored or not. Publishing it again with the same id is safe as
	// long as the service remembers ids.
	ErrOutcomeUnknown = errors.New("outcome unknown: the message may be stored or not")

	// ErrTooLarge: the frame is over the service's max_frame. Nothing was sent.
	ErrTooLarge = errors.New("the message is larger than the service takes")

	// ErrBusy: too much waits to be sent or answered.
	ErrBusy = errors.New("too much waits to be sent")

	// ErrPending: a publish of the same id in the same room is not answered yet.
	ErrPending = errors.New("this id is being published")

	// ErrJoined: the room has been joined before.
	ErrJoined = errors.New("the room is joined already")

	// ErrLeft: Leave was called while Join waited.
	ErrLeft = errors.New("the room was left meanwhile")

	// ErrOffline: there is no connection, and signals are not kept.
	ErrOffline = errors.New("not connected")

	// ErrNoToken: there is no Options.Token to ask for one.
	ErrNoToken = errors.New("no way to get a token was given")

	// ErrInvalidData: the data is no JSON value.
	ErrInvalidData = errors.New("the data is not valid JSON")
)

// An Error is the service's answer to a request that it refused.
type Error struct {
	Code       string // as in the error frame: conflict, forbidden, ...
	Message    string
	RetryAfter time.Duration // 0 when it was not told
}

func (e *Error) Error() string { return fmt.Sprintf("the service answered %s: %s", e.Code, e.Message) }

// temporary says that the same request may succeed later.
func (e *Error) temporary() bool {
	return e.Code == "unavailable" || e.Code == "rate_limited"
}

// retryDelay is how long to wait before the request is repeated: what the service
// asks for, a minute at most, and up to half as long again by the dice, so that
// a crowd that was refused together does not come back together.
func (e *Error) retryDelay(random func() float64) time.Duration {
	delay := time.Second
	if e.RetryAfter > 0 {
		delay = min(e.RetryAfter, time.Minute)
	}
	return delay + time.Duration(random()*float64(delay)/2)
}

// A ClosedError tells with which close code the service turned the client away.
type ClosedError struct {
	Code int
	Err  error
}

func (e *ClosedError) Error() string {
	return fmt.Sprintf("turned away with code %d: %v", e.Code, e.Err)
}

func (e *ClosedError) Unwrap() error { return e.Err }
