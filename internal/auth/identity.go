package auth

import (
	"time"

	"switchyard/internal/message"
)

// An Action is something that a client wants to do in a room.
type Action uint8

// The actions, and the letter of a pattern that allows each.
const (
	Join    Action = iota + 1 // r
	Read                      // r: history and presence
	Publish                   // w
	Signal                    // w
)

// requiredRights are the rights that an action takes; what is no action takes one that
// nobody has.
var requiredRights = [...]rights{Join: rightRead, Read: rightRead, Publish: rightWrite, Signal: rightWrite}

func (a Action) String() string {
	switch a {
	case Join:
		return "join"
	case Read:
		return "read"
	case Publish:
		return "publish"
	case Signal:
		return "signal"
	}
	return "unknown"
}

// An Identity is who a connection speaks for.
type Identity struct {
	// User is the claim sub; "" for anonymous ones, who are all one user.
	User string
	// Permissions are what the user may use.
	Permissions Permissions
	// Expires is the first instant at which the token would be refused, leeway
	// included. Zero means never.
	Expires time.Time
}

// May says whether the identity may do something in a room. It does not look
// at the clock: whoever holds a connection ends it at Expires.
func (i *Identity) May(room message.Room, action Action) bool {
	if room == "" || room.Reserved() || int(action) >= len(requiredRights) {
		return false
	}
	return i.Permissions.allow(string(room), requiredRights[action])
}
