package sharedstate

import (
	"context"
	"maps"

	"switchyard/internal/message"
)

// A memoryPresenceEntry is who has a place in a room.
type memoryPresenceEntry struct {
	user       string
	generation int64
	tag        string
}

// memoryPresence is who is in which room. It is what present.lua and the others
// keep in Redis, but for the rooms of each tag: here they are looked for.
type memoryPresence struct {
	rooms     map[message.Room]map[message.SessionID]memoryPresenceEntry
	revisions [shardCount]map[string]int64 // by tag
}

// applyPresence is present.lua.
func (m *nodeView) applyPresence(_ context.Context, batches []*presenceBatch) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range batches {
		m.applyBatch(l)
	}
}

func (m *nodeView) applyBatch(l *presenceBatch) {
	tags := m.revisionsOf(l.shard)
	at := tags[l.tag]
	if l.lost = at < l.minRevision || at > l.revision; l.lost || at == l.revision {
		return
	}
	tags[l.tag] = l.revision
	changed := make(map[message.Room]bool)
	for _, c := range l.changes {
		room := m.rooms[c.room]
		old, known := room[c.session]
		switch {
		case known && (old.generation > c.generation || replaces(old.tag, l.tag)):
		case c.present:
			if room == nil {
				room = make(map[message.SessionID]memoryPresenceEntry)
				m.rooms[c.room] = room
			}
			room[c.session] = memoryPresenceEntry{c.user, c.generation, l.tag}
			changed[c.room] = changed[c.room] || !known
		case known && old.tag == l.tag:
			m.removeEntry(c.room, c.session)
			changed[c.room] = true
		}
	}
	for room, differs := range changed {
		if differs {
			l.changedRooms = append(l.changedRooms, room)
		}
	}
}

// replaces says whether a tag has taken another one's place on the same node.
func replaces(tag, other string) bool {
	number, otherNumber := tagNumber(tag), tagNumber(other)
	return nodeOf(tag) == nodeOf(other) && number > otherNumber
}

func (m *nodeView) removeEntry(room message.Room, session message.SessionID) {
	delete(m.rooms[room], session)
	if len(m.rooms[room]) == 0 {
		delete(m.rooms, room)
	}
}

// revisionsOf returns the tags of a shard. Caller holds mu.
func (m *nodeView) revisionsOf(shard int) map[string]int64 {
	if m.revisions[shard] == nil {
		m.revisions[shard] = make(map[string]int64)
	}
	return m.revisions[shard]
}

func (m *nodeView) tags(context.Context) ([]map[string]int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]map[string]int64, shardCount)
	for i := range all {
		all[i] = maps.Clone(m.revisionsOf(i))
	}
	return all, nil
}

// sweep is sweep.lua and sweep_room.lua, all at once.
func (m *nodeView) sweep(_ context.Context, shard int, tag string) (more, removed bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for room, sessions := range m.rooms {
		for session, s := range sessions {
			if s.tag == tag && shardOf(room) == shard {
				m.removeEntry(room, session)
			}
		}
	}
	_, removed = m.revisionsOf(shard)[tag]
	delete(m.revisionsOf(shard), tag)
	return false, removed, nil
}

func (m *nodeView) roomPresence(
	_ context.Context, room message.Room, alive map[string]bool, limit int,
) (message.Presence, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	members := []message.PresenceEntry{}
	for session, s := range m.rooms[room] {
		if alive[nodeOf(s.tag)] {
			members = append(members, message.PresenceEntry{Session: session, User: s.user})
		}
	}
	return presenceOf(members, limit), nil
}
