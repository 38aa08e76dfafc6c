package message

import (
	"errors"
	"fmt"
	"time"
)

var (
	// ErrConflict says: the id was used before in this room by this user, with
	// other data. Nothing was stored.
	ErrConflict = errors.New("id was used before with other data")

	// ErrUnavailable says: the log could not be reached in time. Whether the
	// message was stored is unknown: resend with the same id.
	ErrUnavailable = errors.New("the log is not available")

	// ErrRejected says: the database refused this message for what it holds.
	// Nothing was stored; resending it will not help.
	ErrRejected = errors.New("the database refused the message")

	// ErrClosed says: the part that was asked has been shut down.
	ErrClosed = errors.New("shutting down")
)

// RetryAfter is what clients are told to wait after ErrUnavailable.
const RetryAfter = time.Second

// An InvalidError names the field of a request that breaks a bound, and the bound.
type InvalidError struct {
	Field  string
	Reason string
}

func (e *InvalidError) Error() string { return e.Field + " " + e.Reason }

// A BatchError names the publication for which a whole batch was refused.
// Nothing of the batch was stored.
type BatchError struct {
	Index int // in the batch, from 0
	Err   error
}

func (e *BatchError) Error() string {
	return fmt.Sprintf("message %d of the batch: %v", e.Index, e.Err)
}

func (e *BatchError) Unwrap() error { return e.Err }
