// Package message is the vocabulary that all parts of Switchyard share: rooms,
// messages, positions, sessions, presence and the events between nodes, and the
// errors that cross package boundaries. It imports no other package of this
// module and holds no state.
package message

import "time"

// A Seq is the number of a message in its room. The first message of a room has
// 1 and there are no holes; 0 is the position before the first message.
type Seq int64

// An Epoch names an uninterrupted history of the log. A Seq means something
// only together with the Epoch it was counted in: a restore to an older state
// begins a new epoch, and positions of the earlier one are invalid.
type Epoch string

// A Draft is a message that has no seq yet.
type Draft struct {
	Room Room
	// ID is the publisher's idempotency key, unique within (Room, From).
	ID string
	// From is the publishing user, "" for an anonymous one.
	From string
	// Data is the JSON value as it was received, byte for byte.
	Data []byte
}

// A Message is a value that was published to a room and stored.
type Message struct {
	Draft
	Epoch Epoch
	Seq   Seq
	// At is the database's clock at the commit, in microseconds. It is never
	// earlier than that of the previous message in the room.
	At time.Time
}

// A Publication is a Draft on its way into the log, with the outcome once it is
// known. The log owns the publication from Append until the outcome is
// reported: nobody else reads or writes it meanwhile.
type Publication struct {
	Draft
	// Opaque belongs to the caller. The log does not read it.
	Opaque any

	// The outcome, which the log writes before it reports the publication.
	// Either Err is set, or Epoch, Seq and At are.
	Epoch Epoch
	Seq   Seq
	At    time.Time
	// Duplicate means that the log already held this ID with the same data. Seq
	// and At are those of the stored message.
	Duplicate bool
	// Err wraps ErrConflict, ErrUnavailable, ErrRejected or another reason.
	Err error
}

// Message returns the stored message of a publication that succeeded.
func (p *Publication) Message() Message {
	return Message{Draft: p.Draft, Epoch: p.Epoch, Seq: p.Seq, At: p.At}
}

// A Range selects a part of a room. With Before set it selects the newest
// messages below Before, otherwise those from After+1 upwards. The resulting
// page is in ascending order either way.
type Range struct {
	Room   Room
	After  Seq
	Before Seq
	// Limit bounds the number of messages and MaxBytes the sum of their data. A
	// page holds at least one message if the range has any. With Limit 0 the
	// page has Head, First and Epoch only.
	Limit    int
	MaxBytes int
	// ForDelivery is set by reads that message delivery waits for. The log
	// serves them separately from other readers, of which there may be many.
	ForDelivery bool
}

// A Page is the answer to a Range. All of it comes from one snapshot.
type Page struct {
	Epoch Epoch
	// Head is the newest seq of the room, 0 when nothing was ever stored.
	Head Seq
	// First is the oldest seq still stored, Head+1 when none is.
	First    Seq
	Messages []Message
	// More means that the range holds further messages in its direction.
	More bool
}

// A Head is the newest seq of a room.
type Head struct {
	Room Room
	Seq  Seq
}

// A RoomInfo describes a room to an operator, without its messages.
type RoomInfo struct {
	Room Room
	// Head is the newest seq, First the oldest still stored. First is Head+1
	// when none is.
	Head  Seq
	First Seq
	// LastAt is when Head was stored, zero when nothing ever was.
	LastAt time.Time
}

// A Cursor is a place in the commit feed, in the words of the log that returned
// it. "" is the feed's end at the moment of the read.
type Cursor string

// Commits is what the commit feed holds from a Cursor on.
type Commits struct {
	Epoch Epoch
	// Next is the cursor for the next read.
	Next Cursor
	// Heads has each committed room once, with its highest committed seq.
	Heads []Head
	// Incomplete means that Heads does not have every room that was committed
	// since the cursor: read the heads of the rooms by name.
	Incomplete bool
}
