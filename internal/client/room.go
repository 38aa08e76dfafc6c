package client

import "switchyard/internal/message"

// A Position is where a join starts: after a seq of an epoch. The zero value is
// Now.
type Position struct {
	Epoch message.Epoch
	After message.Seq
	given bool // false: from now
}

// Now is the position after the newest message: a join gets only new messages.
func Now() Position { return Position{} }

// Start is the position before the oldest message that is stored.
func Start() Position { return Position{given: true} }

// After is the position after seq in that epoch.
func After(epoch message.Epoch, seq message.Seq) Position {
	return Position{Epoch: epoch, After: seq, given: true}
}

// A Handler has the callbacks of a room; any of them may be nil. The client calls
// its callbacks in order and one at a time across all rooms, and reads no frame
// while one runs: after a slow callback the service may close the client as slow
// (4208).
type Handler struct {
	// Message gets each message once, in the order of seq. Only the seqs of a
	// Gap are missing.
	Message func(message.Message)
	Gap     func(Gap)
	Signal  func(Signal)
	// Joined is called after each join, also after a reconnect, but not after a
	// move.
	Joined func(Joined)
	// Presence gets changes after a call of Client.Presence, and the full list
	// after a reconnect or a move.
	Presence func(Presence)
	// Ended is called when the service refuses to let the client rejoin the room.
	// The client has then left it.
	Ended func(error)
}

// A roomState is the client's state of a room that it has joined or will join. Its
// handler is static.
type roomState struct {
	name      message.Room
	handler   Handler
	position  Position         // the last one seen, on any connection
	firstJoin chan joinOutcome // gets the first outcome, and is nil after it
	watched   bool             // Client.Presence was called
}

// A joinOutcome is the answer to the first join, or why there is none.
type joinOutcome struct {
	joined Joined
	err    error
}

func (r *roomState) completeJoin(j Joined, err error) {
	if r.firstJoin != nil {
		r.firstJoin <- joinOutcome{j, err}
		r.firstJoin = nil
	}
}

// A membership is a room on one connection.
type membership struct {
	// ref is the ref of the last join; sent and joined say that it was sent and
	// answered. Messages before the answer belong to an earlier join.
	ref          string
	sent, joined bool
	presence     bool // presence was requested after the join
	// epoch is the last one seen on this connection. When the room's position is
	// in another epoch, frames in this one are stale.
	epoch message.Epoch
	// missingAfter is the position after which a message was missing and
	// requested again; zero if none was.
	missingAfter Position
}

// isStaleEpoch reports whether a frame in epoch is stale: this connection is still
// in that epoch, while the room's position, moved on by the other connection, is
// in a newer one.
func (m *membership) isStaleEpoch(epoch message.Epoch, r *roomState) bool {
	return epoch != r.position.Epoch && epoch == m.epoch
}
