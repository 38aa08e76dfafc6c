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

// A kind says what an event tells.
type kind uint8

// The kindCount, with the fields each uses beside at and room.
const (
	published   kind = iota // by, user, id, hash: a publish begins
	acked                   // user, id, hash, epoch, seq, duplicate
	refused                 // user, id, hash, reason: nothing was stored
	unknown                 // user, id, hash, reason: stored or not, at most once
	joined                  // sub, epoch, seq: what follows seq is expected from now on
	rejoined                // sub, epoch, seq: back after a cut; seq is the room's head
	delivered               // sub, user, id, hash, epoch, seq
	gapDeclared             // sub, epoch, seq to to, reason: a gap, both ends included
	skipped                 // sub, epoch, seq: came on the wire although to was the last before it; reason: "" or epoch
	repeated                // sub, epoch, seq: came on the wire although to was the last before it
	left                    // sub: nothing more is expected
	ended                   // sub, epoch, seq: that is how far it must have come
	confirmed               // user, id, epoch, seq: an ack on the wire, after the outcome was told
	kindCount               // how many there are
)

var kindNames = [kindCount]string{
	"publish", "ack", "refused", "unknown", "join", "rejoin", "deliver", "gap", "skip", "repeat", "leave", "end", "confirm",
}

// MarshalText writes a kind as it stands in a file.
func (k kind) MarshalText() ([]byte, error) { return []byte(kindNames[k]), nil }

// UnmarshalText reads a kind from a file.
func (k *kind) UnmarshalText(b []byte) error {
	i := slices.Index(kindNames[:], string(b))
	if i < 0 {
		return fmt.Errorf("%q is no kind of event", b)
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

// A hash stands for a message's data: the first 8 bytes of its SHA-256.
type hash uint64

func hashOf(data []byte) hash {
	sum := sha256.Sum256(data)
	return hash(binary.BigEndian.Uint64(sum[:]))
}

// MarshalText writes 16 hexadecimal digits.
func (h hash) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%016x", uint64(h)), nil }

// UnmarshalText reads hexadecimal digits.
func (h *hash) UnmarshalText(b []byte) error {
	n, err := strconv.ParseUint(string(b), 16, 64)
	if err != nil {
		return fmt.Errorf("data must be a hash in hexadecimal digits: %w", err)
	}
	*h = hash(n)
	return nil
}
