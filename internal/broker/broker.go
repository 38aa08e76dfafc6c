// Package broker carries stored messages and signals from node to node: the
// "channel layer". It is a short cut and never the truth. It may lose and swap
// what it carries, it never stores, and whoever uses it must be able to do
// without (the hub reads the commit feed of the log).
//
// There are two of them behind one contract test: Redis, for many nodes, and
// Memory, for one process. All methods of both may be called concurrently.
package broker

import (
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"switchyard/internal/message"
)

// What a Config leaves out.
const (
	DefaultPrefix = "sy:"
	DefaultQueue  = 1500
)

// staleAfter is how long a publication may wait in a queue. A message is
// delivered through the log long before; a signal that old would be a lie.
const staleAfter = 10 * time.Second

var (
	// ErrDown: the broker cannot be reached now. A subscription that failed
	// with it stays wanted and is made by itself on reconnect.
	ErrDown = errors.New("the broker is down")

	// ErrUnsubscribed: Unsubscribe was called while Subscribe waited.
	ErrUnsubscribed = errors.New("unsubscribed while waiting for the subscription")

	// ErrClosed: Close was called.
	ErrClosed = errors.New("the broker is closed")
)

// A Config says how to reach other nodes.
type Config struct {
	// URL is REDIS_URL: redis://, redis+sentinel:// or redis+cluster://, with
	// rediss for TLSConfig; docs/redis.md tells the whole form. Memory ignores it.
	URL string
	// Prefix begins the name of every channel; DefaultPrefix when empty.
	Prefix string
	// Queue bounds the publications that wait to be sent (Redis, for each of a
	// cluster's masters) or received (Memory); DefaultQueue when 0. Beyond it the oldest is dropped and counted.
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

// A Receive is called with each publication of the rooms subscribed to, in
// order per room but for a moment while a room moves to another Redis server.
// It must not block; a cluster's receive loops call it concurrently. The payload
// is the callee's to keep, not to write to. For a moment after Unsubscribe the
// room's publications may still come.
type Receive func(room message.Room, payload []byte)
