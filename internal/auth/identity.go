package auth

import (
	"time"

	"switchyard/internal/message"
)

// An Action is something that a client wants to do in a room.
type Action uint8

// The actions. The comment names the right that allows each.
const (
	Join    Action = iota + 1 // r
	Read                      // r: history and presence
	Publish                   // w
	Signal                    // w
)

// requiredRights are the rights that each action needs. The zero Action needs a
// right that nobody has.
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

// An Identity is the user behind a connection and what the user may do.
type Identity struct {
	// User is the claim sub. It is "" for anonymous users, who count as one user.
	User string
	// Permissions are the rooms that the user may use.
	Permissions Permissions
	// Expires is the first instant at which the token would be refused, leeway
	// included. Zero means never.
	Expires time.Time
}

// May reports whether the identity may perform an action in a room. It does not
// check the clock: the owner of a connection closes it at Expires.
func (i *Identity) May(room message.Room, action Action) bool {
	if room == "" || room.Reserved() || int(action) >= len(requiredRights) {
		return false
	}
	return i.Permissions.allow(string(room), requiredRights[action])
}
