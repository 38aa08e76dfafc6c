package conn

import (
	"errors"
	"syscall"
)

// A directWriter writes to a socket without ever blocking. Conn.mu guards it.
type directWriter struct {
	raw syscall.RawConn // nil: writeLoop does all writes

	// The arguments and results of tryWrite. They are fields so that a write
	// allocates nothing.
	attempt func(fd uintptr) bool
	buf     []byte
	n       int
	err     error
}

// possible reports whether the connection is one that tryWrite can write to.
func (w *directWriter) possible() bool { return w.raw != nil }

// tryWrite writes what the socket accepts now, and returns how many bytes.
func (w *directWriter) tryWrite(p []byte) (int, error) {
	w.buf, w.n, w.err = p, 0, nil
	// RawConn, never a saved file descriptor: RawConn keeps the descriptor from
	// being closed and reused for another user's connection meanwhile.
	err := w.raw.Write(w.attempt)
	w.buf = nil
	if err == nil {
		err = w.err
	}
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR) {
		err = nil
	}
	return max(w.n, 0), err
}
