package store

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"switchyard/internal/message"
)

const (
	// retentionLock is the advisory lock of a node during a step of the walk or
	// a trim.
	retentionLock int64 = 0x5377_6974_636a
	// trimRows bounds one transaction of a trim.
	trimRows = 1000
	// trimWait is the default of Config.trimWait. PostgreSQL grants the locks of
	// a row in the order of the requests, so even in a busy room a trim waits for
	// no more than the batch under way.
	trimWait = 200 * time.Millisecond
)

// Statements of a step of the walk. Any node continues a walk that has begun;
// the next walk begins when it is due.
const (
	sqlWalked = `
SELECT walked, clock_timestamp() FROM retention WHERE walked > 0 OR begun < now() - $1::interval`
	sqlDue = `
WITH page AS MATERIALIZED (
	SELECT id, name, head, first FROM rooms WHERE id > $1 ORDER BY id LIMIT $2::bigint
)
SELECT coalesce(max(p.id), 0), count(*), array_agg(p.name) FILTER (WHERE p.first <= p.head AND
	(p.head - p.first >= $3::bigint OR EXISTS (
		SELECT FROM messages m WHERE m.room_id = p.id AND m.seq = p.first AND m.at < $4::timestamptz)))
FROM page p`
	sqlWalk = `
UPDATE retention SET walked = $1, begun = CASE WHEN walked = 0 THEN now() ELSE begun END`
)

// walkStep makes a step of the walk that all nodes share: they skip the rooms
// that another node has inspected. A node may die before it has trimmed the
// rooms that it returns. That is harmless: the next walk returns them again.
func (p *Postgres) walkStep(ctx context.Context, policy retentionPolicy) (rooms []message.Room, ended bool, err error) {
	ended = true
	err = p.repair.inTx(ctx, func(tx pgx.Tx) error {
		var mine bool
		if err := tx.QueryRow(ctx, `SELECT pg_try_advisory_xact_lock($1)`, retentionLock).Scan(&mine); err != nil || !mine {
			return err
		}
		var walked int64
		var clock time.Time
		err := tx.QueryRow(ctx, sqlWalked, retentionInterval/2).Scan(&walked, &clock)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil // another node has completed a walk recently
		}
		if err != nil {
			return err
		}
		p.clock.observe(clock)
		var n int
		if err := tx.QueryRow(ctx, sqlDue, walked, walkPageSize, orNull(policy.count), p.ageCutoff(policy)).Scan(&walked, &n, &rooms); err != nil {
			return err
		}
		if ended = n < walkPageSize; ended {
			walked = 0
		}
		// In the transaction that read the rooms, under the lock: no step is
		// made twice or skipped.
		_, err = tx.Exec(ctx, sqlWalk, walked)
		return err
	})
	return rooms, ended, err
}

// ageCutoff returns the time before which messages are too old, or nil without a
// bound on age.
func (p *Postgres) ageCutoff(policy retentionPolicy) *time.Time {
	if policy.age == 0 {
		return nil
	}
	return orNull(p.clock.cutoff(policy.age))
}

// sqlTrim deletes the messages first and updates the room's row last, so that
// publishers wait only for its commit. rooms.first is right without a lock on
// the row: only this statement changes it, one at a time, and sets it just
// behind the messages that this statement has deleted. Times in a room never
// decrease, so the messages that are too old are a prefix.
const sqlTrim = `
WITH old AS MATERIALIZED (
	SELECT m.room_id, m.seq FROM rooms r, LATERAL (
		SELECT room_id, seq, at FROM messages WHERE room_id = r.id AND seq >= r.first ORDER BY seq LIMIT $4::bigint
	) m
	WHERE r.name = $1 AND (m.seq <= r.head - $2::bigint OR m.at < $3::timestamptz)
), deleted AS (
	DELETE FROM messages USING (SELECT room_id, min(seq) AS low, max(seq) AS high FROM old GROUP BY room_id) o
	WHERE messages.room_id = o.room_id AND messages.seq BETWEEN o.low AND o.high
	RETURNING messages.seq
)
UPDATE rooms SET first = d.next FROM (SELECT max(seq) + 1 AS next FROM deleted) d
WHERE name = $1 AND d.next IS NOT NULL
RETURNING (SELECT count(*) FROM deleted)`

// sqlTrimSettings lets a trim commit without waiting for the flush, during
// which the room would be locked. A crash may undo a trim: the removed messages
// exist again, with the room's old first, and the next walk removes them.
const sqlTrimSettings = `
SELECT set_config('lock_timeout', $1, true), set_config('synchronous_commit', 'off', true)`

// trim uses the repair pool, as prune does, so that it need not wait behind
// many readers.
func (p *Postgres) trim(ctx context.Context, room message.Room, policy retentionPolicy) (removed int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*p.cfg.AppendTimeout)
	defer cancel()
	err = p.repair.inTx(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, sqlTrimSettings, strconv.FormatInt(p.cfg.trimWait.Milliseconds(), 10)); err != nil {
			return err
		}
		// Unlike walkStep, a trim waits for the lock: each holder needs it
		// only for a moment.
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, retentionLock); err != nil {
			return err
		}
		err := tx.QueryRow(ctx, sqlTrim, string(room), orNull(policy.count), p.ageCutoff(policy), trimRows).Scan(&removed)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil // nothing to remove: another node has trimmed the room
		}
		return err
	})
	if sqlState(err) == lockNotAvailable {
		return 0, errRoomLocked
	}
	return removed, err
}

const lockNotAvailable = "55P03"

// retention returns the retention of this log.
func (p *Postgres) retention() *retention {
	return &retention{trimmer: p, trimLimit: trimRows, policy: p.cfg.retentionPolicy(), m: p.m, log: p.cfg.Logger}
}
