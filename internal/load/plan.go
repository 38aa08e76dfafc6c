package load

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"switchyard/internal/message"
)

// A Plan describes a run. Fields that are zero have their defaults.
type Plan struct {
	// URLs are the ws:// or wss:// addresses of the nodes. Each room has members on
	// all of them, and a client whose node dies uses the others.
	URLs []string
	// Tokens are the credentials of the clients, in turn.
	Tokens []string
	// Dial makes the network connections. Nil means a net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// TLS configures connections to wss addresses.
	TLS *tls.Config
	// Header returns the headers of a client's handshakes, unless it is nil.
	Header func(client int) http.Header
	// Clients is the number of clients; 100 if 0. Each joins one room.
	Clients int
	// Publishers is how many of the clients publish; all if 0.
	Publishers int
	// Rooms is the number of rooms; 10 if 0, or Clients if that is less.
	Rooms int
	// Prefix begins the names of rooms and ids. Empty means a random one, so that
	// two runs never share a room.
	Prefix string
	// Rate is how many messages a second all clients publish together, whether
	// the service keeps up or not. 0 means as fast as acks come: each publisher
	// has Window publishes under way.
	Rate float64
	// Window is the number of publishes that a publisher without a rate has under
	// way; 1 if 0.
	Window int
	// Size is the length of a message's data in bytes; 128 if 0.
	Size int
	// Duration is how long the clients publish; until Stop if 0.
	Duration time.Duration
	// RampUp is the least time over which the clients connect.
	RampUp time.Duration
	// Cut is the time between two cuts of a connection, of each client in turn.
	// The client must resume. 0 means no cuts.
	Cut time.Duration
	// Settle bounds the wait at the end for all outcomes and deliveries; 30 s if 0.
	Settle time.Duration
	// MaxEvents bounds the history; DefaultMaxEvents if 0. Publishing ends before
	// the history is full.
	MaxEvents int
	// Unchecked keeps no history, to measure speed.
	Unchecked bool
}

// A BoundError names a field of a Plan that breaks its bound, as its flag is
// called, and the bound.
type BoundError struct{ Name, Bound string }

func (e *BoundError) Error() string { return e.Name + " " + e.Bound }

const (
	maxClients  = 15_000 // because each takes a file descriptor
	maxRooms    = 100_000
	maxRate     = 1_000_000
	maxSize     = 1 << 20
	minSize     = 24 // a client's number and a time
	maxWindow   = 1024
	maxDuration = 24 * time.Hour
	maxPause    = time.Hour // of RampUp, Cut and Settle
)

// withDefaults returns the plan with its defaults.
func (p Plan) withDefaults() Plan {
	p.Clients = cmp.Or(p.Clients, 100)
	p.Rooms = cmp.Or(p.Rooms, min(10, p.Clients))
	p.Publishers = cmp.Or(p.Publishers, p.Clients)
	p.Size = cmp.Or(p.Size, 128)
	p.Window = cmp.Or(p.Window, 1)
	p.Settle = cmp.Or(p.Settle, 30*time.Second)
	p.MaxEvents = cmp.Or(p.MaxEvents, DefaultMaxEvents)
	if p.Dial == nil {
		p.Dial = new(net.Dialer).DialContext
	}
	p.Prefix = cmp.Or(p.Prefix, "verify-"+strings.ToLower(rand.Text()[:10]))
	return p
}

// validate returns a *BoundError for the first field that breaks its bound.
func (p Plan) validate() error {
	if len(p.URLs) == 0 {
		return &BoundError{"url", "must be given, such as ws://localhost:8000/ws"}
	}
	for _, row := range []struct {
		name            string
		value, min, max int
	}{
		{"clients", p.Clients, 1, maxClients},
		{"rooms", p.Rooms, 1, min(maxRooms, p.Clients)},
		{"publishers", p.Publishers, 1, p.Clients},
		{"size", p.Size, minSize, maxSize},
		{"window", p.Window, 1, maxWindow},
		{"max-events", p.MaxEvents, max(1000, 20*p.Clients), 100_000_000}, // with room for joins and ends
	} {
		if row.value < row.min || row.value > row.max {
			return &BoundError{row.name, fmt.Sprintf("must be %d to %d, not %d", row.min, row.max, row.value)}
		}
	}
	for _, row := range []struct {
		name       string
		value, max time.Duration
	}{
		{"duration", p.Duration, maxDuration},
		{"ramp-up", p.RampUp, maxPause},
		{"cut", p.Cut, maxPause},
		{"settle", p.Settle, maxPause},
	} {
		if row.value < 0 || row.value > row.max {
			return &BoundError{row.name, fmt.Sprintf("must be 0s to %v, not %v", row.max, row.value)}
		}
	}
	if !(p.Rate >= 0 && p.Rate <= maxRate) { // written so that it refuses NaN
		return &BoundError{"rate", fmt.Sprintf("must be 0 to %d a second, not %v", maxRate, p.Rate)}
	}
	if p.Cut > 0 && p.Cut < time.Millisecond {
		return &BoundError{"cut", fmt.Sprintf("must be 0s or 1ms and more, not %v", p.Cut)}
	}
	if room, err := message.ParseRoom(p.Prefix); err != nil || len(p.Prefix) > 32 || room.Reserved() {
		return &BoundError{"prefix", fmt.Sprintf("must be 1 to 32 of A-Z a-z 0-9 . _ - :, the first no _, not %q", p.Prefix)}
	}
	return nil
}

// room returns the name of the nth room.
func (p Plan) room(n int) message.Room { return message.Room(fmt.Sprintf("%s-%d", p.Prefix, n)) }

// urlsOf returns a client's addresses, those of its own node first. The clients of
// a room are spread over all nodes.
func (p Plan) urlsOf(n int) []string {
	home := (n/p.Rooms + n%p.Rooms) % len(p.URLs)
	return append(append([]string{}, p.URLs[home:]...), p.URLs[:home]...)
}
