package protocol

import (
	"encoding/json"

	"switchyard/internal/message"
)

// A PresenceEntry is a session that is in a room.
type PresenceEntry struct {
	// Session is the session's public name: its secret up to the first dot,
	// never more.
	Session string `json:"session"`
	// User is nil for an anonymous one.
	User *string `json:"user"`
}

// Presence is the presence of a room. An answer to a request has all entries,
// or only their number when there are too many to list; a later frame has the
// changes.
type Presence struct {
	Room  message.Room `json:"room"`
	Count int          `json:"count"`
	// Members is every session in the room, nil if the frame has only changes
	// or only the number.
	Members []PresenceEntry `json:"members,omitzero"`
	// Joined and Left are the changes since the last frame.
	Joined []PresenceEntry `json:"joined,omitempty"`
	Left   []PresenceEntry `json:"left,omitempty"`
}

// Encode returns the presence frame. Changes have no ref and are the same for
// every member of the room.
func (p Presence) Encode(ref Ref) Frame {
	return marshalFrame(struct {
		Type string          `json:"type"`
		Ref  json.RawMessage `json:"ref,omitempty"`
		Presence
	}{"presence", json.RawMessage(ref), p})
}
