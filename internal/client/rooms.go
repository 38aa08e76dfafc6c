package client

import (
	"context"
	"fmt"
	"time"

	"switchyard/internal/message"
)

// A Position is where a join begins. The zero value is "from now".
type Position struct {
	Epoch message.Epoch
	After message.Seq
	given bool
}

// Now joins with what comes next.
func Now() Position { return Position{} }

// Start joins with the oldest message stored.
func Start() Position { return Position{given: true} }

// After joins with the message that follows seq in that epoch.
func After(epoch message.Epoch, seq message.Seq) Position {
	return Position{Epoch: epoch, After: seq, given: true}
}

// A Handler takes what happens in a room; any field may be nil. It is called
// in order and one at a time for the whole client, which reads no further
// meanwhile: one that takes long gets the client closed as slow.
type Handler struct {
	// Message gets each message once, without holes but for those in Gap.
	Message func(message.Message)
	Gap     func(Gap)
	Signal  func(Signal)
	// Joined is called at each join, those after a reconnect included, but not
	// on a move.
	Joined func(Joined)
	// Presence is told of changes once Client.Presence was asked, and of
	// everybody after a reconnect or a move.
	Presence func(Presence)
	// Ended is called when the service refuses to let the room be rejoined.
	Ended func(error)
}

// room is a room joined or to be joined. Guarded by Client.mu, but for the
// handler, which is static.
type room struct {
	name      message.Room
	handler   Handler
	position  Position         // the last one seen, on whichever connection
	firstJoin chan joinOutcome // gets the first outcome, then nil
	watched   bool             // presence was asked for
}

type joinOutcome struct {
	joined Joined
	err    error
}

func (r *room) completeJoin(j Joined, err error) {
	if r.firstJoin != nil {
		r.firstJoin <- joinOutcome{j, err}
		r.firstJoin = nil
	}
}

// Join joins a room and stays, across reconnects, until Leave. It returns once
// the service has let the client in, or an *Error when it refuses. When ctx
// ends before, the room is left; when Leave is called before, it is ErrLeft.
func (c *Client) Join(ctx context.Context, name message.Room, from Position, h Handler) (Joined, error) {
	if _, err := message.ParseRoom(string(name)); err != nil {
		return Joined{}, err
	}
	first := make(chan joinOutcome, 1)
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return Joined{}, c.err
	}
	if c.rooms[name] != nil {
		c.mu.Unlock()
		return Joined{}, fmt.Errorf("%w: %s", ErrJoined, name)
	}
	r := &room{name: name, handler: h, position: from, firstJoin: first}
	c.rooms[name] = r
	if c.current != nil {
		c.sendJoin(c.current, r)
	}
	if c.next != nil && from.given {
		c.sendJoin(c.next, r)
	}
	c.mu.Unlock()
	select {
	case o := <-first:
		return o.joined, o.err
	case <-ctx.Done():
		c.leave(r)
		return Joined{}, fmt.Errorf("join %s: %w", name, ctx.Err())
	}
}

// Leave leaves a room. Its handler may be in its last call when Leave returns.
func (c *Client) Leave(name message.Room) {
	c.mu.Lock()
	r := c.rooms[name]
	c.mu.Unlock()
	if r != nil {
		c.leave(r)
	}
}

func (c *Client) leave(r *room) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rooms[r.name] != r {
		return
	}
	delete(c.rooms, r.name)
	r.completeJoin(Joined{}, fmt.Errorf("join %s: %w", r.name, ErrLeft))
	for _, conn := range []*connection{c.current, c.next} {
		if conn != nil && conn.memberships[r.name] != nil {
			delete(conn.memberships, r.name)
			conn.sock.send(newRequest("leave", c.nextRef(), r.name).end())
		}
	}
	c.notifyMove()
}

// Position returns the last position seen in a joined room, to be used with
// After later; false when the room is not joined or nothing is known yet.
func (c *Client) Position(name message.Room) (Position, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.rooms[name]
	if r == nil || !r.position.given || r.position.Epoch == "" {
		return Position{}, false
	}
	return r.position, true
}

// sendJoin joins on l from the last position seen. The caller holds mu.
func (c *Client) sendJoin(conn *connection, r *room) {
	m := conn.memberships[r.name]
	if m == nil {
		m = &membership{}
		conn.memberships[r.name] = m
	}
	m.ref, m.joined = c.nextRef(), false
	b := newRequest("join", m.ref, r.name)
	if r.position.given {
		b = b.number("after", int64(r.position.After))
		if r.position.Epoch != "" {
			b = b.text("epoch", string(r.position.Epoch))
		}
	}
	conn.sock.send(b.end())
}

func (c *Client) handleJoined(conn *connection, f *serverFrame) {
	c.mu.Lock()
	r, m := c.rooms[f.Room], conn.memberships[f.Room]
	if r == nil || m == nil || m.ref != f.Ref {
		c.mu.Unlock()
		return
	}
	if !r.position.given {
		r.position = After(f.Epoch, f.Seq)
	} else if r.position.Epoch == "" {
		r.position.Epoch = f.Epoch
	}
	m.joined, m.epoch = true, r.position.Epoch
	alreadyJoined := c.joinedElsewhere(conn, r)
	if conn == c.current && c.next != nil && c.next.memberships[r.name] == nil {
		c.sendJoin(c.next, r) // now that its position is known
	}
	c.notifyMove()
	joined := Joined{Room: f.Room, Epoch: f.Epoch, Head: f.Seq, First: f.First}
	r.completeJoin(joined, nil)
	c.mu.Unlock()
	if r.handler.Joined != nil && !alreadyJoined {
		r.handler.Joined(joined)
	}
}

// joinedElsewhere says whether a room is joined on the other one of two connections: then
// its join on l is no news. The caller holds mu.
func (c *Client) joinedElsewhere(conn *connection, r *room) bool {
	for _, other := range []*connection{c.current, c.next} {
		if other != nil && other != conn && other.memberships[r.name] != nil && other.memberships[r.name].joined {
			return true
		}
	}
	return false
}

// handleJoinError says whether the error was the answer to a join. A passing one
// leads to another try, any other ends the room.
func (c *Client) handleJoinError(conn *connection, ref string, err *Error) bool {
	c.mu.Lock()
	var r *room
	for name, m := range conn.memberships {
		if m.ref == ref && ref != "" {
			r = c.rooms[name]
		}
	}
	if r == nil {
		c.mu.Unlock()
		return false
	}
	if err.temporary() || err.Code == "internal" {
		time.AfterFunc(err.retryDelay(c.opts.random), func() { c.retryJoin(conn, r, ref) })
		c.mu.Unlock()
		return true
	}
	delete(c.rooms, r.name)
	for _, other := range []*connection{c.current, c.next} {
		if other != nil {
			delete(other.memberships, r.name)
		}
	}
	c.notifyMove()
	wasJoined := r.firstJoin == nil
	r.completeJoin(Joined{}, err)
	c.mu.Unlock()
	if wasJoined && r.handler.Ended != nil {
		r.handler.Ended(err)
	}
	return true
}

func (c *Client) retryJoin(conn *connection, r *room, ref string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m := conn.memberships[r.name]; (conn == c.current || conn == c.next) && c.rooms[r.name] == r && m != nil && m.ref == ref {
		c.sendJoin(conn, r)
	}
}

// handleMessage settles an own publish, drops what was seen, and hands on the
// rest. What was skipped is asked for again; skipped once more, it ends the
// connection: the next one resumes before it.
func (c *Client) handleMessage(conn *connection, f *serverFrame) error {
	msg := f.message()
	c.completeFromOwnMessage(conn, msg)
	c.mu.Lock()
	r, m := c.rooms[msg.Room], conn.memberships[msg.Room]
	if r == nil || m == nil || !m.joined || m.isStaleEpoch(msg.Epoch, r) {
		c.mu.Unlock()
		return nil
	}
	m.epoch = msg.Epoch
	var gap *Gap
	if msg.Epoch != r.position.Epoch {
		// A new life of the log, and this is the first we hear of it.
		r.position = After(msg.Epoch, msg.Seq-1)
		if msg.Seq > 1 {
			gap = &Gap{Room: msg.Room, Epoch: msg.Epoch, From: 1, To: msg.Seq - 1, Reason: "epoch"}
		}
	}
	last := r.position.After
	switch {
	case msg.Seq == last+1:
		r.position.After = msg.Seq
	case msg.Seq > last+1:
		defer c.mu.Unlock()
		return c.requestMissing(conn, r, msg.Seq)
	}
	c.mu.Unlock()
	if msg.Seq <= last {
		return nil
	}
	if gap != nil && r.handler.Gap != nil {
		r.handler.Gap(*gap)
	}
	if r.handler.Message != nil {
		r.handler.Message(msg)
	}
	return nil
}

// isStaleEpoch says that this connection goes on in an epoch that the other one has
// told to be over.
func (m *membership) isStaleEpoch(epoch message.Epoch, r *room) bool {
	return epoch != r.position.Epoch && epoch == m.epoch
}

// requestMissing joins again from before a hole, or returns errSkippedMessage when that was tried
// from there before. The caller holds mu.
func (c *Client) requestMissing(conn *connection, r *room, got message.Seq) error {
	m := conn.memberships[r.name]
	if m.missingAfter == r.position {
		m.missingAfter = Position{}
		return fmt.Errorf("%w in %s: %d came after %d", errSkippedMessage, r.name, got, r.position.After)
	}
	c.opts.Logger.Warn("the service skipped a message; asking again", "room", r.name, "after", r.position.After, "came", got)
	m.missingAfter = r.position
	c.sendJoin(conn, r)
	return nil
}

func (c *Client) handleGap(conn *connection, f *serverFrame) error {
	gap, err := f.gap()
	if err != nil {
		return err
	}
	c.mu.Lock()
	r, m := c.rooms[gap.Room], conn.memberships[gap.Room]
	if r == nil || m == nil || !m.joined || m.isStaleEpoch(gap.Epoch, r) {
		c.mu.Unlock()
		return nil
	}
	// The new epoch is no news when the other connection has told of it.
	known := gap.Epoch == r.position.Epoch && (gap.Reason != "epoch" || m.epoch != gap.Epoch)
	m.epoch = gap.Epoch
	if known && gap.To <= r.position.After {
		c.mu.Unlock()
		return nil
	}
	r.position = After(gap.Epoch, gap.To)
	c.mu.Unlock()
	if r.handler.Gap != nil {
		r.handler.Gap(gap)
	}
	return nil
}

func (c *Client) handleSignal(conn *connection, f *serverFrame) {
	c.mu.Lock()
	r := c.rooms[f.Room]
	if r == nil || c.signalDedup.seenBefore(conn.number, f) {
		c.mu.Unlock()
		return
	}
	c.mu.Unlock()
	if r.handler.Signal != nil {
		r.handler.Signal(Signal{Room: f.Room, From: f.user(), Data: f.Data})
	}
}

// handlePresence answers who asked; what comes by itself is heard on the
// connection that counts.
func (c *Client) handlePresence(conn *connection, f *serverFrame) {
	if f.Ref != "" && c.completeCall(f.Ref, callResult{presence: f.presence()}) {
		return
	}
	c.mu.Lock()
	r := c.rooms[f.Room]
	notify := r != nil && r.watched && conn == c.current
	c.mu.Unlock()
	if notify && r.handler.Presence != nil {
		r.handler.Presence(f.presence())
	}
}
