package hub

import (
	"context"
	"fmt"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// Presence knows which sessions are in a room, across all nodes.
type Presence interface {
	// Change reports changes of sessions on this node. It never blocks.
	Change([]message.PresenceChange)
	// Room returns the presence of a room: its entries, or only their number if
	// there are more than limit.
	Room(ctx context.Context, room message.Room, limit int) (message.Presence, error)
}

const (
	// presenceInterval is the shortest time between two frames of presence
	// changes in a room.
	presenceInterval = time.Second
	// presenceTimeout bounds one query of a room's presence.
	presenceTimeout = 2 * time.Second
)

// SetSession sets the session that the client belongs to, which from then on is
// present in the client's rooms. Call it before the first join.
func (c *Client) SetSession(id message.SessionID, generation int64) {
	c.session, c.generation = id, generation
}

// reportPresence queues a change of the member's presence. The caller holds
// topic.mu, so presenceLoop calls Presence.
func (m *member) reportPresence(kind message.PresenceKind) {
	c := m.client
	if c.session == "" || c.hub.cfg.Presence == nil {
		return
	}
	// The rate of joins and leaves bounds the queue, and Change takes all of it
	// at once.
	c.hub.presenceChanges.put(message.PresenceChange{
		Kind: kind, Room: m.topic.room, Session: c.session, User: c.user, Generation: c.generation,
	}, 0, 0, c.hub.presenceLoop)
}

// presenceLoop reports queued changes to Presence until there are none.
func (h *Hub) presenceLoop() {
	for {
		changes, ok := h.presenceChanges.dequeueAll()
		if !ok {
			return
		}
		h.cfg.Presence.Change(changes)
	}
}

// RoomPresence returns the presence of a room across all nodes. An error wraps
// message.ErrUnavailable.
func (h *Hub) RoomPresence(ctx context.Context, room message.Room) (message.Presence, error) {
	if h.cfg.Presence == nil {
		return message.Presence{}, fmt.Errorf("reading presence: %w: it is disabled", message.ErrUnavailable)
	}
	ctx, cancel := context.WithTimeout(ctx, presenceTimeout)
	defer cancel()
	p, err := h.cfg.Presence.Room(ctx, room, h.cfg.PresenceLimit)
	if err != nil {
		return p, fmt.Errorf("reading presence: %w: %w", message.ErrUnavailable, err)
	}
	return p, nil
}

// sendPresence answers a presence request. A member also receives changes from then
// on.
func (c *Client) sendPresence(ctx context.Context, r *protocol.Request) error {
	if c.hub.cfg.Presence == nil {
		return protocol.ErrUnknownType
	}
	m := c.find(r.Room)
	if m == nil {
		p, err := c.hub.RoomPresence(ctx, r.Room)
		if err != nil {
			return err
		}
		c.out.SendAnswer(snapshotFrame(r.Room, &p).Encode(r.Ref))
		return nil
	}
	return m.topic.watchPresence(ctx, m, r.Ref)
}

// find returns the client's member of a room, or nil if it is not in the room.
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

// A presenceWatch holds the members of a topic that requested presence, and the
// presence that was last sent to them.
type presenceWatch struct {
	watchers map[*member]struct{}
	lastSent message.Presence
	dirty    bool // the presence may have changed since the last query
	running  bool // presenceRefreshLoop is running
}

// watchPresence answers a member's presence request and sends the member
// changes from then on. One query serves the answer and the changes for the
// members that watch already.
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
		return nil // the member left meanwhile: no frame of the room follows
	}
	t.sendPresenceChanges(&p)
	m.client.out.SendAnswer(snapshotFrame(t.room, &p).Encode(ref))
	if t.presenceWatch.watchers == nil {
		t.presenceWatch.watchers = make(map[*member]struct{})
	}
	t.presenceWatch.watchers[m] = struct{}{}
	return nil
}

// unwatchPresence stops sending presence changes to a member. Caller holds mu.
func (t *topic) unwatchPresence(m *member) {
	delete(t.presenceWatch.watchers, m)
	if len(t.presenceWatch.watchers) == 0 {
		t.presenceWatch.watchers, t.presenceWatch.lastSent = nil, message.Presence{}
	}
}

// PresenceChanged reports that the presence of these rooms may have changed, or
// that of any room if rooms is empty. It does not block, and costs nothing for
// a room that no member watches.
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

// schedulePresenceRefresh starts a query of the room's presence if a member
// watches.
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

// presenceRefreshLoop queries the room's presence, at most once per
// presenceInterval, while it may have changed and a member watches.
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

// nextPresenceRefresh reports whether another query is due, and clears dirty.
func (t *topic) nextPresenceRefresh() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.presenceWatch.running = t.presenceWatch.dirty && len(t.presenceWatch.watchers) > 0 && !t.closed
	t.presenceWatch.dirty = false
	return t.presenceWatch.running
}

// refreshPresence sends the watching members what changed. It returns false if
// the query failed.
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

// sendPresenceChanges sends the watching members the difference from what they
// were last sent. Caller holds mu and the token of presenceLock.
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

// presenceDiff returns the frame that turns one presence into the next, and
// false if they look the same to clients.
func presenceDiff(room message.Room, before, now *message.Presence) (protocol.Presence, bool) {
	if before.Entries == nil || now.Entries == nil {
		// One of the two is only a count.
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

// snapshotFrame returns a frame with the complete presence of a room.
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

// wirePresenceEntry returns an entry in the form in which a frame carries it.
func wirePresenceEntry(e message.PresenceEntry) protocol.PresenceEntry {
	wire := protocol.PresenceEntry{Session: string(e.Session)}
	if e.User != "" {
		wire.User = &e.User
	}
	return wire
}
