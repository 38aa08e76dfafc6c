package store

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"switchyard/internal/message"
)

// maxRoomList bounds one answer of ListRooms.
const maxRoomList = 1000

// nameRanges selects the names that sort above after and lie within either of
// two half-open ranges, in the byte order of names.
type nameRanges struct {
	after     string
	low, high [2]string
}

// Room names are ASCII, and ~ sorts behind all characters that they may contain.
const (
	lastName      = "~"
	firstReserved = "_"
	pastReserved  = "`" // the byte after _
)

// nameRangesFor returns the ranges for a prefix, or a *message.InvalidError.
func nameRangesFor(prefix string, after message.Room, limit int) (nameRanges, error) {
	if limit < 1 || limit > maxRoomList {
		return nameRanges{}, &message.InvalidError{Field: "limit", Reason: fmt.Sprintf("must be 1 to %d", maxRoomList)}
	}
	// An after that is not a valid name is harmless, since it lies between
	// names. But PostgreSQL accepts no NUL and no invalid UTF-8 in a text.
	if a := string(after); !utf8.ValidString(a) || strings.ContainsRune(a, 0) {
		return nameRanges{}, &message.InvalidError{Field: "after", Reason: "must be the name of a room"}
	}
	n := nameRanges{after: string(after)}
	if prefix == "" {
		n.high[0], n.low[1], n.high[1] = firstReserved, pastReserved, lastName
		return n, nil
	}
	if _, err := message.ParseRoom(prefix); err != nil {
		return nameRanges{}, &message.InvalidError{Field: "prefix", Reason: "must be the beginning of a room's name"}
	}
	n.low[0], n.high[0] = prefix, prefix+lastName
	return n, nil // the second range is empty: nothing is below ""
}
