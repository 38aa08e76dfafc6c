package sharedstate

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"

	"switchyard/internal/message"
)

// How a record looks in Redis. The head is of fixed size, so that scripts can
// compare generations without reading the rest; nodes of all versions that
// share a Redis must agree on it:
//
//	version     1 byte
//	generation  4 bytes, big endian
//	revision    8 bytes, big endian
//	flags       1 byte: 1 = partial
//	lengths     1 byte each of user, node and from, which follow
//	body        epochs, then rooms in order of their names
//
// Numbers in the body are varints. A room has the length of what its name
// shares with the one before, the rest of the name, the index of its epoch and
// its seq: about 13 bytes for names such as orders:12345.
const (
	recordVersion = 1
	headerSize    = 17
	// maxRecord bounds a record, in bytes: about 1,900 rooms with the longest
	// names, or 15,000 usual ones. A longer one is kept without its rooms.
	maxRecord = 256 << 10

	flagPartial = 1
)

var errBadRecord = errors.New("a session's record can't be read")

// encode returns the record's bytes. With too many rooms these are left out,
// the record says so, and whole is false.
func (r *sessionRecord) encode() (bytes []byte, whole bool) {
	b := make([]byte, 0, headerSize+256+16*len(r.Rooms))
	b = append(b, recordVersion)
	b = binary.BigEndian.AppendUint32(b, uint32(r.Generation)) //nolint:gosec // raised by one a takeover
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

func appendRooms(b []byte, rooms []message.RoomPosition) []byte {
	rooms = slices.Clone(rooms) // it is the caller's
	slices.SortFunc(rooms, func(x, y message.RoomPosition) int { return strings.Compare(string(x.Room), string(y.Room)) })
	var epochs []message.Epoch
	for _, p := range rooms {
		if !slices.Contains(epochs, p.Epoch) { // one, but after a restore
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

func appendText(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// decodeRecord reads what encode wrote. It trusts nothing: Redis may hold what
// others put there.
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

// A reader takes pieces off the front; once one was not there it is bad.
type reader struct {
	rest    []byte
	invalid bool
}

func (in *reader) number(limit uint64) uint64 {
	v, n := binary.Uvarint(in.rest)
	if n <= 0 || v > limit {
		in.invalid, in.rest = true, nil
		return 0
	}
	in.rest = in.rest[n:]
	return v
}

func (in *reader) text(size uint64) string {
	if size > uint64(len(in.rest)) {
		in.invalid, in.rest = true, nil
		return ""
	}
	s := string(in.rest[:size])
	in.rest = in.rest[size:]
	return s
}

// maxSeq is the largest seq that a JSON number carries whole.
const maxSeq = 1<<53 - 1

func (in *reader) rooms() []message.RoomPosition {
	epochs := make([]message.Epoch, 0, 1)
	for range in.number(uint64(len(in.rest))) {
		epochs = append(epochs, message.Epoch(in.text(in.number(maxRecord))))
	}
	// A room takes 4 bytes at least, which bounds what is allocated.
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
