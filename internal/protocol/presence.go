package protocol

import (
	"encoding/json"

	"switchyard/internal/message"
)

// A PresenceEntry is a session that is in a room.
type PresenceEntry struct {
	// Session is what names the session to others: its secret up to the first
	// dot, never more.
	Session string `json:"session"`
	// User is nil when anonymous.
	User *string `json:"user"`
}

// Presence tells who is in a room: as an answer everybody, or how many where
// they are too many to list; later what changed.
type Presence struct {
	Room  message.Room `json:"room"`
	Count int          `json:"count"`
	// Members is everybody, nil where only changes or the number are told.
	Members []PresenceEntry `json:"members,omitzero"`
	// Joined and Left are the changes since the last frame.
	Joined []PresenceEntry `json:"joined,omitempty"`
	Left   []PresenceEntry `json:"left,omitempty"`
}

// Encode returns the presence frame; changes have no ref, and are the same for
// every member of the room.
func (p Presence) Encode(ref Ref) Frame {
	return marshalFrame(struct {
		Type string          `json:"type"`
		Ref  json.RawMessage `json:"ref,omitempty"`
		Presence
	}{"presence", json.RawMessage(ref), p})
}
