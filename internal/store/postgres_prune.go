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

// sqlPruneCommits finds the oldest rows of the feed by their transaction ids,
// which are nearly in the order of time. It raises feed_floor in the same
// statement, so that a reader sees both changes or neither.
const sqlPruneCommits = `
WITH deleted AS (
	DELETE FROM commits WHERE xid = ANY (ARRAY(
		SELECT o.xid FROM (SELECT xid, at FROM commits ORDER BY xid LIMIT $2) o
		WHERE o.at < clock_timestamp() - $1::interval))
	RETURNING xid::text::bigint AS xid
), floor AS (
	UPDATE meta SET feed_floor = greatest(feed_floor, (SELECT max(xid) + 1 FROM deleted))
	WHERE EXISTS (SELECT FROM deleted)
)
SELECT count(*) FROM deleted`

// sqlPruneIDs finds the rows by the index on at, and deletes them by ctid,
// which saves a second index lookup.
const sqlPruneIDs = `
WITH deleted AS (
	DELETE FROM message_ids WHERE ctid = ANY (ARRAY(
		SELECT ctid FROM message_ids WHERE at < clock_timestamp() - $1::interval ORDER BY at LIMIT $2))
	RETURNING 1
)
SELECT count(*) FROM deleted`

// prune removes old rows of the commit feed and ids older than IDWindow, in
// small transactions. It does nothing while another node prunes.
func (p *Postgres) prune(ctx context.Context) error {
	for _, job := range []struct {
		name, sql string
		kept      time.Duration
	}{{"prune_commits", sqlPruneCommits, feedRetention}, {"prune_ids", sqlPruneIDs, p.cfg.IDWindow}} {
		for full := true; full; {
			began := time.Now()
			n, err := p.pruneOnce(ctx, job.sql, job.kept)
			p.m.observe(job.name, began)
			if err != nil {
				return fmt.Errorf("%s: %w", job.name, err)
			}
			full = n == pruneRows
		}
	}
	return nil
}

// pruneOnce runs one small transaction and returns the number of rows that it
// removed. It returns 0 when another node holds the lock: this node tries again
// in a minute.
func (p *Postgres) pruneOnce(ctx context.Context, sql string, kept time.Duration) (removed int, err error) {
	err = p.repair.inTx(ctx, func(tx pgx.Tx) error {
		var mine bool
		if err := tx.QueryRow(ctx, `SELECT pg_try_advisory_xact_lock($1)`, pruneLock).Scan(&mine); err != nil || !mine {
			return err
		}
		return tx.QueryRow(ctx, sql, kept, pruneRows).Scan(&removed)
	})
	return removed, err
}
