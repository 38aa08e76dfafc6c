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

// A Plan says who publishes what, to whom and for how long. Zero values of
// Clients, Rooms, Size, Window and Settle mean their defaults.
type Plan struct {
	// URLs are ws:// or wss:// addresses of the service's sockets. Each room has
	// members on all of them, and a client whose node dies goes on with the
	// others.
	URLs []string
	// Tokens, if set, are the clients' credentials, in turns.
	Tokens []string
	// Dial makes the network connections, TLSConfig is for wss addresses; nil means as
	// net and crypto/tls do. Header, if set, returns what a client sends with its
	// handshakes.
	Dial   func(ctx context.Context, network, address string) (net.Conn, error)
	TLS    *tls.Config
	Header func(client int) http.Header
	// Clients are how many connect. Each joins one room and publishes there.
	Clients int
	// Publishers are how many of the clients publish; 0 means all.
	Publishers int
	Rooms      int
	// Prefix begins the names of rooms, and of ids; empty means a random one, so
	// that no run meets another's rooms.
	Prefix string
	// Rate is how many messages a second all publish together, whether the
	// service keeps up or not. 0 means as fast as acks come: each publisher has
	// Window under way.
	Rate   float64
	Window int
	// Size is the data of a message, in bytes.
	Size int
	// Duration is how long they publish; 0 means until Stop.
	Duration time.Duration
	// RampUp is how long connecting takes at least.
	RampUp time.Duration
	// Cut, if set, is how often one client's connection is cut, the next one's
	// each time. It has to resume.
	Cut time.Duration
	// Settle bounds the wait for everybody to get everything, at the end.
	Settle time.Duration
	// MaxEvents bounds the history; 0 means DefaultMaxEvents. Publishing ends
	// before it is full.
	MaxEvents int
	// Unchecked keeps no history: for speed.
	Unchecked bool
}

// A BoundError names what of a Plan breaks its bound, as the flags are called,
// and the bound.
type BoundError struct{ Name, Bound string }

func (e *BoundError) Error() string { return e.Name + " " + e.Bound }

const (
	maxClients  = 15_000 // descriptors
	maxRooms    = 100_000
	maxRate     = 1_000_000
	maxSize     = 1 << 20
	minSize     = 24 // a number and a time must fit in
	maxWindow   = 1024
	maxDuration = 24 * time.Hour
	maxPause    = time.Hour // of RampUp, Cut and Settle
)

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

// validate returns a *BoundError for the first value that can't be.
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
		{"max-events", p.MaxEvents, max(1000, 20*p.Clients), 100_000_000}, // joins and ends must fit in
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
	if !(p.Rate >= 0 && p.Rate <= maxRate) { // not a number, too
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

// room is the name of the nth room.
func (p Plan) room(n int) message.Room { return message.Room(fmt.Sprintf("%s-%d", p.Prefix, n)) }

// urlsOf are a client's addresses, its own first: a room has members on each.
func (p Plan) urlsOf(n int) []string {
	home := (n/p.Rooms + n%p.Rooms) % len(p.URLs)
	return append(append([]string{}, p.URLs[home:]...), p.URLs[:home]...)
}
