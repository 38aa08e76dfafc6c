package store

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"switchyard/internal/message"
)

// maxRoomList bounds one answer of ListRooms.
const maxRoomList = 1000

// nameRanges are the names that ListRooms looks for: above after and within
// one of two half-open ranges. All bounds are in the byte order of names.
type nameRanges struct {
	after     string
	low, high [2]string
}

// Names hold only ASCII, of which ~ sorts behind all that they may hold.
const (
	lastName      = "~"
	firstReserved = "_"
	pastReserved  = "`" // the byte behind _
)

// nameRangesFor returns the ranges for a prefix, or a *message.InvalidError.
func nameRangesFor(prefix string, after message.Room, limit int) (nameRanges, error) {
	if limit < 1 || limit > maxRoomList {
		return nameRanges{}, &message.InvalidError{Field: "limit", Reason: fmt.Sprintf("must be 1 to %d", maxRoomList)}
	}
	// What is no name can only lie between names, which is harmless; but
	// PostgreSQL takes no NUL and no broken UTF-8 in a text.
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
