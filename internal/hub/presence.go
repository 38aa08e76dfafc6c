package hub

import (
	"context"
	"fmt"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// Presence is who is in which room, on all nodes.
type Presence interface {
	// Change tells of sessions on this node. It never blocks.
	Change([]message.PresenceChange)
	// Room returns who is in a room: everybody, or how many where they are
	// more than limit.
	Room(ctx context.Context, room message.Room, limit int) (message.Presence, error)
}

const (
	// presenceEvery is the least time between two frames that tell the members
	// of a room what changed.
	presenceEvery = time.Second
	// presenceTimeout bounds one look at who is in a room.
	presenceTimeout = 2 * time.Second
)

// SetSession says which session the client belongs to: from then on it counts
// as present in its rooms. It is called before the first join, if at all.
func (c *Client) SetSession(id message.SessionID, generation int64) {
	c.session, c.generation = id, generation
}

// present has it told that the member came, or how it went. The caller holds
// topic.mu: the telling is left to a goroutine.
func (m *member) present(kind message.PresenceKind) {
	c := m.client
	if c.session == "" || c.hub.cfg.Presence == nil {
		return
	}
	// Bounded by the joins and leaves that clients are let make; Change takes
	// all of them at once.
	c.hub.presences.put(message.PresenceChange{
		Kind: kind, Room: m.topic.room, Session: c.session, User: c.user, Generation: c.generation,
	}, 0, 0, c.hub.presenceLoop)
}

// presenceLoop hands changes on while there are some.
func (h *Hub) presenceLoop() {
	for {
		changes, ok := h.presences.take()
		if !ok {
			return
		}
		h.cfg.Presence.Change(changes)
	}
}

// Present returns who is in a room, on all nodes. An error wraps
// message.ErrUnavailable where that can't be known now.
func (h *Hub) Present(ctx context.Context, room message.Room) (message.Presence, error) {
	if h.cfg.Presence == nil {
		return message.Presence{}, fmt.Errorf("who is in a room: %w: nobody keeps it", message.ErrUnavailable)
	}
	ctx, cancel := context.WithTimeout(ctx, presenceTimeout)
	defer cancel()
	p, err := h.cfg.Presence.Room(ctx, room, h.cfg.PresenceLimit)
	if err != nil {
		return p, fmt.Errorf("who is in a room: %w: %w", message.ErrUnavailable, err)
	}
	return p, nil
}

// presence answers who is in a room. For a member the answer is the begin:
// changes follow for as long as it is there.
func (c *Client) presence(ctx context.Context, r *protocol.Request) error {
	if c.hub.cfg.Presence == nil {
		return protocol.ErrUnknownType
	}
	m := c.find(r.Room)
	if m == nil {
		p, err := c.hub.Present(ctx, r.Room)
		if err != nil {
			return err
		}
		c.out.Send(everybody(r.Room, &p).Encode(r.Ref))
		return nil
	}
	return m.topic.watch(ctx, m, r.Ref)
}

// find returns the client's place in a room, nil where it is not in it.
func (c *Client) find(room message.Room) *member {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.rooms {
		if m.topic.room == room {
			return m
		}
	}
	return nil
}

// A watch is what the members of a topic know who asked for presence.
type watch struct {
	members map[*member]struct{}
	told    message.Presence
	again   bool // something may have changed since the last look
	running bool // watchLoop is
}

// watch answers a member who is in the room and tells it of changes from then
// on. What it is told and what those are told who watch already is one look.
func (t *topic) watch(ctx context.Context, m *member, ref protocol.Ref) error {
	select {
	case t.looking <- struct{}{}:
		defer func() { <-t.looking }()
	case <-ctx.Done():
		return message.ErrUnavailable
	case <-t.hub.ctx.Done():
		return message.ErrClosed
	}
	p, err := t.hub.Present(ctx, t.room)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if m.state == memberGone {
		return nil // left meanwhile: nothing of the room follows
	}
	t.tellPresence(&p)
	m.client.out.Send(everybody(t.room, &p).Encode(ref))
	if t.watching.members == nil {
		t.watching.members = make(map[*member]struct{})
	}
	t.watching.members[m] = struct{}{}
	return nil
}

// unwatch ends what a member is told. Caller holds mu.
func (t *topic) unwatch(m *member) {
	delete(t.watching.members, m)
	if len(t.watching.members) == 0 {
		t.watching.members, t.watching.told = nil, message.Presence{}
	}
}

// PresenceChanged says that who is in these rooms may have changed; without
// rooms, in any. It does not block, and costs nothing where nobody watches.
func (h *Hub) PresenceChanged(rooms []message.Room) {
	for _, room := range rooms {
		if t := h.lookup(room); t != nil {
			t.lookAgain()
		}
	}
	if len(rooms) > 0 {
		return
	}
	for i := range h.shards {
		s := &h.shards[i]
		s.mu.RLock()
		for _, t := range s.topics {
			t.lookAgain()
		}
		s.mu.RUnlock()
	}
}

// lookAgain plans a look at who is in the room, where somebody watches.
func (t *topic) lookAgain() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.watching.members) == 0 {
		return
	}
	t.watching.again = true
	if !t.watching.running {
		t.watching.running = true
		t.hub.spawn(t.watchLoop)
	}
}

// watchLoop looks who is in the room, once a second at most, for as long as
// that may have changed and somebody watches.
func (t *topic) watchLoop() {
	for t.goesOn() {
		if !t.look() {
			t.mu.Lock()
			t.watching.again = true
			t.mu.Unlock()
		}
		if !t.hub.sleep(presenceEvery) {
			return
		}
	}
}

// goesOn says whether there is to be another look, and takes the reason for it.
func (t *topic) goesOn() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.watching.running = t.watching.again && len(t.watching.members) > 0 && !t.closed
	t.watching.again = false
	return t.watching.running
}

// look tells the watching members what changed; false: it could not be seen.
func (t *topic) look() bool {
	select {
	case t.looking <- struct{}{}:
		defer func() { <-t.looking }()
	case <-t.hub.ctx.Done():
		return true
	}
	p, err := t.hub.Present(t.hub.ctx, t.room)
	if err != nil {
		t.hub.log.Debug("presence not read", "room", t.room, "error", err)
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tellPresence(&p)
	return true
}

// tellPresence tells those who watch what is other than they were told. Caller
// holds mu, and the turn of looking.
func (t *topic) tellPresence(p *message.Presence) {
	before := t.watching.told
	t.watching.told = *p
	if len(t.watching.members) == 0 {
		return
	}
	f, changed := difference(t.room, &before, p)
	if !changed {
		return
	}
	encoded := f.Encode("")
	for m := range t.watching.members {
		m.client.out.Send(encoded)
	}
}

// difference is the frame that leads from one presence to the next; false:
// they are the same to who is told.
func difference(room message.Room, before, now *message.Presence) (protocol.Presence, bool) {
	if before.Members == nil || now.Members == nil {
		// One of the two is a count alone.
		return everybody(room, now), before.Count != now.Count || before.Members == nil != (now.Members == nil)
	}
	f := protocol.Presence{Room: room, Count: now.Count}
	// Both are sorted by session.
	old, cur := before.Members, now.Members
	for len(old) > 0 || len(cur) > 0 {
		switch {
		case len(cur) == 0 || len(old) > 0 && old[0].Session < cur[0].Session:
			f.Left = append(f.Left, tell(old[0]))
			old = old[1:]
		case len(old) == 0 || cur[0].Session < old[0].Session:
			f.Joined = append(f.Joined, tell(cur[0]))
			cur = cur[1:]
		default:
			old, cur = old[1:], cur[1:]
		}
	}
	return f, len(f.Joined)+len(f.Left) > 0
}

// everybody is the frame that tells all there is.
func everybody(room message.Room, p *message.Presence) protocol.Presence {
	f := protocol.Presence{Room: room, Count: p.Count}
	if p.Members != nil {
		f.Members = make([]protocol.Member, len(p.Members))
		for i, m := range p.Members {
			f.Members[i] = tell(m)
		}
	}
	return f
}

func tell(m message.Member) protocol.Member {
	t := protocol.Member{Session: string(m.Session)}
	if m.User != "" {
		t.User = &m.User
	}
	return t
}
