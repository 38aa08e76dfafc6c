package protocol

import (
	"strconv"
	"time"
)

// A Move asks one client to reconnect elsewhere before this node closes its
// connection.
type Move struct {
	// AfterMS is how long the client waits first, in milliseconds: its delay
	// within the wave.
	AfterMS int64 `json:"after_ms"`
	// DeadlineMS is when this connection is closed if the client is still here,
	// in milliseconds from now.
	DeadlineMS int64 `json:"deadline_ms"`
	// Avoid is where the client must not reconnect to.
	Avoid Avoid `json:"avoid"`
	// Reason is for logs and people.
	Reason string `json:"reason"`
}

// Avoid names a deployment or a node. One of the two is set.
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

// Authenticated answers an auth request with the token's user and the time
// until the token expires; 0 or less if it never does.
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
