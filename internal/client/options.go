package client

import (
	"cmp"
	"context"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"time"

	"switchyard/internal/message"
)

// Defaults of Options.
const (
	DefaultIDWindow   = 10 * time.Minute
	DefaultMaxPending = 1024 // publishes
)

// Options configure a client. Only URLs is required.
type Options struct {
	// URLs are ws:// or wss:// addresses of the socket, such as wss://host/ws.
	// After a failure the client tries the next one.
	URLs []string
	// Token, if set, returns the token for a connection. The client calls it at
	// each connect, and again before the token expires, and sends the result as
	// Authorization: Bearer. A call may take half a minute. An error counts as a
	// failed attempt; "" means that there is no token, and none is sent.
	Token func(ctx context.Context) (string, error)
	// Session is the secret of the session to resume, from the Welcome of an
	// earlier client; empty starts a new one. A client resumes its own session
	// at each reconnect.
	Session string
	// Header is sent with each handshake.
	Header http.Header
	// HTTPClient makes the handshakes; nil means http.DefaultClient.
	HTTPClient *http.Client
	// IDWindow is how long the service remembers ids; the client resends a
	// publish for half of it. The service's welcome has its own value, and the
	// shorter of the two applies. Without either it is DefaultIDWindow.
	IDWindow time.Duration
	// MaxPending bounds the publishes without an answer; 0 means
	// DefaultMaxPending. Each takes at most max_frame bytes of memory.
	MaxPending int
	// OnState, if set, is called at each change of state, in order, and under
	// the rules of handlers: it must not wait for this client.
	OnState func(StateEvent)
	// OnMoved, if set, is called when a move is complete and another connection
	// is the current one. Nothing was lost, and the state has not changed. The
	// rules of handlers apply.
	OnMoved func(MovedEvent)
	// OnFrame, if set, is called with each frame about a room's order before the
	// client acts on it, for a checker: handlers never get duplicates or
	// reordered messages. The rules of handlers apply.
	OnFrame func(Frame)
	Logger  *slog.Logger // nil discards the logs

	// random returns a number in [0, 1), and wallNow what the wall clock says. Tests
	// replace them.
	random  func() float64
	wallNow func() time.Time
}

func (o Options) withDefaults() Options {
	o.HTTPClient = cmp.Or(o.HTTPClient, http.DefaultClient)
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
	if o.MaxPending <= 0 {
		o.MaxPending = DefaultMaxPending
	}
	if o.OnState == nil {
		o.OnState = func(StateEvent) {}
	}
	if o.OnMoved == nil {
		o.OnMoved = func(MovedEvent) {}
	}
	if o.random == nil {
		o.random = rand.Float64
	}
	if o.wallNow == nil {
		o.wallNow = func() time.Time { return time.Now().Round(0) } // without the monotonic clock
	}
	return o
}

// A State is the state of a client's connection.
type State int

// The states. A client starts as Connecting, and Closed is final.
const (
	Connecting State = iota
	Live
	Waiting
	Closed
)

func (s State) String() string {
	return [...]string{"connecting", "live", "waiting", "closed"}[s]
}

// A StateEvent is a change of state.
type StateEvent struct {
	State State
	// Welcome is the welcome of the connection; set when Live.
	Welcome Welcome
	// Err and Code are how the last connection ended, when Waiting or Closed.
	// Code is its close code, 1006 without a close frame.
	Err  error
	Code int
	// RetryIn is the time until the next attempt, when Waiting.
	RetryIn time.Duration
}

// A MovedEvent is a completed move.
type MovedEvent struct {
	From, To Welcome
	Reason   string // as the service gave it
	// Took is the time from the start of the new connection's handshake until
	// the client had joined all rooms there.
	Took time.Duration
}

// A Frame is a frame about a room's order as it arrived, before the client drops
// duplicates and requests what is missing. Fields that the type lacks are zero.
type Frame struct {
	// Connection is the number of the connection, in the order in which the
	// client opened them. Two are open during a move.
	Connection uint64
	Type       string // joined, left, message, gap or ack
	Room       message.Room
	Epoch      message.Epoch
	Seq        message.Seq // in joined, the room's head
	To         message.Seq // in gap, its last seq
	ID         string      // in message and ack
}
