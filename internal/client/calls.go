package client

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"switchyard/internal/message"
)

// A call is a request with one answer. It changes nothing, so the client repeats
// it on the next connection until its caller gives up.
type call struct {
	frame []byte
	// auth: the call sends a fresh token on conn only. It is not repeated, because
	// the next connection has a fresh token of its own.
	auth bool
	conn *connection

	done   chan struct{} // closed once answer or err is set
	answer *serverFrame
	err    error // why there is no answer
}

// A HistoryRange selects a page of stored messages: the newest ones below Before,
// or those after After; with neither, the newest. Limit 0 leaves the number to the
// service, which sends at most 200 messages and 256 KiB a page.
type HistoryRange struct {
	Before, After message.Seq
	Forward       bool // count from After, which may be 0
	Limit         int
}

// The calls are the requests that wait for their answers.
type calls struct {
	*shared
	pending map[string]*call // by ref
}

// do makes a call and waits for its answer. It locks mu itself. The error says what
// was being done. A call with a token is not made, and its answer is nil, when its
// connection is not the current one anymore.
func (c *calls) do(ctx context.Context, ref, what string, call *call) (*serverFrame, error) {
	call.done = make(chan struct{})
	var made bool
	var err error
	c.locked(func() {
		err = c.err
		if made = err == nil && (!call.auth || (c.current != nil && c.current == call.conn)); made {
			c.pending[ref] = call
		}
		if made && c.current != nil {
			c.current.sock.send(call.frame)
		}
	})
	if !made {
		return nil, err
	}
	select {
	case <-call.done:
	case <-ctx.Done():
		c.locked(func() { c.complete(ref, nil, ctx.Err()) })
	}
	if call.err != nil {
		return nil, fmt.Errorf("%s: %w", what, call.err)
	}
	return call.answer, nil
}

// resend repeats the calls on a new current connection.
func (c *calls) resend() {
	for _, ref := range slices.Sorted(maps.Keys(c.pending)) {
		if call := c.pending[ref]; !call.auth {
			c.current.sock.send(call.frame)
			continue
		}
		c.complete(ref, nil, nil)
	}
}

// fail fails every call with cause.
func (c *calls) fail(cause error) {
	for ref := range c.pending {
		c.complete(ref, nil, cause)
	}
}

// handleError reports whether ref is that of a call. After a temporary error the
// client repeats the call on this connection; on a new one it is repeated in any
// case.
func (c *calls) handleError(ref string, err *Error) bool {
	if !err.temporary() {
		return c.complete(ref, nil, err)
	}
	conn := c.current
	if c.pending[ref] == nil {
		return false
	}
	c.afterFunc(err.retryDelay(c.opts.random), func() {
		if call := c.pending[ref]; call != nil && c.current == conn && conn != nil {
			conn.sock.send(call.frame)
		}
	})
	return true
}

// complete completes the call with that ref and reports whether there was one.
func (c *calls) complete(ref string, answer *serverFrame, err error) bool {
	call := c.pending[ref]
	if call == nil {
		return false
	}
	delete(c.pending, ref)
	call.answer, call.err = answer, err
	close(call.done)
	return true
}

// signal sends a frame that has no answer, and that is not kept.
func (c *calls) signal(room message.Room, frame []byte) error {
	switch {
	case c.err != nil:
		return c.err
	case c.current == nil:
		return ErrOffline
	case c.current.sock.full():
		return ErrBusy
	}
	err := c.checkSize(frame, room)
	if err == nil {
		c.current.sock.send(frame)
	}
	return err
}
