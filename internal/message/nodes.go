package message

import (
	"errors"
	"time"
)

// ErrSharedStateUnavailable means that the state which nodes share cannot be
// reached now. Each node continues with its own data.
var ErrSharedStateUnavailable = errors.New("the shared state can't be reached")

// A NodeStatus is what a node publishes about itself, once a second.
type NodeStatus struct {
	Node       string `json:"node"`
	Deployment string `json:"deployment,omitempty"`
	Color      string `json:"color,omitempty"`
	Version    string `json:"version,omitempty"`
	// Ready means that the node takes new connections, Draining that it moves
	// its own to other nodes.
	Ready    bool `json:"ready"`
	Draining bool `json:"draining,omitempty"`
	// Connections is how many are open.
	Connections int `json:"connections"`
	// HandshakeRate is the recent number of accepted handshakes a second.
	// HandshakesOfMoved counts the accepted handshakes whose session another
	// node had owned, HandshakesRefused the handshakes that were refused
	// because there were too many. HandshakeLimit is the most that the node
	// accepts. All are per second.
	HandshakeRate     float64 `json:"handshake_rate"`
	HandshakesOfMoved float64 `json:"handshakes_moved"`
	HandshakesRefused float64 `json:"handshakes_refused"`
	HandshakeLimit    float64 `json:"handshake_limit"`
	// HandshakeP95 is the 95th percentile of how long clients recently waited
	// for their welcome, as they report it; 0 when none has reported.
	HandshakeP95 time.Duration `json:"handshake_p95_ns"`
	// MovesAsked is how many sessions this node has asked to move, since its start.
	MovesAsked int64 `json:"moved"`
	// Leaving is how many sessions it has yet to ask, while it drains.
	Leaving int `json:"leaving,omitempty"`

	// Returned is how many of this node's sessions came back on other nodes,
	// since its start. The other nodes count them, about a second late.
	Returned int64 `json:"-"`
	// Age is how old this status is: at most a second while all is well.
	Age time.Duration `json:"-"`
}

// A NodeEventKind is what a NodeEvent is about.
type NodeEventKind int

// The kinds of node events, and what the receiver does about each.
const (
	// EventTakeover: Node has taken Session over with Generation. The receiver
	// closes the connection of an older generation with 4009 at
	// EventSessionLive, or after 10 s.
	EventTakeover NodeEventKind = iota + 1
	// EventSessionLive: the newer connection of Session is live in its rooms.
	EventSessionLive
	// EventBanned: User is banned for BanDuration. The receiver closes the
	// user's connections.
	EventBanned
	// EventPresenceChanged: the presence of Rooms has changed, that of any room
	// if Rooms is empty.
	EventPresenceChanged
	// EventMissed: events may have been lost. The receiver reads the presence
	// of all watched rooms again.
	EventMissed
)

// A NodeEvent is sent by one node to another, or to all. It may be lost:
// everything that follows from it also happens in a slower, reliable way.
type NodeEvent struct {
	Kind       NodeEventKind
	Session    SessionID
	Generation int64
	// Node is the sender.
	Node        string
	User        string
	BanDuration time.Duration
	Rooms       []Room
}
