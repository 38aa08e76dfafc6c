package load

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"time"

	"switchyard/internal/message"
)

// A kind is the kind of an event.
type kind uint8

// The kinds of events, with the fields that each uses beside At and Room.
const (
	published   kind = iota // Publisher, User, ID, Hash: a publish begins
	acked                   // User, ID, Hash, Epoch, Seq, Duplicate
	refused                 // User, ID, Hash, Reason: nothing was stored
	unknown                 // User, ID, Hash, Reason: stored once, or not at all
	joined                  // Sub, Epoch, Seq: the subscriber expects what follows Seq
	rejoined                // Sub, Epoch, Seq: joined again after a cut; Seq is the room's head
	delivered               // Sub, User, ID, Hash, Epoch, Seq
	gapDeclared             // Sub, Epoch, Seq, To, Reason: a gap, both ends included
	skipped                 // Sub, Epoch, Seq, To, Reason: the frame after To was Seq, which is too far; Reason is "" or epoch
	repeated                // Sub, Epoch, Seq, To: the frame after To was Seq, which is not above it
	left                    // Sub: the subscriber expects nothing more
	ended                   // Sub, Epoch, Seq: the subscriber must have reached Seq
	lateAck                 // User, ID, Epoch, Seq: a frame with an ack for a publish that had its outcome already
	kindCount               // the number of kinds
)

var kindNames = [kindCount]string{
	"publish", "ack", "refused", "unknown", "join", "rejoin", "deliver", "gap", "skip", "repeat", "leave", "end", "confirm",
}

// MarshalText encodes a kind for a file.
func (k kind) MarshalText() ([]byte, error) { return []byte(kindNames[k]), nil }

// UnmarshalText decodes a kind from a file.
func (k *kind) UnmarshalText(b []byte) error {
	i := slices.Index(kindNames[:], string(b))
	if i < 0 {
		return fmt.Errorf("%q is not a kind of event", b)
	}
	*k = kind(i)
	return nil
}

// An event is one line of a history.
type event struct {
	At        time.Duration `json:"t"` // nanoseconds since the history began
	Kind      kind          `json:"event"`
	Room      message.Room  `json:"room"`
	Publisher string        `json:"by,omitempty"`  // the publisher, whose publishes have an order
	Sub       string        `json:"sub,omitempty"` // the subscriber
	User      string        `json:"user,omitempty"`
	ID        string        `json:"id,omitempty"`
	Hash      hash          `json:"data,omitempty"`
	Epoch     message.Epoch `json:"epoch,omitempty"`
	Seq       message.Seq   `json:"seq,omitempty"`
	To        message.Seq   `json:"to,omitempty"`
	Reason    string        `json:"reason,omitempty"`
	Duplicate bool          `json:"duplicate,omitempty"`
}

// A hash identifies a message's data: the first 8 bytes of its SHA-256.
type hash uint64

// hashOf returns the hash of data.
func hashOf(data []byte) hash {
	sum := sha256.Sum256(data)
	return hash(binary.BigEndian.Uint64(sum[:]))
}

// MarshalText encodes a hash as 16 hexadecimal digits.
func (h hash) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%016x", uint64(h)), nil }

// UnmarshalText decodes hexadecimal digits.
func (h *hash) UnmarshalText(b []byte) error {
	n, err := strconv.ParseUint(string(b), 16, 64)
	if err != nil {
		return fmt.Errorf("data must be a hash in hexadecimal digits: %w", err)
	}
	*h = hash(n)
	return nil
}
