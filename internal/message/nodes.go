package message

import (
	"errors"
	"time"
)

// ErrSharedStateUnavailable says: what nodes share cannot be reached now. Each goes on with what
// it knows by itself.
var ErrSharedStateUnavailable = errors.New("what nodes share can't be reached")

// A NodeStatus is what a node tells the others about itself, each second.
type NodeStatus struct {
	Node       string `json:"node"`
	Deployment string `json:"deployment,omitempty"`
	Color      string `json:"color,omitempty"`
	Version    string `json:"version,omitempty"`
	// Ready: it takes new connections. Draining: it moves its own away.
	Ready    bool `json:"ready"`
	Draining bool `json:"draining,omitempty"`
	// Connections is how many are open.
	Connections int `json:"connections"`
	// HandshakeRate is how many handshakes a second it lately took,
	// HandshakesMoved those of them whose session another node had, and
	// HandshakesRefused how many it refused since they were too many.
	// HandshakeLimit is how many it takes.
	HandshakeRate     float64 `json:"handshake_rate"`
	HandshakesMoved   float64 `json:"handshakes_moved"`
	HandshakesRefused float64 `json:"handshakes_refused"`
	HandshakeLimit    float64 `json:"handshake_limit"`
	// HandshakeP95 is the 95th percentile of how long clients lately waited
	// for their welcome, as they say; 0 when none has said.
	HandshakeP95 time.Duration `json:"handshake_p95_ns"`
	// Moved is how many sessions it has told to go elsewhere, since its start.
	Moved int64 `json:"moved"`
	// Leaving is how many it is about to tell, now that it drains.
	Leaving int `json:"leaving,omitempty"`

	// Returned is how many of its sessions came back on other nodes, since its
	// start. The nodes that got them count it, about a second late.
	Returned int64 `json:"-"`
	// Age is how long ago this was written, a second at most while all is well.
	Age time.Duration `json:"-"`
}

// A NodeEventKind says what a Notice is about.
type NodeEventKind int

// The kinds of notices, and what the receiver does about each.
const (
	// EventTakeover: Node has taken Session over with Generation. The socket of
	// an older generation is closed with 4009 at EventSessionLive, or after 10 s.
	EventTakeover NodeEventKind = iota + 1
	// EventSessionLive: the newer socket of Session is live in its rooms.
	EventSessionLive
	// EventBanned: User is barred for the time For. Its sockets are closed.
	EventBanned
	// EventPresenceChanged: who is in Rooms has changed. Without rooms it may be any.
	EventPresenceChanged
	// EventMissed: notices may have been lost. What follows from them is to be
	// looked at anew: presence of all rooms that somebody watches.
	EventMissed
)

// A NodeEvent is what one node tells another, or all. It may be lost: whoever acts
// on it has a surer, slower way too.
type NodeEvent struct {
	Kind       NodeEventKind
	Session    SessionID
	Generation int64
	// Node is who tells.
	Node        string
	User        string
	BanDuration time.Duration
	Rooms       []Room
}
