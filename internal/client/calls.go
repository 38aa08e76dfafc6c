package client

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"switchyard/internal/message"
)

// A call is a request with one answer. It changes nothing, so the client repeats
// it on the next connection until its caller gives up.
type call struct {
	ref   string
	order uint64 // rises with each call
	frame []byte
	// auth: the call sends a fresh token, at once. It completes with a connection that is
	// opened after it, which has a token as fresh. An earlier one, as that of a move may
	// be, gets this token: connectCount is how many were tried before the call.
	auth         bool
	connectCount uint64
	conn         *connection // where it was sent last, or is to be sent; nil while it waits
	// own gets the outcome of a call that the client makes by itself, with mu held. It
	// is dropped with its connection.
	own        func(*serverFrame, error)
	presenceOf message.Room // set if the call requests presence
	// onSent is called once it is sent; it may be nil.
	onSent func(*connection)

	done   chan struct{} // closed once answer or err is set; nil for a call of the client itself
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
	waiting []*call          // those to be sent on the current connection, by order
	count   uint64           // calls so far
	timer   *time.Timer      // sends the next one, or nil
}

// do makes a call and waits for its answer. It locks mu itself. The error says what
// was being done. A call with a token has no answer when there was no connection, or
// when a later one has a token that is as fresh.
func (c *calls) do(ctx context.Context, what string, call *call) (*serverFrame, error) {
	call.done = make(chan struct{})
	var made bool
	var err error
	c.locked(func() {
		err = c.err
		if made = err == nil && (!call.auth || call.conn != nil) && !c.hasLaterToken(call); made {
			c.add(call)
			c.pump()
		}
	})
	if !made {
		return nil, err
	}
	select {
	case <-call.done:
	case <-ctx.Done():
		c.locked(func() {
			c.complete(call.ref, nil, ctx.Err())
			c.pump()
		})
	}
	if call.err != nil {
		return nil, fmt.Errorf("%s: %w", what, call.err)
	}
	return call.answer, nil
}

// add accepts a call. The caller calls pump.
func (c *calls) add(call *call) {
	c.count++
	call.order = c.count
	c.pending[call.ref] = call
	if call.auth {
		c.sendToken(call)
	} else {
		c.waiting = append(c.waiting, call)
	}
}

// sendToken sends a fresh token on the current connection, if there is one.
func (c *calls) sendToken(call *call) {
	if call.conn = c.current; call.conn != nil {
		call.conn.sock.send(call.frame)
	}
}

// hasLaterToken reports whether the current connection got its token after the call was
// made.
func (c *calls) hasLaterToken(call *call) bool {
	return call.auth && c.current != nil && c.current.number > call.connectCount
}

// pump sends the calls that may be sent now, in order.
func (c *calls) pump() {
	if c.timer != nil {
		c.timer.Stop()
	}
	if c.current == nil {
		return
	}
	for len(c.waiting) > 0 {
		call := c.waiting[0]
		if wait := c.current.pacer.wait(kindHistory, len(call.frame)); wait > 0 {
			if wait < untilAnswered {
				c.timer = c.afterFunc(wait, c.pump)
			}
			return
		}
		c.waiting = c.waiting[1:]
		call.conn = c.current
		c.current.request(call.frame, call.ref, kindHistory)
		if call.onSent != nil {
			call.onSent(c.current)
		}
	}
}

// awaitsPresence reports whether a request for the presence of a room is still to be
// sent.
func (c *calls) awaitsPresence(room message.Room) bool {
	return slices.ContainsFunc(c.waiting, func(call *call) bool { return call.presenceOf == room })
}

// wait puts a call in its place among those that wait.
func (c *calls) wait(call *call) {
	call.conn = nil
	at, _ := slices.BinarySearchFunc(c.waiting, call, byCall)
	c.waiting = slices.Insert(c.waiting, at, call)
}

func byCall(a, b *call) int { return cmp.Compare(a.order, b.order) }

// reset has the calls repeated on a new current connection. The caller calls pump.
func (c *calls) reset() {
	c.waiting = nil
	for ref, call := range c.pending {
		switch {
		case call.own != nil:
			delete(c.pending, ref)
		case c.hasLaterToken(call):
			c.complete(ref, nil, nil)
		case call.auth:
			c.sendToken(call)
		default:
			c.wait(call)
		}
	}
}

// fail fails every call with cause.
func (c *calls) fail(cause error) {
	for ref, call := range c.pending {
		if call.own != nil {
			delete(c.pending, ref)
			continue
		}
		c.complete(ref, nil, cause)
	}
}

// handleError reports whether ref is that of a call. After a temporary error the
// client repeats the call on this connection; on a new one it is repeated in any
// case.
func (c *calls) handleError(conn *connection, ref string, err *Error) bool {
	call := c.pending[ref]
	switch {
	case call == nil:
		return false
	case !err.temporary():
		c.complete(ref, nil, err)
	case call.conn != conn: // it was sent on another connection since
	case err.Code == "rate_limited" && !call.auth:
		c.wait(call) // the connection's pacer says when to send it again
	default:
		c.afterFunc(err.retryDelay(c.opts.random), func() {
			switch {
			case c.pending[ref] != call || call.conn != conn || c.current != conn:
			case call.auth:
				conn.sock.send(call.frame)
			default:
				c.wait(call)
				c.pump()
			}
		})
	}
	return true
}

// complete completes the call with that ref and reports whether there was one.
func (c *calls) complete(ref string, answer *serverFrame, err error) bool {
	call := c.pending[ref]
	if call == nil {
		return false
	}
	delete(c.pending, ref)
	if at, found := slices.BinarySearchFunc(c.waiting, call, byCall); found {
		c.waiting = slices.Delete(c.waiting, at, at+1)
	}
	if call.conn != nil {
		call.conn.pacer.answered(ref) // or it will not be any more
	}
	if call.own != nil {
		call.own(answer, err)
		return true
	}
	call.answer, call.err = answer, err
	close(call.done)
	return true
}

// signal sends a frame that has no answer, and that is not kept.
func (c *calls) signal(room message.Room, frame []byte) error {
	switch {
	case c.err != nil:
		return c.err
	case c.current == nil || c.current.silent:
		return ErrOffline
	case c.current.sock.full():
		return ErrBusy
	}
	if err := c.checkSize(frame, room); err != nil {
		return err
	}
	if !c.current.pacer.maySpend(kindPublish, len(frame)) {
		return ErrBusy
	}
	c.current.send(frame, kindPublish)
	return nil
}
