// Package broker carries stored messages and signals between nodes by pub/sub.
// It is an optimization, and the log is the source of truth: a broker may lose,
// repeat and reorder broadcasts, and it stores none. The hub works without
// it, because it reads the commit feed of the log.
//
// There are two brokers behind one contract test: Redis, for many nodes, and
// Memory, for one process. Both are safe for concurrent use. DESIGN.md explains
// why the package is built this way.
package broker

import (
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"switchyard/internal/message"
)

// Defaults of a Config.
const (
	DefaultPrefix = "sy:"
	DefaultQueue  = 1500
)

// staleAfter is how long a broadcast may wait in a queue. The log has
// delivered a message long before, and a signal that old would mislead.
const staleAfter = 10 * time.Second

var (
	// ErrDown: the broker cannot be reached now. A subscription that failed
	// with it stays wanted, and the broker makes it when it reconnects.
	ErrDown = errors.New("the broker is down")

	// ErrUnsubscribed: Unsubscribe was called while Subscribe waited.
	ErrUnsubscribed = errors.New("unsubscribed while waiting for the subscription")

	// ErrClosed: Close was called.
	ErrClosed = errors.New("the broker is closed")
)

// A Config says how to reach other nodes.
type Config struct {
	// URL is REDIS_URL: redis://, redis+sentinel:// or redis+cluster://, with
	// rediss for TLS. docs/redis.md describes its syntax. Memory ignores it.
	URL string
	// Reread reads REDIS_URL again: its user and password may change. Nil: they don't.
	Reread func() (string, error)
	// Prefix begins the name of every channel; DefaultPrefix when empty.
	Prefix string
	// Queue bounds the broadcasts that wait to be sent (Redis, for each
	// master of a cluster) or received (Memory); DefaultQueue when 0. Beyond
	// it the oldest is dropped and counted.
	Queue int

	Logger     *slog.Logger          // nil: silent
	Registerer prometheus.Registerer // nil: not registered
}

func (c Config) withDefaults() Config {
	if c.Prefix == "" {
		c.Prefix = DefaultPrefix
	}
	if c.Queue <= 0 {
		c.Queue = DefaultQueue
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.Logger = c.Logger.With("component", "broker")
	return c
}

// A Receive function is called with each broadcast of the subscribed rooms. The
// broadcasts of one room arrive in order, except for a moment while the room
// moves to another Redis server. It must not block. The receive loops of a
// cluster call it concurrently. It may keep the payload, but must not write to
// it. Broadcasts may still arrive for a moment after Unsubscribe.
type Receive func(room message.Room, payload []byte)
