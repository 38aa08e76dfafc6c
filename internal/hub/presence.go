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
	// presenceInterval is the least time between two frames that tell the members
	// of a room what changed.
	presenceInterval = time.Second
	// presenceTimeout bounds one look at who is in a room.
	presenceTimeout = 2 * time.Second
)

// SetSession says which session the client belongs to: from then on it counts
// as present in its rooms. It is called before the first join, if at all.
func (c *Client) SetSession(id message.SessionID, generation int64) {
	c.session, c.generation = id, generation
}

// reportPresence has it told that the member came, or how it went. The caller holds
// topic.mu: the telling is left to a goroutine.
func (m *member) reportPresence(kind message.PresenceKind) {
	c := m.client
	if c.session == "" || c.hub.cfg.Presence == nil {
		return
	}
	// Bounded by the joins and leaves that clients are let make; Change takes
	// all of them at once.
	c.hub.presenceChanges.put(message.PresenceChange{
		Kind: kind, Room: m.topic.room, Session: c.session, User: c.user, Generation: c.generation,
	}, 0, 0, c.hub.presenceLoop)
}

// presenceLoop hands changes on while there are some.
func (h *Hub) presenceLoop() {
	for {
		changes, ok := h.presenceChanges.dequeueAll()
		if !ok {
			return
		}
		h.cfg.Presence.Change(changes)
	}
}

// RoomPresence returns who is in a room, on all nodes. An error wraps
// message.ErrUnavailable where that can't be known now.
func (h *Hub) RoomPresence(ctx context.Context, room message.Room) (message.Presence, error) {
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
		p, err := c.hub.RoomPresence(ctx, r.Room)
		if err != nil {
			return err
		}
		c.out.Send(snapshotFrame(r.Room, &p).Encode(r.Ref))
		return nil
	}
	return m.topic.watchPresence(ctx, m, r.Ref)
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

// A presenceWatch is what the members of a topic know who asked for presence.
type presenceWatch struct {
	watchers map[*member]struct{}
	lastSent message.Presence
	dirty    bool // something may have changed since the last look
	running  bool // presenceRefreshLoop is
}

// watchPresence answers a member who is in the room and tells it of changes from then
// on. What it is told and what those are told who watch already is one look.
func (t *topic) watchPresence(ctx context.Context, m *member, ref protocol.Ref) error {
	select {
	case t.presenceLock <- struct{}{}:
		defer func() { <-t.presenceLock }()
	case <-ctx.Done():
		return message.ErrUnavailable
	case <-t.hub.ctx.Done():
		return message.ErrClosed
	}
	p, err := t.hub.RoomPresence(ctx, t.room)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if m.state == memberGone {
		return nil // left meanwhile: nothing of the room follows
	}
	t.sendPresenceChanges(&p)
	m.client.out.Send(snapshotFrame(t.room, &p).Encode(ref))
	if t.presenceWatch.watchers == nil {
		t.presenceWatch.watchers = make(map[*member]struct{})
	}
	t.presenceWatch.watchers[m] = struct{}{}
	return nil
}

// unwatchPresence ends what a member is told. Caller holds mu.
func (t *topic) unwatchPresence(m *member) {
	delete(t.presenceWatch.watchers, m)
	if len(t.presenceWatch.watchers) == 0 {
		t.presenceWatch.watchers, t.presenceWatch.lastSent = nil, message.Presence{}
	}
}

// PresenceChanged says that who is in these rooms may have changed; without
// rooms, in any. It does not block, and costs nothing where nobody watches.
func (h *Hub) PresenceChanged(rooms []message.Room) {
	for _, room := range rooms {
		if t := h.lookup(room); t != nil {
			t.schedulePresenceRefresh()
		}
	}
	if len(rooms) > 0 {
		return
	}
	for i := range h.shards {
		s := &h.shards[i]
		s.mu.RLock()
		for _, t := range s.topics {
			t.schedulePresenceRefresh()
		}
		s.mu.RUnlock()
	}
}

// schedulePresenceRefresh plans a look at who is in the room, where somebody watches.
func (t *topic) schedulePresenceRefresh() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.presenceWatch.watchers) == 0 {
		return
	}
	t.presenceWatch.dirty = true
	if !t.presenceWatch.running {
		t.presenceWatch.running = true
		t.hub.spawn(t.presenceRefreshLoop)
	}
}

// presenceRefreshLoop looks who is in the room, once a second at most, for as long as
// that may have changed and somebody watches.
func (t *topic) presenceRefreshLoop() {
	for t.nextPresenceRefresh() {
		if !t.refreshPresence() {
			t.mu.Lock()
			t.presenceWatch.dirty = true
			t.mu.Unlock()
		}
		if !t.hub.sleep(presenceInterval) {
			return
		}
	}
}

// nextPresenceRefresh says whether there is to be another look, and takes the reason for it.
func (t *topic) nextPresenceRefresh() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.presenceWatch.running = t.presenceWatch.dirty && len(t.presenceWatch.watchers) > 0 && !t.closed
	t.presenceWatch.dirty = false
	return t.presenceWatch.running
}

// refreshPresence tells the watching members what changed; false: it could not be seen.
func (t *topic) refreshPresence() bool {
	select {
	case t.presenceLock <- struct{}{}:
		defer func() { <-t.presenceLock }()
	case <-t.hub.ctx.Done():
		return true
	}
	p, err := t.hub.RoomPresence(t.hub.ctx, t.room)
	if err != nil {
		t.hub.logger.Debug("presence not read", "room", t.room, "error", err)
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sendPresenceChanges(&p)
	return true
}

// sendPresenceChanges tells those who watch what is other than they were told. Caller
// holds mu, and the turn of looking.
func (t *topic) sendPresenceChanges(p *message.Presence) {
	before := t.presenceWatch.lastSent
	t.presenceWatch.lastSent = *p
	if len(t.presenceWatch.watchers) == 0 {
		return
	}
	f, changed := presenceDiff(t.room, &before, p)
	if !changed {
		return
	}
	encoded := f.Encode("")
	for m := range t.presenceWatch.watchers {
		m.client.out.Send(encoded)
	}
}

// presenceDiff is the frame that leads from one presence to the next; false:
// they are the same to who is told.
func presenceDiff(room message.Room, before, now *message.Presence) (protocol.Presence, bool) {
	if before.Entries == nil || now.Entries == nil {
		// One of the two is a count alone.
		return snapshotFrame(room, now), before.Count != now.Count || before.Entries == nil != (now.Entries == nil)
	}
	f := protocol.Presence{Room: room, Count: now.Count}
	// Both are sorted by session.
	old, cur := before.Entries, now.Entries
	for len(old) > 0 || len(cur) > 0 {
		switch {
		case len(cur) == 0 || len(old) > 0 && old[0].Session < cur[0].Session:
			f.Left = append(f.Left, wirePresenceEntry(old[0]))
			old = old[1:]
		case len(old) == 0 || cur[0].Session < old[0].Session:
			f.Joined = append(f.Joined, wirePresenceEntry(cur[0]))
			cur = cur[1:]
		default:
			old, cur = old[1:], cur[1:]
		}
	}
	return f, len(f.Joined)+len(f.Left) > 0
}

// snapshotFrame is the frame that tells all there is.
func snapshotFrame(room message.Room, p *message.Presence) protocol.Presence {
	f := protocol.Presence{Room: room, Count: p.Count}
	if p.Entries != nil {
		f.Members = make([]protocol.PresenceEntry, len(p.Entries))
		for i, m := range p.Entries {
			f.Members[i] = wirePresenceEntry(m)
		}
	}
	return f
}

// wirePresenceEntry returns the entry as it stands in a frame.
func wirePresenceEntry(e message.PresenceEntry) protocol.PresenceEntry {
	wire := protocol.PresenceEntry{Session: string(e.Session)}
	if e.User != "" {
		wire.User = &e.User
	}
	return wire
}
