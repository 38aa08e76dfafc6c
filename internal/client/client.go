// Package client is the Go client of Switchyard. It reconnects by itself, rejoins
// its rooms from the last position it saw, delivers each message once and in
// order, reports the gaps that the service reports, and resends a publish until
// the service acks it. When the service asks it to move, it opens the next
// connection before it closes the current one. web/client.js behaves in the same
// way; test/behaviors holds both to one list. DESIGN.md says why the package is
// built as it is.
//
// An idle connection costs two goroutines: the reader of this package and one of
// the WebSocket library.
package client

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"sync"

	"switchyard/internal/message"
)

// A Client is a connection to the service that outlives its sockets. It is safe
// for concurrent use. It calls handlers one at a time, and reads no frame while
// one runs: a handler must not wait for the client itself, as Publish, Join and
// History do.
type Client struct {
	*shared
	parts     *parts
	link      *link
	closeOnce sync.Once
}

// New starts a client, which connects in the background and retries until Close.
// It returns an error when the Options are invalid.
func New(opts Options) (*Client, error) {
	if len(opts.URLs) == 0 {
		return nil, errors.New("client: no URL to connect to")
	}
	for _, raw := range opts.URLs {
		u, err := url.Parse(raw)
		if err != nil || u.Host == "" || (u.Scheme != "ws" && u.Scheme != "wss") {
			return nil, fmt.Errorf("client: %q is not a ws:// or wss:// URL", raw)
		}
	}
	c := newClient(opts.withDefaults())
	c.running.Go(func() { c.link.connectionLoop(c.link.open()) })
	return c, nil
}

// newClient returns a client that does not run yet.
func newClient(opts Options) *Client {
	s := &shared{opts: opts}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	calls := &calls{shared: s, pending: make(map[string]*call)}
	p := &parts{
		shared: s,
		rooms:  &rooms{shared: s, calls: calls, byName: make(map[message.Room]*roomState)},
		outbox: &outbox{
			shared: s, slots: make(chan struct{}, opts.MaxPending),
			pending: make(map[publishKey]*pendingPublish), byRef: make(map[string]*pendingPublish), queues: make(map[message.Room]*roomQueue),
		},
		calls: calls, tokens: &tokens{shared: s, calls: calls},
	}
	l := &link{
		shared: s, parts: p, session: opts.Session, live: make(chan struct{}), backoff: backoff{random: opts.random},
		connectionsClosed: make(chan struct{}), done: make(chan struct{}), wake: make(chan struct{}, 1),
	}
	return &Client{shared: s, parts: p, link: l}
}

// Dial is New followed by Ready. When Ready fails, Dial closes the client and
// returns the error.
func Dial(ctx context.Context, opts Options) (*Client, error) {
	c, err := New(opts)
	if err != nil {
		return nil, err
	}
	if err := c.Ready(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Ready waits until the client is live. It returns an error when the client has
// ended, or when ctx ends first.
func (c *Client) Ready(ctx context.Context) error {
	var live <-chan struct{}
	c.locked(func() { live = c.link.live })
	select {
	case <-live:
		return nil
	case <-c.link.done:
		return c.Err()
	case <-ctx.Done():
		var last error
		if c.locked(func() { last = c.link.lastFailure }); last != nil {
			return fmt.Errorf("connect to %s: %w (the last attempt: %w)", c.opts.URLs[0], ctx.Err(), last)
		}
		return fmt.Errorf("connect to %s: %w", c.opts.URLs[0], ctx.Err())
	}
}

// Welcome returns the welcome of the current connection, or of the last one.
func (c *Client) Welcome() (w Welcome) {
	c.locked(func() { w = c.welcome })
	return w
}

// Done returns a channel that is closed when the client has ended: after Close,
// or when the service rejected it for good.
func (c *Client) Done() <-chan struct{} { return c.link.done }

// Err returns why the client has ended: ErrClosed after Close, a *ClosedError
// when the service rejected it, nil while it runs.
func (c *Client) Err() (err error) {
	c.locked(func() { err = c.err })
	return err
}

// Close closes the connection with 1000 and ends the client, within about a
// second. Publishes without an answer fail with ErrOutcomeUnknown. Close must not
// be called from a handler; a second call does nothing.
func (c *Client) Close() {
	c.closeOnce.Do(c.link.close)
	<-c.link.done
	c.running.Wait()
}

// Join joins a room until Leave; the client rejoins it after each reconnect. It
// waits for the service's answer, and returns an *Error when that is a refusal.
// When ctx ends first, the client leaves the room; when Leave is called first,
// Join returns ErrLeft.
//
// A room that is joined already is ErrJoined: JoinRoom joins it once more. One whose
// handler has got Ended is not.
func (c *Client) Join(ctx context.Context, name message.Room, from Position, h Handler) (Joined, error) {
	room, err := c.join(ctx, name, from, h, true)
	if err != nil {
		return Joined{}, err
	}
	return room.Joined, nil
}

// JoinRoom is Join for a part of a program that shares the client with others, which
// may join the same room: each has a handler, a position and an end of its own.
func (c *Client) JoinRoom(ctx context.Context, name message.Room, from Position, h Handler) (*Room, error) {
	return c.join(ctx, name, from, h, false)
}

func (c *Client) join(ctx context.Context, name message.Room, from Position, h Handler, alone bool) (*Room, error) {
	if _, err := message.ParseRoom(string(name)); err != nil {
		return nil, err
	}
	if from.After < 0 || (from.After > 0 && from.Epoch == "") {
		return nil, fmt.Errorf("join %s: the position after %d needs a seq of 0 or more, and its epoch", name, from.After)
	}
	first := make(chan joinOutcome, 1)
	room := &Room{client: c, name: name, reader: &reader{handler: h, position: from, firstJoin: first}}
	var err error
	if c.locked(func() { err = c.parts.rooms.join(name, room.reader, alone) }); err != nil {
		return nil, err
	}
	select {
	case o := <-first:
		room.Joined = o.joined
		return room, o.err
	case <-ctx.Done():
		room.Leave()
		return nil, fmt.Errorf("join %s: %w", name, ctx.Err())
	}
}

// A Room is one join of a room, by JoinRoom.
type Room struct {
	Joined Joined // the answer to the join
	client *Client
	name   message.Room
	reader *reader
}

// Leave ends this join, and leaves the room with the last one. One of its callbacks
// may still run when Leave returns.
func (r *Room) Leave() {
	r.client.locked(func() { r.client.parts.rooms.leaveReader(r.name, r.reader) })
}

// Position returns the last position that this join has seen, for a later join with
// After.
func (r *Room) Position() (at Position) {
	r.client.locked(func() { at = r.reader.position })
	return at
}

// Leave leaves a room, for all that have joined it. One of its callbacks may still
// run when Leave returns.
func (c *Client) Leave(name message.Room) { c.locked(func() { c.parts.rooms.leave(name) }) }

// Position returns the last position seen in a room, for a later Join with After; of
// several joins, that of the first. It returns false when the client has not joined
// the room, or has had no answer yet.
func (c *Client) Position(name message.Room) (at Position, ok bool) {
	c.locked(func() {
		if r := c.parts.rooms.byName[name]; r != nil {
			at = r.readers[0].position
			ok = at.given && at.Epoch != ""
		}
	})
	if !ok {
		return Position{}, false
	}
	return at, true
}

// Reconnect connects at once instead of waiting. A live client asks whether the
// service is still there: after three seconds without an answer it opens a second
// connection beside the first, and drops the first when the second is live or fails
// as well. Call it when the network may have changed, or the computer has slept.
func (c *Client) Reconnect() { c.locked(c.link.reconnect) }

// Publish publishes data (a JSON value) in a room and waits for the ack. An empty
// id means a random one. The client resends the message with the same id after a
// reconnect, for half of the service's ID_WINDOW; after that, and when ctx ends
// after the message was sent, the error is ErrOutcomeUnknown. An *Error means
// that the service refused the message; it wraps ErrOutcomeUnknown as well when
// an earlier attempt had no answer. The messages of a room are stored in the
// order of the calls.
func (c *Client) Publish(ctx context.Context, room message.Room, data json.RawMessage, id string) (Ack, error) {
	type result struct {
		ack Ack
		err error
	}
	select {
	case c.parts.outbox.slots <- struct{}{}:
	case <-c.link.done:
		return Ack{}, c.Err()
	case <-ctx.Done():
		return Ack{}, fmt.Errorf("wait to publish in %s: %w", room, ctx.Err())
	}
	results := make(chan result, 1)
	p, err := c.startPublish(room, data, id, func(ack Ack, err error) { results <- result{ack, err} })
	if err != nil {
		<-c.parts.outbox.slots
		return Ack{}, err
	}
	select {
	case r := <-results:
		return r.ack, r.err
	case <-ctx.Done():
		c.locked(func() { c.parts.outbox.giveUp(p, ctx.Err()) })
		r := <-results // does not block: giveUp, or an earlier answer, has already sent the result
		return r.ack, r.err
	}
}

// Send is Publish without waiting. It calls done once with the outcome, usually
// from the goroutine that calls handlers, and under the same rules. When Send
// returns an error, nothing was sent and done is not called. ErrBusy means that
// MaxPending publishes are pending.
func (c *Client) Send(room message.Room, data json.RawMessage, id string, done func(Ack, error)) error {
	select {
	case c.parts.outbox.slots <- struct{}{}:
	default:
		return ErrBusy
	}
	if _, err := c.startPublish(room, data, id, done); err != nil {
		<-c.parts.outbox.slots
		return err
	}
	return nil
}

// NewID returns a random id for a publish.
func NewID() string { return rand.Text() }

// startPublish checks a publish and adds it to the outbox. The caller has acquired a
// slot, and keeps it when startPublish fails.
func (c *Client) startPublish(room message.Room, data []byte, id string, done func(Ack, error)) (p *pendingPublish, err error) {
	if id == "" {
		id = NewID()
	}
	if _, err := message.ParseRoom(string(room)); err != nil {
		return nil, err
	}
	if err := message.CheckID(id); err != nil {
		return nil, err
	}
	if !json.Valid(data) {
		return nil, ErrInvalidData
	}
	p = &pendingPublish{key: publishKey{room, id}, ref: c.nextRef(), done: done}
	p.frame = newRequest("publish", p.ref, room).text("id", id).data(data).end()
	p.data = p.frame[len(p.frame)-1-len(data) : len(p.frame)-1]
	c.locked(func() { err = c.parts.outbox.add(p) })
	return p, err
}

// History reads a page of a room's stored messages. The room need not be joined.
func (c *Client) History(ctx context.Context, room message.Room, r HistoryRange) (History, error) {
	if _, err := message.ParseRoom(string(room)); err != nil {
		return History{}, err
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
	f, err := c.parts.calls.do(ctx, "history of "+string(room), &call{ref: ref, frame: b.end()})
	if err != nil {
		return History{}, err
	}
	return f.history()
}

// Presence returns which sessions are in a room. If the client has joined the room,
// its handler gets the changes from then on.
func (c *Client) Presence(ctx context.Context, room message.Room) (Presence, error) {
	if _, err := message.ParseRoom(string(room)); err != nil {
		return Presence{}, err
	}
	c.locked(func() {
		if r := c.parts.rooms.byName[room]; r != nil {
			r.watched = true
		}
	})
	ref := c.nextRef()
	f, err := c.parts.calls.do(ctx, "presence in "+string(room), c.parts.rooms.presenceCall(ref, room))
	if err != nil {
		return Presence{}, err
	}
	return f.presence(), nil
}

// Signal sends an event (a JSON value) to the members that are in the room now. It
// does not wait for an answer. A signal is not queued: without a connection the
// error is ErrOffline.
func (c *Client) Signal(room message.Room, data json.RawMessage) (err error) {
	if _, err := message.ParseRoom(string(room)); err != nil {
		return err
	}
	if !json.Valid(data) {
		return ErrInvalidData
	}
	frame := newRequest("signal", c.nextRef(), room).data(data).end()
	c.locked(func() { err = c.parts.calls.signal(room, frame) })
	return err
}

// RefreshToken gets a token from Options.Token and sends it to the service on the
// current connection, as the client does by itself before the token expires. Call
// it when the user's rights have changed. Without a connection it does nothing,
// because the next one gets a token of its own. It returns within half a minute.
// An *Error means that the service refused the token; the old one stays in use.
func (c *Client) RefreshToken(ctx context.Context) error { return c.parts.tokens.refresh(ctx) }
