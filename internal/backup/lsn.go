package backup

import (
	"fmt"
	"strconv"
	"strings"
)

// An LSN is a position in the write-ahead log, in bytes. Its text is PostgreSQL's,
// such as 0/16B3748.
type LSN uint64

// ParseLSN parses an LSN as PostgreSQL prints it.
func ParseLSN(s string) (LSN, error) {
	high, low, found := strings.Cut(s, "/")
	h, err1 := strconv.ParseUint(high, 16, 32)
	l, err2 := strconv.ParseUint(low, 16, 32)
	if !found || err1 != nil || err2 != nil {
		return 0, fmt.Errorf("%q is not a position in the WAL, such as 0/16B3748", s)
	}
	return LSN(h<<32 | l), nil
}

func (l LSN) String() string { return fmt.Sprintf("%X/%X", uint64(l)>>32, uint64(l)&0xffffffff) }

// MarshalText implements encoding.TextMarshaler.
func (l LSN) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (l *LSN) UnmarshalText(b []byte) (err error) {
	*l, err = ParseLSN(string(b))
	return err
}

// A segment identifies one file of the WAL.
type segment struct {
	timeline uint32
	number   uint64
}

// name returns PostgreSQL's name of the file, for segments of this many bytes.
func (s segment) name(bytes int64) string {
	perID := uint64(1<<32) / uint64(bytes)
	return fmt.Sprintf("%08X%08X%08X", s.timeline, s.number/perID, s.number%perID)
}

// parseSegment parses a file's name. ok is false if it is not a segment's.
func parseSegment(name string, bytes int64) (s segment, ok bool) {
	if len(name) != 24 || strings.ToUpper(name) != name {
		return segment{}, false
	}
	timeline, err1 := strconv.ParseUint(name[:8], 16, 32)
	high, err2 := strconv.ParseUint(name[8:16], 16, 32)
	low, err3 := strconv.ParseUint(name[16:], 16, 32)
	perID := uint64(1<<32) / uint64(bytes)
	if err1 != nil || err2 != nil || err3 != nil || low >= perID {
		return segment{}, false
	}
	return segment{uint32(timeline), high*perID + low}, true
}

// segmentOf returns the number of the segment that holds a position.
func segmentOf(l LSN, bytes int64) uint64 { return uint64(l) / uint64(bytes) }
