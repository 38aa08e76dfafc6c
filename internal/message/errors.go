package message

import (
	"errors"
	"fmt"
	"time"
)

var (
	// ErrConflict means that the id was used before in this room by this user,
	// with other data. Nothing was stored.
	ErrConflict = errors.New("id was used before with other data")

	// ErrUnavailable means that the log did not answer in time. Whether the
	// message was stored is unknown: send it again with the same id.
	ErrUnavailable = errors.New("the log is not available")

	// ErrRejected means that the database refused this message because of its
	// content. Nothing was stored, and sending it again will not help.
	ErrRejected = errors.New("the database refused the message")

	// ErrClosed means that the called component has been shut down.
	ErrClosed = errors.New("shutting down")
)

// RetryAfter is how long clients should wait after ErrUnavailable.
const RetryAfter = time.Second

// An InvalidError names the field of a request that breaks a bound, and the
// bound. Reason completes a sentence that begins with Field.
type InvalidError struct {
	Field  string
	Reason string
}

// Error implements error.
func (e *InvalidError) Error() string { return e.Field + " " + e.Reason }

// A BatchError names the publication that made a whole batch fail. Nothing of
// the batch was stored.
type BatchError struct {
	Index int // in the batch, from 0
	Err   error
}

// Error implements error.
func (e *BatchError) Error() string {
	return fmt.Sprintf("message %d of the batch: %v", e.Index, e.Err)
}

// Unwrap returns Err, for errors.Is and errors.As.
func (e *BatchError) Unwrap() error { return e.Err }
