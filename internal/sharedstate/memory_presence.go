package sharedstate

import (
	"context"
	"maps"

	"switchyard/internal/message"
)

// A memoryPresenceEntry is one session in one room.
type memoryPresenceEntry struct {
	user       string
	generation int64
	tag        string
}

// memoryPresence holds the presence entries of all nodes: what
// apply_presence.lua keeps in Redis, except the set of rooms of each tag. A
// sweep searches all rooms instead.
type memoryPresence struct {
	rooms     map[message.Room]map[message.SessionID]memoryPresenceEntry
	revisions [shardCount]map[string]int64 // by tag
}

// applyPresence does what apply_presence.lua does.
func (m *nodeView) applyPresence(_ context.Context, batches []*presenceBatch) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, b := range batches {
		m.applyBatch(b)
	}
}

// applyBatch applies one batch, and writes its outcome into it. The caller holds
// mu.
func (m *nodeView) applyBatch(b *presenceBatch) {
	tags := m.revisionsOf(b.shard)
	at := tags[b.tag]
	if b.lost = at < b.minRevision || at > b.revision; b.lost || at == b.revision {
		return
	}
	tags[b.tag] = b.revision
	changed := make(map[message.Room]bool)
	for _, c := range b.changes {
		room := m.rooms[c.room]
		old, known := room[c.session]
		switch {
		case known && (old.generation > c.generation || replaces(old.tag, b.tag)):
		case c.present:
			if room == nil {
				room = make(map[message.SessionID]memoryPresenceEntry)
				m.rooms[c.room] = room
			}
			room[c.session] = memoryPresenceEntry{c.user, c.generation, b.tag}
			changed[c.room] = changed[c.room] || !known
		case known && old.tag == b.tag:
			m.removeEntry(c.room, c.session)
			changed[c.room] = true
		}
	}
	for room, differs := range changed {
		if differs {
			b.changedRooms = append(b.changedRooms, room)
		}
	}
}

// replaces reports whether a tag is a newer one of the same node.
func replaces(tag, other string) bool {
	number, otherNumber := tagNumber(tag), tagNumber(other)
	return nodeOf(tag) == nodeOf(other) && number > otherNumber
}

// removeEntry removes an entry, and its room with the last one. The caller holds
// mu.
func (m *nodeView) removeEntry(room message.Room, session message.SessionID) {
	delete(m.rooms[room], session)
	if len(m.rooms[room]) == 0 {
		delete(m.rooms, room)
	}
}

// revisionsOf returns the revisions of a shard, by tag. The caller holds mu.
func (m *nodeView) revisionsOf(shard int) map[string]int64 {
	if m.revisions[shard] == nil {
		m.revisions[shard] = make(map[string]int64)
	}
	return m.revisions[shard]
}

// tags does what tags.lua does, for all shards.
func (m *nodeView) tags(context.Context) ([]map[string]int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]map[string]int64, shardCount)
	for i := range all {
		all[i] = maps.Clone(m.revisionsOf(i))
	}
	return all, nil
}

// sweep does what sweep.lua and sweep_room.lua do, in one step.
func (m *nodeView) sweep(_ context.Context, shard int, tag string) (more, removed bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for room, sessions := range m.rooms {
		for session, e := range sessions {
			if e.tag == tag && shardOf(room) == shard {
				m.removeEntry(room, session)
			}
		}
	}
	_, removed = m.revisionsOf(shard)[tag]
	delete(m.revisionsOf(shard), tag)
	return false, removed, nil
}

// roomPresence does what room_presence.lua does.
func (m *nodeView) roomPresence(
	_ context.Context, room message.Room, alive map[string]bool, limit int,
) (message.Presence, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	count := 0
	entries := []message.PresenceEntry{}
	for session, e := range m.rooms[room] {
		if !alive[nodeOf(e.tag)] {
			continue
		}
		if count++; count <= limit+1 { // those of a larger room are not listed
			entries = append(entries, message.PresenceEntry{Session: session, User: e.user})
		}
	}
	p := presenceOf(entries, limit)
	p.Count = count
	return p, nil
}
