package client

import (
	"context"
	"fmt"
	"time"

	"switchyard/internal/message"
)

// A Position is where a join starts: after a seq of an epoch. The zero value is
// Now.
type Position struct {
	Epoch message.Epoch
	After message.Seq
	given bool // false: from now
}

// Now is the position after the newest message: a join gets only new messages.
func Now() Position { return Position{} }

// Start is the position before the oldest message that is stored.
func Start() Position { return Position{given: true} }

// After is the position after seq in that epoch.
func After(epoch message.Epoch, seq message.Seq) Position {
	return Position{Epoch: epoch, After: seq, given: true}
}

// A Handler has the callbacks of a room; any of them may be nil. The client calls
// its callbacks in order and one at a time across all rooms, and reads no frame
// while one runs: after a slow callback the service may close the client as slow
// (4208).
type Handler struct {
	// Message gets each message once, in the order of seq. Only the seqs of a
	// Gap are missing.
	Message func(message.Message)
	Gap     func(Gap)
	Signal  func(Signal)
	// Joined is called after each join, also after a reconnect, but not after a
	// move.
	Joined func(Joined)
	// Presence gets changes after a call of Client.Presence, and the full list
	// after a reconnect or a move.
	Presence func(Presence)
	// Ended is called when the service refuses to let the client rejoin the room.
	// The client has then left it.
	Ended func(error)
}

// A roomState is the client's state of a room that it has joined or will join. It is
// guarded by Client.mu, except for the handler, which is static.
type roomState struct {
	name      message.Room
	handler   Handler
	position  Position         // the last one seen, on any connection
	firstJoin chan joinOutcome // gets the first outcome, and is nil after it
	watched   bool             // Client.Presence was called
}

// A joinOutcome is the answer to the first join, or why there is none.
type joinOutcome struct {
	joined Joined
	err    error
}

func (r *roomState) completeJoin(j Joined, err error) {
	if r.firstJoin != nil {
		r.firstJoin <- joinOutcome{j, err}
		r.firstJoin = nil
	}
}

// Join joins a room until Leave; the client rejoins it after each reconnect. It
// waits for the service's answer, and returns an *Error when that is a refusal.
// When ctx ends first, the client leaves the room; when Leave is called first,
// Join returns ErrLeft.
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
	r := &roomState{name: name, handler: h, position: from, firstJoin: first}
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

// Leave leaves a room. One of its callbacks may still run when Leave returns.
func (c *Client) Leave(name message.Room) {
	c.mu.Lock()
	r := c.rooms[name]
	c.mu.Unlock()
	if r != nil {
		c.leave(r)
	}
}

func (c *Client) leave(r *roomState) {
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

// Position returns the last position seen in a room, for a later Join with After.
// It returns false when the client has not joined the room, or has had no answer
// yet.
func (c *Client) Position(name message.Room) (Position, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.rooms[name]
	if r == nil || !r.position.given || r.position.Epoch == "" {
		return Position{}, false
	}
	return r.position, true
}

// sendJoin joins r on conn from the last position seen. The caller holds mu.
func (c *Client) sendJoin(conn *connection, r *roomState) {
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

// joinedElsewhere reports whether r is joined on the other connection of a move, so
// that its join on conn is not reported. The caller
// holds mu.
func (c *Client) joinedElsewhere(conn *connection, r *roomState) bool {
	for _, other := range []*connection{c.current, c.next} {
		if other != nil && other != conn && other.memberships[r.name] != nil && other.memberships[r.name].joined {
			return true
		}
	}
	return false
}

// handleJoinError reports whether ref is that of a join on conn. After a temporary
// error the client joins again later; after any other it leaves the room.
func (c *Client) handleJoinError(conn *connection, ref string, err *Error) bool {
	c.mu.Lock()
	var r *roomState
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

// retryJoin repeats the join with that ref, unless the room was left or joined
// again since.
func (c *Client) retryJoin(conn *connection, r *roomState, ref string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m := conn.memberships[r.name]; (conn == c.current || conn == c.next) && c.rooms[r.name] == r && m != nil && m.ref == ref {
		c.sendJoin(conn, r)
	}
}

// handleMessage completes the publish that the message comes from, if it is the
// client's own, drops a duplicate, and passes a new message to the handler. When
// seqs are missing before it, it requests them once. If they are missing again,
// it returns an error, which ends the connection; the next one resumes before
// them.
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
		// The log is in a new epoch, and no gap frame has said so.
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

// isStaleEpoch reports whether a frame in epoch is stale: this connection is still
// in that epoch, while the room's position, moved on by the other connection, is
// in a newer one. The caller holds mu.
func (m *membership) isStaleEpoch(epoch message.Epoch, r *roomState) bool {
	return epoch != r.position.Epoch && epoch == m.epoch
}

// requestMissing joins again from the room's position, because got came instead of
// the position's next seq. It returns errSkippedMessage when a join from that
// position was tried before. The caller holds mu.
func (c *Client) requestMissing(conn *connection, r *roomState, got message.Seq) error {
	m := conn.memberships[r.name]
	if m.missingAfter == r.position {
		m.missingAfter = Position{}
		return fmt.Errorf("%w in %s: %d followed %d", errSkippedMessage, r.name, got, r.position.After)
	}
	c.opts.Logger.Warn("the service skipped a message; joining again", "room", r.name, "after", r.position.After, "received", got)
	m.missingAfter = r.position
	c.sendJoin(conn, r)
	return nil
}

// handleGap moves the room's position to the end of a gap and reports the gap,
// unless the position is past it already.
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
	// A new epoch is already known when it came on the other connection.
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

// handleSignal passes a signal to the handler, unless the other connection of a
// move has already delivered it.
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

// handlePresence completes the call with the frame's ref. A change has no ref: it
// goes to the handler of a watched room, and only from the current connection.
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
