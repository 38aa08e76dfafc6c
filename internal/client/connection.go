package client

import (
	"time"

	"switchyard/internal/message"
)

// A closeResult is how a connection, or an attempt to make one, ended.
type closeResult struct {
	code     int // the close code, or the one that stands for the failure
	err      error
	lifetime time.Duration // since the welcome
	// superseded: this client has tried a later connection, which is then the
	// cause of a close with 4009.
	superseded bool
}

// A connection is one connection from its welcome to its end. Two are open during
// a move, so the state of a room on one of them is kept here: its membership.
type connection struct {
	// Static.
	sock       *socket
	number     uint64 // in the order of opening, from 1
	welcome    Welcome
	openedAt   time.Time     // when the handshake began, after the call of Options.Token
	welcomedAt time.Time     // when the welcome arrived
	ended      chan struct{} // closed when it ended while it was the next one of a move

	// Guarded by mu, each used by one part: the link, the tokens and the rooms.
	pendingMove  *moveRequest // arrived while this was the next connection; started once it is current
	tokenExpires time.Time    // zero: never
	probe        string       // the ref of the ping that waits for its answer; "" without one
	silent       bool         // the ping was not answered in time
	memberships  map[message.Room]*membership
	pacer        pacer
	joins        joinQueue

	// Set by rooms.joinNext on the next connection of a move. Each has a buffer of
	// one and wakes the move: allJoined when all rooms are joined here, progress
	// when one more is.
	allJoined, progress chan struct{}
}

// request sends a request that will be answered.
func (c *connection) request(frame []byte, ref string, kind requestKind) {
	c.pacer.sent(ref, kind, len(frame))
	c.sock.send(frame)
}

// send sends a frame that has no answer.
func (c *connection) send(frame []byte, kind requestKind) {
	c.pacer.spent(kind, len(frame))
	c.sock.send(frame)
}

// millis converts the milliseconds of a frame to a Duration between zero and a
// day: a larger number could overflow, and the client never waits longer.
func millis(ms int64) time.Duration {
	return time.Duration(min(max(ms, 0), (24*time.Hour).Milliseconds())) * time.Millisecond
}
