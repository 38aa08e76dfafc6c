package client

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"switchyard/internal/message"
)

// A call is a request with one answer. It changes nothing, so the client repeats
// it on the next connection until its caller gives up.
type call struct {
	frame  []byte
	result chan callResult // has room for the one result
	// auth: the call sends a fresh token. It is not repeated, because the next
	// connection has a fresh token of its own.
	auth bool
}

// A callResult is the answer to a call, or why there is none.
type callResult struct {
	history  History
	presence Presence
	err      error
}

// doCall makes a call and waits for its answer. The caller holds mu, which doCall
// releases.
func (c *Client) doCall(ctx context.Context, ref string, call *call) callResult {
	call.result = make(chan callResult, 1)
	c.calls[ref] = call
	if c.current != nil {
		c.current.sock.send(call.frame)
	}
	c.mu.Unlock()
	select {
	case result := <-call.result:
		return result
	case <-ctx.Done():
		c.mu.Lock()
		delete(c.calls, ref)
		c.mu.Unlock()
		return callResult{err: ctx.Err()}
	}
}

// resendCall repeats a call on a new connection. The caller holds mu.
func (c *Client) resendCall(conn *connection, ref string) {
	if call := c.calls[ref]; !call.auth {
		conn.sock.send(call.frame)
		return
	}
	c.calls[ref].result <- callResult{}
	delete(c.calls, ref)
}

// A HistoryRange selects a page of stored messages: the newest ones below Before,
// or those after After; with neither, the newest. Limit 0 leaves the number to the
// service, which sends at most 200 messages and 256 KiB a page.
type HistoryRange struct {
	Before, After message.Seq
	Forward       bool // count from After, which may be 0
	Limit         int
}

// History reads a page of a room's stored messages. The room need not be joined.
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
	result := c.doCall(ctx, ref, &call{frame: b.end()})
	if result.err != nil {
		return History{}, fmt.Errorf("history of %s: %w", room, result.err)
	}
	return result.history, nil
}

// Presence returns which sessions are in a room. If the client has joined the room,
// its handler gets the changes from then on.
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
	result := c.doCall(ctx, ref, &call{frame: newRequest("presence", ref, room).end()})
	if result.err != nil {
		return Presence{}, fmt.Errorf("presence in %s: %w", room, result.err)
	}
	return result.presence, nil
}

// handleCallError reports whether ref is that of a call. After a temporary error
// the client repeats the call on this connection; on a new one it is repeated in
// any case.
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

// completeCall completes the call with that ref and reports whether there was one.
func (c *Client) completeCall(ref string, result callResult) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	call := c.calls[ref]
	if call == nil {
		return false
	}
	delete(c.calls, ref)
	call.result <- result
	return true
}

// Signal sends an event (a JSON value) to the members that are in the room now. It
// does not wait for an answer. A signal is not queued: without a connection the
// error is ErrOffline.
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
