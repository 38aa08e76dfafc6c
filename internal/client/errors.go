package client

import (
	"errors"
	"fmt"
	"time"
)

var (
	// ErrClosed: the client was closed.
	ErrClosed = errors.New("the client is closed")

	// ErrOutcomeUnknown: the message was sent, and no answer arrived in time. It
	// may be stored or not. Publishing it again with the same id is safe for as
	// long as the service remembers ids (ID_WINDOW).
	ErrOutcomeUnknown = errors.New("outcome unknown: the message may be stored or not")

	// ErrUserChanged: the connection is another user's than the publish, which was
	// therefore not sent again.
	ErrUserChanged = errors.New("the connection is another user's now")

	// ErrTooLarge: the frame is larger than the service's max_frame. It was not
	// stored.
	ErrTooLarge = errors.New("the message is larger than the service accepts")

	// ErrBusy: MaxPending publishes have no answer yet, or the connection's send
	// queue is full.
	ErrBusy = errors.New("too many requests are waiting to be sent or answered")

	// ErrPending: a publish with the same id in the same room has no answer yet.
	ErrPending = errors.New("a publish with this id is pending")

	// ErrJoined: the client has already joined the room, and Join joins it alone.
	ErrJoined = errors.New("the room is already joined")

	// ErrLeft: Leave was called while Join waited.
	ErrLeft = errors.New("the room was left before the join was answered")

	// ErrOffline: there is no connection, and signals are not queued.
	ErrOffline = errors.New("not connected")

	// ErrNoToken: Options.Token is not set, or has returned no token.
	ErrNoToken = errors.New("there is no token")

	// ErrInvalidData: the data is not a JSON value.
	ErrInvalidData = errors.New("the data is not valid JSON")
)

// An Error is an error frame: the service refused a request.
type Error struct {
	Code       string        // as in the frame: conflict, forbidden, ...
	Message    string        // for people
	RetryAfter time.Duration // 0 when the frame has none
}

func (e *Error) Error() string { return fmt.Sprintf("the service answered %s: %s", e.Code, e.Message) }

// temporary reports whether the same request may succeed later.
func (e *Error) temporary() bool {
	return e.Code == "unavailable" || e.Code == "rate_limited"
}

// retryDelay returns how long to wait before the request is repeated: the time
// that the service asks for, at most a minute, plus a random part of up to half
// of it, so that clients that were refused together do not retry together.
func (e *Error) retryDelay(random func() float64) time.Duration {
	delay := time.Second
	if e.RetryAfter > 0 {
		delay = min(e.RetryAfter, time.Minute)
	}
	return delay + time.Duration(random()*float64(delay)/2)
}

// A ClosedError says that the service closed the connection, or refused the
// handshake, for good. Code is the close code, or the one that stands for the
// refusal; Err is what the connection returned.
type ClosedError struct {
	Code int
	Err  error
}

func (e *ClosedError) Error() string {
	return fmt.Sprintf("the service rejected the client with close code %d: %v", e.Code, e.Err)
}

func (e *ClosedError) Unwrap() error { return e.Err }
