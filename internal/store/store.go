// Package store is the log: the durable, ordered store of rooms, on PostgreSQL
// and on SQLite behind one contract.
//
// Append workers commit publications in batches: the publications that arrive
// while a batch commits form the next one. A publication is reported as
// completed after the database has confirmed its commit, never before. Because
// publications have ids, a batch with an unknown outcome can be retried safely.
// DESIGN.md explains why the package is built this way.
package store

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// DefaultMaxPending is how many publications wait for the database at most.
const DefaultMaxPending = 32768

// Config has the location of the log and its bounds. A zero field means the
// default in its comment.
type Config struct {
	// URL is DATABASE_URL: postgres://… or sqlite:path. It has no default.
	URL string
	// ReadURL returns the present URL for each new connection to PostgreSQL, whose
	// user and password may have changed since (default: URL does not change).
	ReadURL func() (string, error)
	// MaxConns bounds the connections of this node to PostgreSQL, in all pools
	// together (default 12, at least AppendWorkers + 3).
	MaxConns int
	// ConnLifetime is how long a connection is used at most (default 30 min).
	ConnLifetime time.Duration
	// AppendWorkers is how many batches are committed concurrently on
	// PostgreSQL (default 2). The setting is DATABASE_LANES. SQLite allows one
	// writer, so it always has one append worker.
	AppendWorkers int
	// IDWindow is how long ids are remembered at least (default 10 min).
	IDWindow time.Duration
	// RetentionAge and RetentionCount bound what a room keeps: a message is
	// removed when it is older than RetentionAge, or when its room has
	// RetentionCount newer ones (default 0: no bound). Its id is remembered
	// for IDWindow nevertheless.
	RetentionAge   time.Duration
	RetentionCount int
	// AppendTimeout bounds how long a publication waits (default 5 s). The
	// publication then fails with message.ErrUnavailable, at most a quarter of
	// the timeout later, so that an attempt under way can finish.
	AppendTimeout time.Duration
	// MaxPending and MaxPendingBytes bound the pending publications of all
	// append workers and atomic batches together (default DefaultMaxPending publications,
	// 64 MiB of data).
	MaxPending      int
	MaxPendingBytes int
	// TrustFailover is the operator's promise that a failover of PostgreSQL
	// loses nothing, because its standby is synchronous. The epoch is then kept
	// if only the timeline of the fingerprint differs.
	TrustFailover bool
	// Logger and Registerer default to none.
	Logger     *slog.Logger
	Registerer prometheus.Registerer

	// lockTimeout bounds the wait for a room's row. Tests set it; the default
	// follows from AppendTimeout.
	lockTimeout time.Duration
	// pingTimeout bounds the check of an idle append worker.
	pingTimeout time.Duration
	// lockedRetry is when a room that was found locked is waited for again. Tests
	// set it.
	lockedRetry time.Duration
	// trimWait is how long a trim waits for a lock before it gives up. Tests
	// set it.
	trimWait time.Duration
}

// Bounds of one batch. A message that is larger than batchBytes is committed in
// a batch of its own.
const (
	batchMessages = 256
	batchBytes    = 1 << 20
)

const (
	// pingEvery is how often an idle append worker checks that it could write.
	pingEvery = time.Second
	// staleAfter is how old an append worker's last successful exchange with
	// the database may be before Check returns an error.
	staleAfter = 5 * time.Second
	// feedRetention is how long the commit feed keeps its rows.
	feedRetention = 10 * time.Minute
	// feedRooms bounds the rooms of one answer of the commit feed. A reader
	// that is further behind should compare heads by name, in pages.
	feedRooms = 50_000
)

// withDefaults returns the Config with its zero fields set to their defaults.
func (c Config) withDefaults() Config {
	setDefault(&c.AppendWorkers, 2)
	setDefault(&c.MaxConns, max(12, c.AppendWorkers+3))
	setDefault(&c.ConnLifetime, 30*time.Minute)
	setDefault(&c.IDWindow, 10*time.Minute)
	setDefault(&c.AppendTimeout, 5*time.Second)
	setDefault(&c.MaxPending, DefaultMaxPending)
	setDefault(&c.MaxPendingBytes, 64<<20)
	setDefault(&c.pingTimeout, c.AppendTimeout/5)
	setDefault(&c.lockTimeout, lockTimeout(c.AppendTimeout))
	setDefault(&c.lockedRetry, lockedRetryMin)
	setDefault(&c.trimWait, trimWait)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.Logger = c.Logger.With("component", "store")
	return c
}

func (c Config) retentionPolicy() retentionPolicy {
	return retentionPolicy{age: c.RetentionAge, count: int64(c.RetentionCount)}
}

// longestKept returns the longest time that anything is kept before it is removed
// by its age.
func (c Config) longestKept() time.Duration {
	return max(feedRetention, c.IDWindow, c.RetentionAge)
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// validate returns an error that names the setting and the remedy.
func (c Config) validate() error {
	if c.MaxConns < c.AppendWorkers+3 {
		return fmt.Errorf("DATABASE_MAX_CONNS is %d: it must be at least %d (DATABASE_LANES, and one connection each for batches, repairs and reads)",
			c.MaxConns, c.AppendWorkers+3)
	}
	return nil
}
