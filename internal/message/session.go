package message

// A SessionID names a session to everybody: the part of its secret before the
// dot. Who knows it cannot take the session over.
type SessionID string

// A Session is what outlives a socket: whose it is, which rooms it is in, and
// how far its client provably got in each.
type Session struct {
	ID SessionID
	// User is "" for anonymous ones.
	User string
	// Generation is 1 for a fresh session and raised by each takeover. Of two
	// sockets of a session the one with the greater generation owns it.
	Generation int64
	// Revision counts the owner's changes of Rooms, from 0 after a takeover.
	Revision int64
	// PreviousNode is the node that owned the session before this takeover, "" when
	// the session is fresh.
	PreviousNode string
	// Rooms has each room once.
	Rooms []Position
	// Partial says that Rooms was too long to be kept and is empty: whoever
	// relies on the service for its rooms has to be told to begin anew.
	Partial bool
}

// A Position is how far a client provably got in a room.
type Position struct {
	Room  Room
	Epoch Epoch
	Seq   Seq
}

// A SessionSave is one session of a batch that is to be kept.
type SessionSave struct {
	Session
	// Touch says that Rooms is left out, since nothing has changed from this
	// Revision, which was saved before: the session is only kept for longer.
	Touch bool
}

// A SaveResult is what became of a SessionSave.
type SaveResult int

// The results of a save.
const (
	// SaveDone: it is kept from now on for the whole lifetime of sessions.
	SaveDone SaveResult = iota
	// SaveFailed: it could not be kept now, or nobody knows whether it was.
	SaveFailed
	// SaveSuperseded: a newer socket owns the session. This one has lost it,
	// and its place in rooms with it.
	SaveSuperseded
	// SaveMissing: a touch found another state, or none. Save it whole.
	SaveMissing
)
