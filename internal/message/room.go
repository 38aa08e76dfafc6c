package message

// Bounds on the length of names, in bytes.
const (
	MaxRoomLength = 128
	MaxIDLength   = 64
	MaxRefLength  = 64
	MaxUserLength = 128
)

// A Room is the name of an ordered stream of messages: 1 to MaxRoomLength bytes
// of A-Z a-z 0-9 . _ - :. Names that begin with _ belong to the service.
type Room string

// ParseRoom returns the room named s, or an *InvalidError.
func ParseRoom(s string) (Room, error) {
	if !isName(s, MaxRoomLength) {
		return "", &InvalidError{Field: "room", Reason: "must be 1 to 128 of A-Z a-z 0-9 . _ - :"}
	}
	return Room(s), nil
}

// Reserved reports whether the room belongs to the service and is closed to
// clients.
func (r Room) Reserved() bool { return r != "" && r[0] == '_' }

// CheckID returns an *InvalidError unless s is a valid idempotency key: 1 to
// MaxIDLength bytes of A-Z a-z 0-9 . _ - :.
func CheckID(s string) error {
	if !isName(s, MaxIDLength) {
		return &InvalidError{Field: "id", Reason: "must be 1 to 64 of A-Z a-z 0-9 . _ - :"}
	}
	return nil
}

// isName reports whether s is 1 to limit bytes of the alphabet of names.
func isName(s string, limit int) bool {
	if s == "" || len(s) > limit {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '.', c == '_', c == '-', c == ':':
		default:
			return false
		}
	}
	return true
}
