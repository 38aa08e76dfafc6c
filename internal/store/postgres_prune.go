package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// pruneLock is the advisory lock of the node that prunes.
const pruneLock = 0x5377_6974_6369

// pruneRows bounds one transaction of the janitor: it must not hold the locks
// of many rows for long, nor flood the WAL.
const pruneRows = 5000

// The oldest rows of the feed are those of the lowest transaction ids, nearly.
// The floor rises in the same statement, so a reader sees both or neither.
const sqlPruneCommits = `
WITH gone AS (
	DELETE FROM commits WHERE xid = ANY (ARRAY(
		SELECT o.xid FROM (SELECT xid, at FROM commits ORDER BY xid LIMIT $2) o
		WHERE o.at < clock_timestamp() - $1::interval))
	RETURNING xid::text::bigint AS xid
), floor AS (
	UPDATE meta SET feed_floor = greatest(feed_floor, (SELECT max(xid) + 1 FROM gone))
	WHERE EXISTS (SELECT FROM gone)
)
SELECT count(*) FROM gone`

// By the index on at; the rows are then found by their place in the table.
const sqlPruneIDs = `
WITH gone AS (
	DELETE FROM message_ids WHERE ctid = ANY (ARRAY(
		SELECT ctid FROM message_ids WHERE at < clock_timestamp() - $1::interval ORDER BY at LIMIT $2))
	RETURNING 1
)
SELECT count(*) FROM gone`

// prune removes what the commit feed and the memory of ids need no longer, in
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

// pruneOnce runs one small transaction and returns how many rows it removed, 0
// when another node holds the lock: it will prune again in a minute.
func (p *Postgres) pruneOnce(ctx context.Context, sql string, kept time.Duration) (removed int, err error) {
	err = pgx.BeginFunc(ctx, p.repair, func(tx pgx.Tx) error {
		var mine bool
		if err := tx.QueryRow(ctx, `SELECT pg_try_advisory_xact_lock($1)`, pruneLock).Scan(&mine); err != nil || !mine {
			return err
		}
		return tx.QueryRow(ctx, sql, kept, pruneRows).Scan(&removed)
	})
	return removed, err
}
