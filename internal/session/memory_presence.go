package session

import (
	"context"
	"maps"

	"switchyard/internal/message"
)

// A spaceSeat is who has a place in a room.
type spaceSeat struct {
	user       string
	generation int64
	tag        string
}

// spaceRooms is who is in which room. It is what present.lua and the others
// keep in Redis, but for the rooms of each tag: here they are looked for.
type spaceRooms struct {
	rooms     map[message.Room]map[message.SessionID]spaceSeat
	revisions [shardCount]map[string]int64 // by tag
}

// present is present.lua.
func (m *member) present(_ context.Context, rolls []*roll) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range rolls {
		m.presentOne(l)
	}
}

func (m *member) presentOne(l *roll) {
	tags := m.revisionsOf(l.shard)
	at := tags[l.tag]
	if l.lost = at < l.low || at > l.revision; l.lost || at == l.revision {
		return
	}
	tags[l.tag] = l.revision
	changed := make(map[message.Room]bool)
	for _, c := range l.changes {
		room := m.rooms[c.room]
		old, known := room[c.session]
		switch {
		case known && (old.generation > c.generation || replaces(old.tag, l.tag)):
		case c.here:
			if room == nil {
				room = make(map[message.SessionID]spaceSeat)
				m.rooms[c.room] = room
			}
			room[c.session] = spaceSeat{c.user, c.generation, l.tag}
			changed[c.room] = changed[c.room] || !known
		case known && old.tag == l.tag:
			m.unseat(c.room, c.session)
			changed[c.room] = true
		}
	}
	for room, differs := range changed {
		if differs {
			l.changed = append(l.changed, room)
		}
	}
}

// replaces says whether a tag has taken another one's place on the same node.
func replaces(tag, other string) bool {
	number, otherNumber := tagNumber(tag), tagNumber(other)
	return nodeOf(tag) == nodeOf(other) && number > otherNumber
}

func (m *member) unseat(room message.Room, session message.SessionID) {
	delete(m.rooms[room], session)
	if len(m.rooms[room]) == 0 {
		delete(m.rooms, room)
	}
}

// revisionsOf returns the tags of a shard. Caller holds mu.
func (m *member) revisionsOf(shard int) map[string]int64 {
	if m.revisions[shard] == nil {
		m.revisions[shard] = make(map[string]int64)
	}
	return m.revisions[shard]
}

func (m *member) tags(context.Context) ([]map[string]int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]map[string]int64, shardCount)
	for i := range all {
		all[i] = maps.Clone(m.revisionsOf(i))
	}
	return all, nil
}

// sweep is sweep.lua and sweep_room.lua, all at once.
func (m *member) sweep(_ context.Context, shard int, tag string) (left, gone bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for room, sessions := range m.rooms {
		for session, s := range sessions {
			if s.tag == tag && shardOf(room) == shard {
				m.unseat(room, session)
			}
		}
	}
	_, gone = m.revisionsOf(shard)[tag]
	delete(m.revisionsOf(shard), tag)
	return false, gone, nil
}

func (m *member) room(
	_ context.Context, room message.Room, alive map[string]bool, limit int,
) (message.Presence, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	members := []message.Member{}
	for session, s := range m.rooms[room] {
		if alive[nodeOf(s.tag)] {
			members = append(members, message.Member{Session: session, User: s.user})
		}
	}
	return listed(members, limit), nil
}
