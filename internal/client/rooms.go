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
	name    message.Room
	handler Handler
	at      Position         // the last one seen, on whichever connection
	first   chan joinOutcome // gets the first outcome, then nil
	watched bool             // presence was asked for
}

type joinOutcome struct {
	joined Joined
	err    error
}

func (r *room) tell(j Joined, err error) {
	if r.first != nil {
		r.first <- joinOutcome{j, err}
		r.first = nil
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
	r := &room{name: name, handler: h, at: from, first: first}
	c.rooms[name] = r
	if c.link != nil {
		c.sendJoin(c.link, r)
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
	r.tell(Joined{}, fmt.Errorf("join %s: %w", r.name, ErrLeft))
	for _, l := range []*link{c.link, c.next} {
		if l != nil && l.seats[r.name] != nil {
			delete(l.seats, r.name)
			l.sock.send(newRequest("leave", c.nextRef(), r.name).end())
		}
	}
	c.noteSeat()
}

// Position returns the last position seen in a joined room, to be used with
// After later; false when the room is not joined or nothing is known yet.
func (c *Client) Position(name message.Room) (Position, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.rooms[name]
	if r == nil || !r.at.given || r.at.Epoch == "" {
		return Position{}, false
	}
	return r.at, true
}

// sendJoin joins on l from the last position seen. The caller holds mu.
func (c *Client) sendJoin(l *link, r *room) {
	s := l.seats[r.name]
	if s == nil {
		s = &seat{}
		l.seats[r.name] = s
	}
	s.ref, s.live = c.nextRef(), false
	b := newRequest("join", s.ref, r.name)
	if r.at.given {
		b = b.number("after", int64(r.at.After))
		if r.at.Epoch != "" {
			b = b.text("epoch", string(r.at.Epoch))
		}
	}
	l.sock.send(b.end())
}

func (c *Client) handleJoined(l *link, f *serverFrame) {
	c.mu.Lock()
	r, s := c.rooms[f.Room], l.seats[f.Room]
	if r == nil || s == nil || s.ref != f.Ref {
		c.mu.Unlock()
		return
	}
	if !r.at.given {
		r.at = After(f.Epoch, f.Seq)
	} else if r.at.Epoch == "" {
		r.at.Epoch = f.Epoch
	}
	s.live, s.epoch = true, r.at.Epoch
	quiet := c.there(l, r)
	if l == c.link && c.next != nil && c.next.seats[r.name] == nil {
		c.sendJoin(c.next, r) // now that its position is known
	}
	c.noteSeat()
	joined := Joined{Room: f.Room, Epoch: f.Epoch, Head: f.Seq, First: f.First}
	r.tell(joined, nil)
	c.mu.Unlock()
	if r.handler.Joined != nil && !quiet {
		r.handler.Joined(joined)
	}
}

// there says whether a room is joined on the other one of two connections: then
// its join on l is no news. The caller holds mu.
func (c *Client) there(l *link, r *room) bool {
	for _, other := range []*link{c.link, c.next} {
		if other != nil && other != l && other.seats[r.name] != nil && other.seats[r.name].live {
			return true
		}
	}
	return false
}

// refuseJoin says whether the error was the answer to a join. A passing one
// leads to another try, any other ends the room.
func (c *Client) refuseJoin(l *link, ref string, err *Error) bool {
	c.mu.Lock()
	var r *room
	for name, s := range l.seats {
		if s.ref == ref && ref != "" {
			r = c.rooms[name]
		}
	}
	if r == nil {
		c.mu.Unlock()
		return false
	}
	if err.passing() || err.Code == "internal" {
		time.AfterFunc(err.wait(c.opts.random), func() { c.joinAgain(l, r, ref) })
		c.mu.Unlock()
		return true
	}
	delete(c.rooms, r.name)
	for _, other := range []*link{c.link, c.next} {
		if other != nil {
			delete(other.seats, r.name)
		}
	}
	c.noteSeat()
	begun := r.first == nil
	r.tell(Joined{}, err)
	c.mu.Unlock()
	if begun && r.handler.Ended != nil {
		r.handler.Ended(err)
	}
	return true
}

func (c *Client) joinAgain(l *link, r *room, ref string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := l.seats[r.name]; (l == c.link || l == c.next) && c.rooms[r.name] == r && s != nil && s.ref == ref {
		c.sendJoin(l, r)
	}
}

// handleMessage settles an own publish, drops what was seen, and hands on the
// rest. What was skipped is asked for again; skipped once more, it ends the
// connection: the next one resumes before it.
func (c *Client) handleMessage(l *link, f *serverFrame) error {
	m := f.message()
	c.settleEcho(l, m)
	c.mu.Lock()
	r, s := c.rooms[m.Room], l.seats[m.Room]
	if r == nil || s == nil || !s.live || s.past(m.Epoch, r) {
		c.mu.Unlock()
		return nil
	}
	s.epoch = m.Epoch
	var gap *Gap
	if m.Epoch != r.at.Epoch {
		// A new life of the log, and this is the first we hear of it.
		r.at = After(m.Epoch, m.Seq-1)
		if m.Seq > 1 {
			gap = &Gap{Room: m.Room, Epoch: m.Epoch, From: 1, To: m.Seq - 1, Reason: "epoch"}
		}
	}
	last := r.at.After
	switch {
	case m.Seq == last+1:
		r.at.After = m.Seq
	case m.Seq > last+1:
		defer c.mu.Unlock()
		return c.mend(l, r, m.Seq)
	}
	c.mu.Unlock()
	if m.Seq <= last {
		return nil
	}
	if gap != nil && r.handler.Gap != nil {
		r.handler.Gap(*gap)
	}
	if r.handler.Message != nil {
		r.handler.Message(m)
	}
	return nil
}

// past says that this connection goes on in an epoch that the other one has
// told to be over.
func (s *seat) past(epoch message.Epoch, r *room) bool {
	return epoch != r.at.Epoch && epoch == s.epoch
}

// mend joins again from before a hole, or returns errHole when that was tried
// from there before. The caller holds mu.
func (c *Client) mend(l *link, r *room, came message.Seq) error {
	s := l.seats[r.name]
	if s.hole == r.at {
		s.hole = Position{}
		return fmt.Errorf("%w in %s: %d came after %d", errHole, r.name, came, r.at.After)
	}
	c.opts.Logger.Warn("the service skipped a message; asking again", "room", r.name, "after", r.at.After, "came", came)
	s.hole = r.at
	c.sendJoin(l, r)
	return nil
}

func (c *Client) handleGap(l *link, f *serverFrame) error {
	gap, err := f.gap()
	if err != nil {
		return err
	}
	c.mu.Lock()
	r, s := c.rooms[gap.Room], l.seats[gap.Room]
	if r == nil || s == nil || !s.live || s.past(gap.Epoch, r) {
		c.mu.Unlock()
		return nil
	}
	// The new epoch is no news when the other connection has told of it.
	known := gap.Epoch == r.at.Epoch && (gap.Reason != "epoch" || s.epoch != gap.Epoch)
	s.epoch = gap.Epoch
	if known && gap.To <= r.at.After {
		c.mu.Unlock()
		return nil
	}
	r.at = After(gap.Epoch, gap.To)
	c.mu.Unlock()
	if r.handler.Gap != nil {
		r.handler.Gap(gap)
	}
	return nil
}

func (c *Client) handleSignal(l *link, f *serverFrame) {
	c.mu.Lock()
	r := c.rooms[f.Room]
	if r == nil || c.echoes.again(l.number, f) {
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
func (c *Client) handlePresence(l *link, f *serverFrame) {
	if f.Ref != "" && c.answer(f.Ref, answer{presence: f.presence()}) {
		return
	}
	c.mu.Lock()
	r := c.rooms[f.Room]
	told := r != nil && r.watched && l == c.link
	c.mu.Unlock()
	if told && r.handler.Presence != nil {
		r.handler.Presence(f.presence())
	}
}
