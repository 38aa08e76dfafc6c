package sharedstate

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"

	"switchyard/internal/message"
)

// The encoding of a session record. Nodes of all releases that share a Redis
// must agree on it. The header is of fixed size, so that scripts can compare
// generations without reading the rest:
//
//	version     1 byte
//	generation  4 bytes, big endian
//	revision    8 bytes, big endian
//	flags       1 byte: 1 = partial
//	lengths     1 byte each, of the user, the node and the previous node
//
// The three texts follow, then the epochs, then the rooms in the order of their
// names. Numbers are varints from there on. A room has the length of the prefix
// that its name shares with the one before, the rest of the name, the index of
// its epoch and its seq: about 13 bytes for names such as orders:12345.
const (
	recordVersion = 1
	headerSize    = 17
	// maxRecord bounds a record, in bytes: about 1,900 rooms with the longest
	// names, or 15,000 with usual ones. A longer record is kept without its
	// rooms.
	maxRecord = 256 << 10

	flagPartial = 1
)

var errBadRecord = errors.New("a session record can't be decoded")

// encode returns the encoded record. If it would exceed maxRecord, or the session
// is partial, it leaves the rooms out, sets the flag, and returns false.
func (r *sessionRecord) encode() (bytes []byte, whole bool) {
	b := make([]byte, 0, headerSize+256+16*len(r.Rooms))
	b = append(b, recordVersion)
	b = binary.BigEndian.AppendUint32(b, uint32(r.Generation)) //nolint:gosec // one more a takeover
	b = binary.BigEndian.AppendUint64(b, uint64(r.Revision))   //nolint:gosec // never negative
	var flags byte
	if r.Partial {
		flags = flagPartial
	}
	b = append(b, flags, byte(len(r.User)), byte(len(r.node)), byte(len(r.PreviousNode)))
	b = append(b, r.User...)
	b = append(b, r.node...)
	b = append(b, r.PreviousNode...)
	if r.Partial {
		return appendRooms(b, nil), false
	}
	b = appendRooms(b, r.Rooms)
	if len(b) <= maxRecord {
		return b, true
	}
	partial := *r
	partial.Partial = true
	return partial.encode()
}

// appendRooms appends the epochs and the rooms.
func appendRooms(b []byte, rooms []message.RoomPosition) []byte {
	rooms = slices.Clone(rooms) // because the caller owns it
	slices.SortFunc(rooms, func(x, y message.RoomPosition) int { return strings.Compare(string(x.Room), string(y.Room)) })
	var epochs []message.Epoch
	for _, p := range rooms {
		if !slices.Contains(epochs, p.Epoch) { // more than one only after a restore
			epochs = append(epochs, p.Epoch)
		}
	}
	b = binary.AppendUvarint(b, uint64(len(epochs)))
	for _, e := range epochs {
		b = appendText(b, string(e))
	}
	b = binary.AppendUvarint(b, uint64(len(rooms)))
	before := ""
	for _, p := range rooms {
		name := string(p.Room)
		same := 0
		for same < len(name) && same < len(before) && name[same] == before[same] {
			same++
		}
		b = binary.AppendUvarint(b, uint64(same)) //nolint:gosec // a length
		b = appendText(b, name[same:])
		b = binary.AppendUvarint(b, uint64(slices.Index(epochs, p.Epoch))) //nolint:gosec // it is among them
		b = binary.AppendUvarint(b, uint64(max(p.Seq, 0)))
		before = name
	}
	return b
}

// appendText appends a length and the text.
func appendText(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// decodeRecord decodes what encode returned. It accepts any input, because
// another program may write to the same Redis.
func decodeRecord(b []byte) (sessionRecord, error) {
	if len(b) < headerSize || len(b) > maxRecord || b[0] != recordVersion {
		return sessionRecord{}, errBadRecord
	}
	r := sessionRecord{Session: message.Session{
		Generation: int64(binary.BigEndian.Uint32(b[1:])),
		Revision:   int64(binary.BigEndian.Uint64(b[5:])), //nolint:gosec // checked below
		Partial:    b[13]&flagPartial != 0,
	}}
	in := reader{rest: b[headerSize:]}
	r.User, r.node, r.PreviousNode = in.text(uint64(b[14])), in.text(uint64(b[15])), in.text(uint64(b[16]))
	r.Rooms = in.rooms()
	if in.invalid || len(in.rest) > 0 || r.Revision < 0 {
		return sessionRecord{}, errBadRecord
	}
	return r, nil
}

// A reader decodes the input from front to back. After the first error it is
// invalid and empty.
type reader struct {
	rest    []byte
	invalid bool
}

// number reads a varint of at most limit.
func (in *reader) number(limit uint64) uint64 {
	v, n := binary.Uvarint(in.rest)
	if n <= 0 || v > limit {
		in.invalid, in.rest = true, nil
		return 0
	}
	in.rest = in.rest[n:]
	return v
}

// text reads a text of size bytes.
func (in *reader) text(size uint64) string {
	if size > uint64(len(in.rest)) {
		in.invalid, in.rest = true, nil
		return ""
	}
	s := string(in.rest[:size])
	in.rest = in.rest[size:]
	return s
}

// maxSeq is the largest integer that a JSON number holds exactly.
const maxSeq = 1<<53 - 1

// rooms reads the epochs and the rooms.
func (in *reader) rooms() []message.RoomPosition {
	epochs := make([]message.Epoch, 0, 1)
	for range in.number(uint64(len(in.rest))) {
		epochs = append(epochs, message.Epoch(in.text(in.number(maxRecord))))
	}
	// A room takes at least 4 bytes, which bounds the allocation.
	count := in.number(uint64(len(in.rest) / 4)) //nolint:gosec // a length
	if count == 0 {
		return nil
	}
	rooms := make([]message.RoomPosition, 0, count)
	before := ""
	for range count {
		same := in.number(uint64(len(before)))
		name := before[:same] + in.text(in.number(message.MaxRoomLength))
		epoch := in.number(uint64(len(epochs)))
		seq := in.number(maxSeq)
		room, err := message.ParseRoom(name)
		if in.invalid || err != nil || epoch >= uint64(len(epochs)) {
			in.invalid = true
			return nil
		}
		rooms = append(rooms, message.RoomPosition{Room: room, Epoch: epochs[epoch], Seq: message.Seq(seq)}) //nolint:gosec // at most maxSeq
		before = name
	}
	return rooms
}
