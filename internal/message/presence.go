package message

// A PresenceKind is what a PresenceChange says about a session in a room.
type PresenceKind int

// The kinds of presence changes.
const (
	// PresenceJoined: the session is in the room.
	PresenceJoined PresenceKind = iota
	// PresenceLeft: the session left on purpose and is gone at once.
	PresenceLeft
	// PresenceDisconnected: the session's connection ended. The session is gone
	// after a grace period, unless it returns to the room before that, on any
	// node.
	PresenceDisconnected
)

// A PresenceChange is about one session in one room.
type PresenceChange struct {
	Kind    PresenceKind
	Room    Room
	Session SessionID
	// User is "" for an anonymous one.
	User string
	// Generation is the session's. If two connections of a session report
	// changes, those of the greater generation count.
	Generation int64
}

// A PresenceEntry is a session that is in a room.
type PresenceEntry struct {
	Session SessionID
	User    string
}

// Presence is the sessions in a room, across all nodes. A session counts once.
type Presence struct {
	Count int
	// Entries is sorted by session, and nil when there are too many to list.
	Entries []PresenceEntry
}
