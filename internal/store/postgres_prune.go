package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// pruneLock is the advisory lock of the node that prunes.
const pruneLock int64 = 0x5377_6974_6369

// pruneRows bounds one transaction of prune, which must not lock many rows for
// long, nor flood the WAL.
const pruneRows = 5000

// Statements of prune. $1 says what is removed, $2 is the bound in rows. They set
// feed_floor in the same statement, so that a reader sees both changes or neither.
const (
	// sqlPruneCommits removes the oldest rows of the feed by their transaction
	// ids, up to the first that is kept. It begins at the floor, so that it does
	// not search what was removed and cannot be vacuumed yet.
	sqlPruneCommits = `
WITH deleted AS (
	DELETE FROM commits WHERE xid = ANY (ARRAY(
		SELECT p.xid FROM (
			SELECT o.xid, bool_and(o.at < $1) OVER (ORDER BY o.xid) AS old FROM (
				SELECT c.xid, c.at FROM commits c
				WHERE c.xid >= (SELECT m.feed_floor FROM meta m)::text::xid8 ORDER BY c.xid LIMIT $2
			) o
		) p WHERE p.old))
	RETURNING xid::text::bigint AS xid
), floor AS (
	UPDATE meta SET feed_floor = greatest(feed_floor, (SELECT max(xid) + 1 FROM deleted))
	WHERE EXISTS (SELECT FROM deleted)
)
SELECT count(*) FROM deleted`

	// sqlPruneLateCommits removes rows that were committed after pruning had
	// passed them, if they are visible in the snapshot $1 of the epoch $3. A
	// cursor that lacks one of them is older than that snapshot.
	sqlPruneLateCommits = `
WITH deleted AS (
	DELETE FROM commits WHERE xid = ANY (ARRAY(
		SELECT c.xid FROM commits c
		WHERE c.xid < (SELECT m.feed_floor FROM meta m WHERE m.epoch = $3)::text::xid8
			AND pg_visible_in_snapshot(c.xid, $1::text::pg_snapshot)
		ORDER BY c.xid LIMIT $2))
	RETURNING 1
), floor AS (
	UPDATE meta SET feed_floor = greatest(feed_floor, 1 + least(
		pg_snapshot_xmax($1::text::pg_snapshot)::text::bigint, pg_snapshot_xmax(pg_current_snapshot())::text::bigint))
	WHERE EXISTS (SELECT FROM deleted)
)
SELECT count(*) FROM deleted`

	// sqlPruneIDs finds the rows by the index on at, and deletes them by ctid,
	// which saves a second index lookup.
	sqlPruneIDs = `
WITH deleted AS (
	DELETE FROM message_ids WHERE ctid = ANY (ARRAY(
		SELECT ctid FROM message_ids WHERE at < $1 ORDER BY at LIMIT $2))
	RETURNING 1
)
SELECT count(*) FROM deleted`
)

// A passedSnapshot is what was visible when pruning passed it. A node that prunes
// keeps one for feedRetention, so that it removes a late row no sooner than that
// after its commit.
type passedSnapshot struct {
	snapshot string // a pg_snapshot, "" if there is none
	epoch    string
	at       time.Time
}

// prune removes old rows of the commit feed and ids older than IDWindow, in
// small transactions. It does nothing while another node prunes.
func (p *Postgres) prune(ctx context.Context) error {
	p.pruning.Lock()
	defer p.pruning.Unlock()
	if err := p.observeClock(ctx, p.repair); err != nil {
		return err
	}
	err := p.pruneSteps("prune_commits", func() (int, error) {
		return p.pruneOnce(ctx, sqlPruneCommits, p.clock.cutoff(feedRetention), pruneRows)
	})
	if err != nil {
		return err
	}
	if err := p.pruneLateCommits(ctx); err != nil {
		return err
	}
	return p.pruneSteps("prune_ids", func() (int, error) {
		return p.pruneOnce(ctx, sqlPruneIDs, p.clock.cutoff(p.cfg.IDWindow), pruneRows)
	})
}

func (p *Postgres) pruneLateCommits(ctx context.Context) error {
	if passed := p.passed; passed.snapshot != "" && time.Since(passed.at) >= feedRetention {
		err := p.pruneSteps("prune_commits", func() (int, error) {
			return p.pruneOnce(ctx, sqlPruneLateCommits, passed.snapshot, pruneRows, passed.epoch)
		})
		if err != nil {
			return err
		}
		p.passed.snapshot = ""
	}
	if p.passed.snapshot == "" {
		now := passedSnapshot{at: time.Now()}
		if err := p.repair.QueryRow(ctx, `SELECT pg_current_snapshot()::text, epoch FROM meta`).Scan(&now.snapshot, &now.epoch); err != nil {
			return fmt.Errorf("prune_commits: %w", err)
		}
		p.passed = now
	}
	return nil
}

// pruneSteps calls step, which removes rows in one transaction, until it removes
// fewer than its bound.
func (p *Postgres) pruneSteps(name string, step func() (removed int, err error)) error {
	for full := true; full; {
		began := time.Now()
		n, err := step()
		p.m.observe(name, began)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		full = n == pruneRows
	}
	return nil
}

// observeClock holds the database's clock against this node's own.
func (p *Postgres) observeClock(ctx context.Context, db rowQuerier) error {
	var now time.Time
	if err := db.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&now); err != nil {
		return fmt.Errorf("read the clock of the database: %w", err)
	}
	p.clock.observe(now)
	return nil
}

// pruneOnce runs one small transaction and returns the number of rows that it
// removed. It returns 0 when another node holds the lock: this node tries again
// in a minute.
func (p *Postgres) pruneOnce(ctx context.Context, sql string, args ...any) (removed int, err error) {
	err = p.repair.inTx(ctx, func(tx pgx.Tx) error {
		var mine bool
		if err := tx.QueryRow(ctx, `SELECT pg_try_advisory_xact_lock($1)`, pruneLock).Scan(&mine); err != nil || !mine {
			return err
		}
		return tx.QueryRow(ctx, sql, args...).Scan(&removed)
	})
	return removed, err
}
