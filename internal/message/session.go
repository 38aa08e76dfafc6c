package message

// A SessionID is the public name of a session: the part of its secret before
// the dot. It does not suffice to take the session over.
type SessionID string

// A Session is what outlives a connection: its user, its rooms, and the
// position in each room up to which its client confirmed every message.
type Session struct {
	ID SessionID
	// User is "" for an anonymous one.
	User string
	// Generation is 1 for a fresh session and raised by each takeover. Of two
	// connections of a session the one with the greater generation owns it.
	Generation int64
	// Revision counts the owner's changes of Rooms, from 0 after a takeover.
	Revision int64
	// PreviousNode is the node that owned the session before this takeover, ""
	// when the session is fresh.
	PreviousNode string
	// Rooms has each room once.
	Rooms []RoomPosition
	// Partial means that Rooms was too long to be stored and is empty: a client
	// that relies on the service for its rooms must start from scratch.
	Partial bool
}

// A RoomPosition is how far a client has confirmed the messages of a room: a
// position, with the room that it belongs to.
type RoomPosition struct {
	Room  Room
	Epoch Epoch
	Seq   Seq
}

// A SessionSave is one session of a batch that is to be saved.
type SessionSave struct {
	Session
	// Renew means that this Revision was saved before and nothing has changed
	// since. Rooms is left out, and only the session's lifetime is extended.
	Renew bool
}

// A SaveResult is the outcome of a SessionSave.
type SaveResult int

// The outcomes of a save.
const (
	// SaveDone: the session is stored for its whole lifetime from now.
	SaveDone SaveResult = iota
	// SaveFailed: the session could not be stored now, or the outcome is
	// unknown.
	SaveFailed
	// SaveSuperseded: a newer connection owns the session. This connection no
	// longer owns the session or its memberships.
	SaveSuperseded
	// SaveMissing: a renewal found another revision, or no session. Save the
	// whole session.
	SaveMissing
)
