// Package store is the log: the durable, ordered store of rooms, on PostgreSQL
// and on SQLite behind one contract.
//
// Publications are committed in batches by lanes: whatever waits while a batch
// commits forms the next one. A publication is settled after its commit was
// answered, never before. Ids make it safe to try a batch again whose outcome
// is unknown. The rules are those of DESIGN.md §4, points 1 to 6.
package store

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Config says where the log is and within which bounds it works. Fields left
// zero take the default that is told with them.
type Config struct {
	// URL is DATABASE_URL: postgres://… or sqlite:path. It has no default.
	URL string
	// MaxConns bounds the connections of this node to PostgreSQL, those of all
	// pools together (default 12, at least Lanes + 3).
	MaxConns int
	// ConnLifetime is how long a connection is used at most (default 30 min).
	ConnLifetime time.Duration
	// AppendWorkers is how many batches are under way at once on PostgreSQL (default 2).
	// SQLite has one writer, hence one lane.
	AppendWorkers int
	// IDWindow is how long ids are remembered at least (default 10 min).
	IDWindow time.Duration
	// RetentionAge and RetentionCount bound what a room keeps: messages that
	// are older go, and those beyond so many of the newest (default 0: no
	// bound). Ids are remembered for IDWindow all the same.
	RetentionAge   time.Duration
	RetentionCount int
	// AppendTimeout bounds how long a publication waits (default 5 s). After
	// it, and at most a quarter of it more for the attempt that is under way,
	// the publication is settled with message.ErrUnavailable.
	AppendTimeout time.Duration
	// MaxPending and MaxPendingBytes bound what waits in all lanes together
	// (default 32768 publications, 64 MiB of data).
	MaxPending      int
	MaxPendingBytes int
	// TrustFailover vouches that a failover of PostgreSQL loses nothing (its
	// standby is synchronous): a new timeline alone then keeps the epoch.
	TrustFailover bool
	// Logger and Registerer default to none.
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Bounds of one batch. A single message may be larger than batchBytes.
const (
	batchMessages = 256
	batchBytes    = 1 << 20
)

const (
	// pingEvery is how often an idle writer is asked whether it could write.
	pingEvery = time.Second
	// staleAfter is how old the last sign of a writer may be before Check speaks.
	staleAfter = 5 * time.Second
	// feedRetention is how long the commit feed reaches back.
	feedRetention = 10 * time.Minute
	// feedRooms bounds the rooms of one answer of the commit feed; beyond it
	// comparing heads by name, in pages, is the better way.
	feedRooms = 50_000
)

// withDefaults returns the Config with every field set.
func (c Config) withDefaults() Config {
	setDefault(&c.AppendWorkers, 2)
	setDefault(&c.MaxConns, max(12, c.AppendWorkers+3))
	setDefault(&c.ConnLifetime, 30*time.Minute)
	setDefault(&c.IDWindow, 10*time.Minute)
	setDefault(&c.AppendTimeout, 5*time.Second)
	setDefault(&c.MaxPending, 32768)
	setDefault(&c.MaxPendingBytes, 64<<20)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.Logger = c.Logger.With("component", "store")
	return c
}

// retentionPolicy is what rooms keep.
func (c Config) retentionPolicy() retentionPolicy {
	return retentionPolicy{age: c.RetentionAge, count: int64(c.RetentionCount)}
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
		return fmt.Errorf("DATABASE_MAX_CONNS is %d: it must be at least %d (a connection a lane, one for batches, one for repairs, one for reads)",
			c.MaxConns, c.AppendWorkers+3)
	}
	return nil
}
