package client

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"switchyard/internal/message"
)

// A call is a request that one answer ends. Reading twice does no harm, so a
// call is repeated on the next connection until its caller gives up.
type call struct {
	frame  []byte
	result chan callResult // takes one without blocking
	// auth says that it brings a fresh token: the next connection has one.
	auth bool
}

type callResult struct {
	history  History
	presence Presence
	err      error
}

// doCall makes a call and waits for its answer. The caller holds mu, which ask
// gives up.
func (c *Client) doCall(ctx context.Context, ref string, call *call) callResult {
	call.result = make(chan callResult, 1)
	c.calls[ref] = call
	if c.current != nil {
		c.current.sock.send(call.frame)
	}
	c.mu.Unlock()
	select {
	case a := <-call.result:
		return a
	case <-ctx.Done():
		c.mu.Lock()
		delete(c.calls, ref)
		c.mu.Unlock()
		return callResult{err: ctx.Err()}
	}
}

// resendCall makes a call again on a new connection. The caller holds mu.
func (c *Client) resendCall(conn *connection, ref string) {
	if call := c.calls[ref]; !call.auth {
		conn.sock.send(call.frame)
		return
	}
	c.calls[ref].result <- callResult{}
	delete(c.calls, ref)
}

// A HistoryRange asks for stored messages: the newest below Before, or those
// from After+1 upwards; with neither, the newest. Limit 0 leaves the number to
// the service; it sends at most 200 messages and 256 KiB at once.
type HistoryRange struct {
	Before, After message.Seq
	Forward       bool // count from After, which may be 0
	Limit         int
}

// History reads stored messages of a room, which need not be joined.
func (c *Client) History(ctx context.Context, room message.Room, r HistoryRange) (History, error) {
	if _, err := message.ParseRoom(string(room)); err != nil {
		return History{}, err
	}
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return History{}, c.err
	}
	ref := c.nextRef()
	b := newRequest("history", ref, room)
	if r.Forward || r.After > 0 {
		b = b.number("after", int64(r.After))
	} else if r.Before > 0 {
		b = b.number("before", int64(r.Before))
	}
	if r.Limit > 0 {
		b = b.number("limit", int64(r.Limit))
	}
	a := c.doCall(ctx, ref, &call{frame: b.end()})
	if a.err != nil {
		return History{}, fmt.Errorf("history of %s: %w", room, a.err)
	}
	return a.history, nil
}

// Presence returns who is in a room. If the client has joined it, changes are
// told to its handler from then on.
func (c *Client) Presence(ctx context.Context, room message.Room) (Presence, error) {
	if _, err := message.ParseRoom(string(room)); err != nil {
		return Presence{}, err
	}
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return Presence{}, c.err
	}
	if r := c.rooms[room]; r != nil {
		r.watched = true
	}
	ref := c.nextRef()
	a := c.doCall(ctx, ref, &call{frame: newRequest("presence", ref, room).end()})
	if a.err != nil {
		return Presence{}, fmt.Errorf("presence in %s: %w", room, a.err)
	}
	return a.presence, nil
}

// handleCallError says whether the error was the answer to a call. A passing one
// leads to another try on this connection; the next one would repeat it anyway.
func (c *Client) handleCallError(ref string, err *Error) bool {
	if !err.temporary() {
		return c.completeCall(ref, callResult{err: err})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	conn := c.current
	if c.calls[ref] == nil {
		return false
	}
	time.AfterFunc(err.retryDelay(c.opts.random), func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if call := c.calls[ref]; call != nil && c.current == conn && conn != nil {
			conn.sock.send(call.frame)
		}
	})
	return true
}

// completeCall ends the call with that ref and says whether there was one.
func (c *Client) completeCall(ref string, a callResult) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	call := c.calls[ref]
	if call == nil {
		return false
	}
	delete(c.calls, ref)
	call.result <- a
	return true
}

// Signal sends an ephemeral event (a JSON value) to who is in the room now. It
// does not wait, and is not kept: ErrOffline when there is no connection.
func (c *Client) Signal(room message.Room, data json.RawMessage) error {
	if _, err := message.ParseRoom(string(room)); err != nil {
		return err
	}
	if !json.Valid(data) {
		return ErrInvalidData
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	frame := newRequest("signal", c.nextRef(), room).data(data).end()
	switch {
	case c.err != nil:
		return c.err
	case c.current == nil:
		return ErrOffline
	case c.current.sock.full():
		return ErrBusy
	}
	if err := c.checkSize(frame, room); err != nil {
		return err
	}
	c.current.sock.send(frame)
	return nil
}
