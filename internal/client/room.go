package client

import (
	"slices"

	"switchyard/internal/message"
)

// A Position is where a join starts: after a seq of an epoch. The zero value is
// Now.
type Position struct {
	Epoch message.Epoch
	After message.Seq
	given bool // false: from now, or from the last messages
	last  int  // how many messages before now
}

// Now is the position after the newest message: a join gets only new messages.
func Now() Position { return Position{} }

// Start is the position before the oldest message that is stored.
func Start() Position { return Position{given: true} }

// After is the position after seq in that epoch.
func After(epoch message.Epoch, seq message.Seq) Position {
	return Position{Epoch: epoch, After: seq, given: true}
}

// Last is the position before the newest n messages that are stored. It becomes
// known with the answer to the join.
func Last(n int) Position { return Position{last: max(n, 0)} }

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
	// Ended is called when the service refuses to let the client rejoin the room, or
	// takes it away because a new token does not open it. After an *Error with the code
	// forbidden the client joins the room again with a token that opens it, from the last
	// position, and calls Joined; otherwise it has left the room.
	Ended func(error)
}

// A roomState is the client's state of a room that it has joined or will join.
type roomState struct {
	name    message.Room
	readers []*reader     // in the order of joining, at least one
	epoch   message.Epoch // the last that the service has named; "" before
	watched bool          // Client.Presence was called
	removed bool          // the service has taken it away, and its readers know
}

// A reader is what one call of Join or JoinRoom has for itself. Its handler is
// static.
type reader struct {
	handler   Handler
	position  Position         // the last one seen, on any connection
	firstJoin chan joinOutcome // gets the first outcome, and is nil after it
}

// position returns the position to join from: that of the reader that lags most, of
// those in the newest epoch if there is one. It is Now before the first is known.
func (r *roomState) position() Position {
	isIn := func(epoch message.Epoch) func(*reader) bool {
		return func(rd *reader) bool {
			return rd.position.given && (epoch == "" || rd.position.Epoch == "" || rd.position.Epoch == epoch)
		}
	}
	first := slices.IndexFunc(r.readers, isIn(""))
	if first < 0 {
		return Now()
	}
	newest := r.epoch
	if !slices.ContainsFunc(r.readers, isIn(newest)) {
		newest = r.readers[first].position.Epoch
	}
	lowest := Position{}
	for _, rd := range r.readers {
		if isIn(newest)(rd) && (!lowest.given || rd.position.After < lowest.After) {
			lowest = rd.position
		}
	}
	return lowest
}

// covers reports whether a join from p delivers what follows other.
func (p Position) covers(other Position) bool {
	return p.After <= other.After && (p.Epoch == other.Epoch || p.Epoch == "")
}

// start gives the reader its position once the bounds of the room are known.
func (rd *reader) start(j Joined) {
	if !rd.position.given {
		rd.position = After(j.Epoch, max(min(j.First-1, j.Head), j.Head-message.Seq(rd.position.last)))
	} else if rd.position.Epoch == "" {
		rd.position.Epoch = j.Epoch
	}
}

// A joinOutcome is the answer to the first join, or why there is none.
type joinOutcome struct {
	joined Joined
	err    error
}

func (rd *reader) completeJoin(j Joined, err error) {
	if rd.firstJoin != nil {
		rd.firstJoin <- joinOutcome{j, err}
		rd.firstJoin = nil
	}
}

// A membership is a room on one connection.
type membership struct {
	// ref is the ref of the last join; sent and joined say that it was sent and
	// answered. Messages before the answer belong to an earlier join.
	ref          string
	sent, joined bool
	presence     bool // presence was requested after the join
	// from is the position that the last join was sent with. forNewReader says that
	// the join is for a reader that was added, and that the others do not see
	// the answer.
	from         Position
	forNewReader bool
	// epoch is the last one seen on this connection. When the room's position is
	// in another epoch, frames in this one are stale.
	epoch message.Epoch
	// removedFor is 0, or after how many more accepted tokens a room that the service
	// has taken away is joined again.
	removedFor int
	// missingAfter is the position after which a message was missing and
	// requested again; zero if none was.
	missingAfter Position
}

// isStaleEpoch reports whether a frame in epoch is stale: this connection is still
// in that epoch, while the room's position, moved on by the other connection, is
// in a newer one.
func (m *membership) isStaleEpoch(epoch message.Epoch, r *roomState) bool {
	return epoch != r.position().Epoch && epoch == m.epoch
}
