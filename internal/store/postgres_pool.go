package store

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// raiseEvery is how long a pool that got fewer connections than its size waits
// before it asks for one more.
const raiseEvery = 30 * time.Second

// A connPool is a pgxpool that lives with fewer connections than its size: when
// the server or a pooler has none left for this node, a caller waits for one of
// those that are open, and does not fail. It is safe for concurrent use.
type connPool struct {
	*pgxpool.Pool
	size     int
	lender   *connPool        // has a connection when this pool has none; or nil
	noMore   func(error) bool // whether an error means that no connection is left
	limited  func(error)      // is called when no connection was left
	makeRoom func(error)      // is called when this pool has none and no lender; it may free one
	permits  chan struct{}    // one for each connection that may be in use

	mu      sync.Mutex // a leaf; protects following
	limit   int        // of connections, 1 to size
	debt    int        // permits that are in use beyond limit
	raiseAt time.Time  // when limit may be raised by one, or a connection be opened in an empty pool
}

func newConnPool(pool *pgxpool.Pool, size int, noMore func(error) bool, limited func(error)) *connPool {
	p := &connPool{Pool: pool, size: size, limit: size, noMore: noMore, limited: limited, permits: make(chan struct{}, size)}
	for range size {
		p.permits <- struct{}{}
	}
	return p
}

// acquire returns a connection and the function that gives it back.
func (p *connPool) acquire(ctx context.Context) (*pgxpool.Conn, func(), error) {
	for {
		if p.lender != nil && p.isEmpty() {
			return p.lender.acquire(ctx)
		}
		p.raiseIfDue()
		select {
		case <-p.permits:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
		if p.lender != nil && p.isEmpty() { // an earlier caller has tried meanwhile
			p.leave()
			continue
		}
		conn, err := p.Pool.Acquire(ctx)
		if err == nil {
			return conn, func() { conn.Release(); p.leave() }, nil
		}
		p.leave()
		if ctx.Err() != nil || !p.noMore(err) {
			return nil, nil, err
		}
		p.lower(p.open())
		p.limited(err)
		if p.lender == nil && p.open() == 0 {
			p.makeRoom(err)
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
				return nil, nil, err
			}
		}
	}
}

// open returns the number of open connections.
func (p *connPool) open() int {
	s := p.Stat()
	return int(s.TotalConns() - s.ConstructingConns())
}

// isEmpty reports whether the pool has no connection, and could get none a short
// while ago.
func (p *connPool) isEmpty() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Now().Before(p.raiseAt) && p.open() == 0
}

func (p *connPool) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.debt > 0 {
		p.debt--
		return
	}
	p.permits <- struct{}{} // never blocks: it has a place for each permit
}

// lower lowers the limit, to 1 at least.
func (p *connPool) lower(limit int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.raiseAt = time.Now().Add(raiseEvery)
	for limit = max(1, limit); p.limit > limit; p.limit-- {
		select {
		case <-p.permits:
		default:
			p.debt++
		}
	}
}

// raiseIfDue raises the limit by one when it is time to ask for one more.
func (p *connPool) raiseIfDue() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.limit == p.size || time.Now().Before(p.raiseAt) {
		return
	}
	p.limit++
	p.raiseAt = time.Now().Add(raiseEvery)
	if p.limit == p.size {
		p.raiseAt = time.Time{}
	}
	if p.debt > 0 {
		p.debt--
		return
	}
	p.permits <- struct{}{}
}

// giveWay closes idle connections and lowers the limit by one, for a writer that
// got none. It returns false if there is nothing to give.
func (p *connPool) giveWay() bool {
	open := p.open()
	if open == 0 || open == 1 && p.lender == nil {
		return false
	}
	p.lower(open - 1)
	p.Reset()
	return true
}

// max returns the number of connections that the pool may open now.
func (p *connPool) max() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.limit
}

// Query is that of pgxpool.Pool. The caller closes the rows.
func (p *connPool) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	conn, release, err := p.acquire(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		release()
		return nil, err
	}
	return &pooledRows{Rows: rows, release: sync.OnceFunc(release)}, nil
}

// pooledRows give their connection back when they are closed.
type pooledRows struct {
	pgx.Rows
	release func()
}

func (r *pooledRows) Close() {
	r.Rows.Close()
	r.release()
}

// QueryRow is that of pgxpool.Pool. The caller scans the row.
func (p *connPool) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	conn, release, err := p.acquire(ctx)
	if err != nil {
		return failedRow{err}
	}
	return pooledRow{conn.QueryRow(ctx, sql, args...), release}
}

type pooledRow struct {
	row     pgx.Row
	release func()
}

func (r pooledRow) Scan(dest ...any) error {
	defer r.release()
	return r.row.Scan(dest...)
}

type failedRow struct{ err error }

func (r failedRow) Scan(...any) error { return r.err }

// inTx runs f in a transaction.
func (p *connPool) inTx(ctx context.Context, f func(pgx.Tx) error) error {
	conn, release, err := p.acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	return pgx.BeginFunc(ctx, conn, f)
}

const tooManyConnections = "53300"

// noMoreConnections reports whether an error of connecting means that the server
// or a pooler has no connection left for this node: the limit of the role, of the
// database or of the server is reached. PgBouncer refuses with a message, or lets
// the first statement wait.
func (p *Postgres) noMoreConnections(err error) bool {
	var refused *pgconn.PgError
	if errors.As(err, &refused) {
		return refused.Code == tooManyConnections || strings.HasPrefix(refused.Message, "no more connections allowed")
	}
	return p.pooled.Load() && errors.Is(err, context.DeadlineExceeded) && p.answersWriters()
}

// answersWriters reports whether the database has answered each writer within the
// time that an attempt to connect may take.
func (p *Postgres) answersWriters() bool {
	for _, w := range p.workers {
		if time.Since(time.Unix(0, w.lastOK.Load())) > 2*connectTimeout+probeTimeout {
			return false
		}
	}
	return true
}

// logConnectionLimit logs, once, that this node got fewer connections than it is
// set to.
func (p *Postgres) logConnectionLimit(err error) {
	p.limitLogged.Do(func() {
		p.cfg.Logger.Warn("the database has fewer connections for this node than DATABASE_MAX_CONNS; it works with those that it gets",
			"connections", len(p.workers)+p.repair.open()+p.reads.open(), "database_max_conns", p.cfg.MaxConns, "error", err)
	})
}

// makeRoom closes a connection of a pool for a writer or the repair pool, which got
// none: readers can share, and these cannot.
func (p *Postgres) makeRoom(err error) {
	if p.repair == nil || p.reads == nil || !p.noMoreConnections(err) {
		return
	}
	p.logConnectionLimit(err)
	now := time.Now().UnixNano()
	if before := p.madeRoom.Load(); now-before < int64(time.Second) || !p.madeRoom.CompareAndSwap(before, now) {
		return // the connection that was closed may not be free yet
	}
	if !p.reads.giveWay() {
		p.repair.giveWay()
	}
}
