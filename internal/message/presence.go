package message

// A PresenceKind is what a PresenceChange says of a session in a room.
type PresenceKind int

// The kinds of presence changes.
const (
	// PresenceJoined: it is in the room.
	PresenceJoined PresenceKind = iota
	// PresenceLeft: it left by its own wish, and is gone at once.
	PresenceLeft
	// PresenceDisconnected: its socket ended. It is gone after a grace, unless the
	// session is back in the room by then, on whichever node.
	PresenceDisconnected
)

// A PresenceChange is about one session in one room.
type PresenceChange struct {
	Kind    PresenceKind
	Room    Room
	Session SessionID
	// User is "" for anonymous ones.
	User string
	// Generation is the session's: of two sockets that tell of the same
	// session the newer one is believed.
	Generation int64
}

// A PresenceEntry is a session that is in a room.
type PresenceEntry struct {
	Session SessionID
	User    string
}

// Presence is who is in a room, on all nodes. A session counts once.
type Presence struct {
	Count int
	// Entries is sorted by session, and nil when they are too many to list.
	Entries []PresenceEntry
}
