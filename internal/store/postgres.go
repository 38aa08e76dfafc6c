package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"switchyard/internal/message"
)

// Postgres is the log on PostgreSQL 14 or newer. Any number of nodes may share
// one database. It is safe for concurrent use.
type Postgres struct {
	*committer
	cfg    Config
	m      *metrics
	conn   *pgx.ConnConfig // of the writers
	url    urlFiles
	repair *connPool // for the commit feed, heads, repairs, pruning and retention: readers cannot starve them
	reads  *connPool
	wal    walPosition
	clock  *pruneClock
	// pruning is held by prune, and protects passed.
	pruning sync.Mutex
	passed  passedSnapshot
	// pooled is set when a connection has found a pooler before the server.
	pooled      atomic.Bool
	limitLogged sync.Once    // by logConnectionLimit
	madeRoom    atomic.Int64 // UnixNano of the last makeRoom
	// beginning is held while a new epoch begins, so that the connections of this node
	// begin one together.
	beginning sync.Mutex

	stop   context.CancelFunc // ends loops
	loops  sync.WaitGroup
	closed atomic.Bool
}

// OpenPostgres connects to the log. It returns an error of one line, which
// names the setting and the remedy, when the URL is wrong, when the schema is
// missing, older than this binary or too new for it, when the server is a
// replica, or when it may lose commits in a crash (fsync, full_page_writes or
// synchronous_commit is off).
func OpenPostgres(ctx context.Context, c Config) (*Postgres, error) {
	c = c.withDefaults()
	if err := c.validate(); err != nil {
		return nil, err
	}
	pool, err := pgxpool.ParseConfig(c.URL)
	if err != nil {
		return nil, urlError(err, "postgres://user:password@host:5432/database")
	}
	p := &Postgres{cfg: c, m: newMetrics(c.Registerer), conn: pool.ConnConfig.Copy(), clock: newPruneClock(c.longestKept())}
	configureSession(p.conn, sessionParams(c.lockTimeout), true, &p.pooled).refresh = p.refresh
	configureSession(pool.ConnConfig, sessionParams(c.lockTimeout), false, &p.pooled)
	if err := checkRights(ctx, p.conn, false); err != nil {
		return nil, err
	}
	if own := p.conn.ConnectTimeout; own > connectTimeout { // a ping may have to connect
		c.pingTimeout = min(own, c.AppendTimeout)
	}
	// The writers connect first: they check the server as every connection
	// does, and no pool hides their error.
	writers := make([]writer, c.AppendWorkers)
	for i := range writers {
		w := &pgWriter{p: p}
		if err := w.connect(ctx); err != nil {
			for _, w := range writers[:i] {
				w.close()
			}
			return nil, openError(err, p.conn)
		}
		writers[i] = w
	}
	p.committer = newCommitter(c, p.m, writers, &pgWriter{p: p})
	if err := p.observeClock(ctx, writers[0].(*pgWriter).conn); err != nil {
		return nil, errors.Join(openError(err, p.conn), p.Close(ctx))
	}
	if err := p.openPools(pool); err != nil {
		return nil, errors.Join(err, p.Close(ctx))
	}
	background, stop := context.WithCancel(context.Background())
	p.stop = stop
	p.loops.Go(func() { p.pruneLoop(background) })
	p.loops.Go(func() { p.retention().retentionLoop(background) })
	return p, nil
}

// urlError returns an error for a wrong URL. Unlike pgx's error it does not
// quote the URL, which may hold a password. An error about TLS options holds
// none, so urlError wraps it.
func urlError(err error, example string) error {
	var parse *pgconn.ParseConfigError
	if errors.As(err, &parse) && strings.Contains(err.Error(), ": failed to configure TLS (") {
		return fmt.Errorf("DATABASE_URL: its sslmode, sslrootcert, sslcert or sslkey cannot be used: %w", errors.Unwrap(parse))
	}
	return errors.New("DATABASE_URL is malformed: it must look like " + example)
}

// openPools divides the connections that the writers leave: a third, at most 8,
// is for repairs, and the rest for reads.
func (p *Postgres) openPools(pool *pgxpool.Config) error {
	pool.MaxConnLifetime = p.cfg.ConnLifetime
	pool.MaxConnLifetimeJitter = p.cfg.ConnLifetime / 10
	pool.MaxConnIdleTime = 5 * time.Minute
	pool.MinConns = 0
	pool.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		// The context of a pool's connections has no end.
		ctx, cancel := context.WithTimeout(ctx, connectTimeout)
		defer cancel()
		return p.verify(ctx, conn)
	}
	pool.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error {
		p.refresh(c)
		return nil
	}
	writers := p.cfg.AppendWorkers + 1 // one for atomic batches, opened by the first of them
	rest := p.cfg.MaxConns - writers
	repair := min(8, max(1, rest/3))
	for _, part := range []struct {
		name string
		pool **connPool
		size int
	}{{"repair", &p.repair, repair}, {"read", &p.reads, rest - repair}} {
		poolConfig := pool.Copy()
		poolConfig.MaxConns = int32(part.size)
		// A background context, since the pool outlives the call to open.
		opened, err := pgxpool.NewWithConfig(context.Background(), poolConfig)
		if err != nil {
			return fmt.Errorf("open the %s pool: %w", part.name, err)
		}
		conns := newConnPool(opened, part.size, p.noMoreConnections, p.logConnectionLimit)
		*part.pool = conns
		p.m.pool(part.name, func() (used, idle, limit int) {
			s := opened.Stat()
			return int(s.AcquiredConns()), int(s.IdleConns()), conns.max()
		})
	}
	p.reads.lender = p.repair
	p.repair.makeRoom = p.makeRoom
	p.m.pool("write", func() (used, idle, limit int) { return writers, 0, writers })
	return nil
}

// Close refuses new publications, commits the pending ones, and closes all
// connections. When ctx ends first, the rest fails with message.ErrUnavailable.
// Reads under way end with an error. A second call does nothing.
func (p *Postgres) Close(ctx context.Context) error {
	if p.closed.Swap(true) {
		return nil
	}
	err := p.committer.close(ctx)
	if p.stop != nil {
		p.stop()
	}
	p.loops.Wait()
	for _, pool := range []*connPool{p.repair, p.reads} {
		if pool != nil {
			pool.Close() // bounded: statement_timeout bounds what it waits for
		}
	}
	if err != nil {
		return fmt.Errorf("close the log: %w", err)
	}
	return nil
}

// readContext returns the context of a read, bounded by AppendTimeout. After
// Close it returns message.ErrClosed.
func (p *Postgres) readContext(ctx context.Context) (context.Context, context.CancelFunc, error) {
	if p.closed.Load() {
		return nil, nil, message.ErrClosed
	}
	ctx, cancel := context.WithTimeout(ctx, p.cfg.AppendTimeout)
	return ctx, cancel, nil
}
