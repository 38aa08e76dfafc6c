package protocol

import (
	"strconv"
	"time"
)

// A Move asks one client to go on elsewhere before this node lets go of it.
type Move struct {
	// AfterMS is the client's place in the wave: it waits so long first.
	AfterMS int64 `json:"after_ms"`
	// DeadlineMS is in how many milliseconds, from now too, this connection is
	// closed if the client is still here.
	DeadlineMS int64 `json:"deadline_ms"`
	// Avoid is where the client must not end again.
	Avoid Avoid `json:"avoid"`
	// Reason is for logs and people.
	Reason string `json:"reason"`
}

// Avoid names a deployment or a node; one of the two is set.
type Avoid struct {
	Deployment string `json:"deployment,omitempty"`
	Node       string `json:"node,omitempty"`
}

// Encode returns the move frame.
func (m Move) Encode() Frame {
	return marshalFrame(struct {
		Type string `json:"type"`
		Move
	}{"move", m})
}

// Authenticated answers an auth request: whom the token names, and how long it
// goes on; 0 or less is without an end.
func Authenticated(ref Ref, user string, expires time.Duration) Frame {
	b := beginFrame("authenticated", ref, overhead)
	b = append(b, `,"user":`...)
	b = appendUser(b, user)
	if expires > 0 {
		b = append(b, `,"auth_expires_ms":`...)
		b = strconv.AppendInt(b, max(expires.Milliseconds(), 1), 10)
	}
	return finishFrame(append(b, '}'))
}
