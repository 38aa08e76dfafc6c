// Package message is the vocabulary that every part of Switchyard shares: what
// a room, a message and a position in a room are, and the errors that cross
// package borders. It imports nothing of ours and holds no state.
package message

import "time"

// Seq is a position in a room. The first message of a room has 1 and there are
// no holes; 0 stands for "before the first".
type Seq int64

// Epoch names one life of the log. A Seq means something only together with
// the Epoch it was counted in: after a restore to an older state the log gets a
// new one, and whoever meets it forgets its positions.
type Epoch string

// A Draft is a message before the log has numbered it.
type Draft struct {
	Room Room
	// ID is the publisher's idempotency key, unique for (Room, From).
	ID string
	// From is the publishing user, "" for anonymous ones.
	From string
	// Data is the JSON value as it was received, byte for byte.
	Data []byte
}

// A Message is one stored publication.
type Message struct {
	Draft
	Epoch Epoch
	Seq   Seq
	// At is the database's clock at the commit, in microseconds, never lower
	// than that of the message before it in the room.
	At time.Time
}

// A Publication is a Draft on its way through the log. Whoever appends it
// leaves it alone until the log has settled it; from then on the log does.
type Publication struct {
	Draft
	// Opaque is the appender's own note; the log carries it back unread.
	Opaque any

	// The outcome, written by the log before it settles the publication.
	// Either Err is set, or Epoch, Seq and At are.
	Epoch Epoch
	Seq   Seq
	At    time.Time
	// Duplicate says that the log held this ID with the same data before; Seq
	// and At are then those of the first time.
	Duplicate bool
	// Err wraps ErrConflict, ErrUnavailable, ErrRejected or another reason.
	Err error
}

// Message returns the stored message of a publication that succeeded.
func (p *Publication) Message() Message {
	return Message{Draft: p.Draft, Epoch: p.Epoch, Seq: p.Seq, At: p.At}
}

// A Range asks the log for part of a room. With Before set it means the
// newest messages below Before, else those from After+1 upwards; a page is
// ascending either way.
type Range struct {
	Room   Room
	After  Seq
	Before Seq
	// Limit bounds the count, MaxBytes the sum of the data; a page that has
	// any message to show holds one at least. Limit 0 asks for Head, First and
	// Epoch alone.
	Limit    int
	MaxBytes int
	// ForDelivery says that delivery waits for the answer: it is served apart from
	// readers, who may be many.
	ForDelivery bool
}

// A Page answers a Range. All of it comes from one snapshot.
type Page struct {
	Epoch Epoch
	// Head is the newest seq of the room, 0 when nothing was ever stored.
	Head Seq
	// First is the oldest seq still stored; Head+1 when none is.
	First    Seq
	Messages []Message
	// More says that the range holds further messages in its direction.
	More bool
}

// A Head tells how far a room has come.
type Head struct {
	Room Room
	Seq  Seq
}

// A RoomInfo describes a room to an operator: no history comes with it.
type RoomInfo struct {
	Room Room
	// Head is the newest seq, First the oldest still stored; First is Head+1
	// when none is.
	Head  Seq
	First Seq
	// LastAt is when Head was stored, zero when nothing ever was.
	LastAt time.Time
}

// A Cursor is a place in the commit feed. 0 stands for "from now".
type Cursor uint64

// Commits is what the commit feed held from a Cursor on.
type Commits struct {
	Epoch Epoch
	// Next is the cursor to ask with next. Some rooms may be told again.
	Next Cursor
	// Heads has a room once, with the highest seq that was committed.
	Heads []Head
	// Incomplete says that the feed no longer reaches back to the cursor: positions
	// must be compared by name.
	Incomplete bool
}
