package store

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"switchyard/internal/message"
)

// A feedCursor is the state of the database that a read of the commit feed has
// seen. The next read asks for the rows that were not visible in snapshot: those
// of transactions that had not begun, and those of transactions under way. How
// long a transaction is under way, in this database or another one of the
// server, changes nothing in what a read costs.
type feedCursor struct {
	// snapshot is a pg_snapshot: xmin, xmax, and the transactions under way. The
	// server's max_connections and max_prepared_transactions bound its length.
	// Subtransactions are not in it, nor in the feed.
	snapshot string
	// floor is meta.feed_floor: how far the feed was pruned.
	floor int64
	// origin is the epoch and the fingerprint of the server. On another server,
	// such as a promoted standby, and after a restore, the same transaction ids
	// may be those of other transactions.
	origin string
}

func (c feedCursor) encode() message.Cursor {
	return message.Cursor(c.snapshot + " " + strconv.FormatInt(c.floor, 10) + " " + c.origin)
}

func decodeFeedCursor(cursor message.Cursor) (c feedCursor, err error) {
	parts := strings.SplitN(string(cursor), " ", 3)
	if len(parts) != 3 {
		return c, fmt.Errorf("the cursor %q is none of this log", cursor)
	}
	c.snapshot, c.origin = parts[0], parts[2]
	if c.floor, err = strconv.ParseInt(parts[1], 10, 64); err != nil {
		return c, fmt.Errorf("the cursor %q is none of this log: %w", cursor, err)
	}
	return c, nil
}

// sqlCommits takes the rows and the next cursor from one snapshot. Of the
// transactions that were under way at the cursor it looks up those that have
// ended since. No row of this server can be at or above the snapshot's xmax.
//
// A row that the reader lacks may have been pruned if
//   - feed_floor is above the cursor's xmax,
//   - pruning has passed a transaction that was under way, which has ended and has
//     no row: it may never have had one, or
//   - the cursor is of another server or epoch.
const sqlCommits = `
WITH ended AS MATERIALIZED (
	SELECT x AS xid FROM pg_snapshot_xip($1::text::pg_snapshot) x
	WHERE pg_visible_in_snapshot(x, pg_current_snapshot())
)
SELECT m.epoch, pg_current_snapshot()::text, m.feed_floor, m.epoch || '/' || m.fingerprint,
	m.feed_floor::text::xid8 > pg_snapshot_xmax($1::text::pg_snapshot) OR EXISTS (
		SELECT FROM ended e WHERE e.xid >= $2::bigint::text::xid8 AND e.xid < m.feed_floor::text::xid8
			AND NOT EXISTS (SELECT FROM commits c WHERE c.xid = e.xid))
	OR m.epoch || '/' || m.fingerprint <> $3
	OR pg_snapshot_xmax($1::text::pg_snapshot) > pg_snapshot_xmax(pg_current_snapshot()),
	f.rooms, f.heads
FROM meta m, LATERAL (
	SELECT array_agg(h.room) AS rooms, array_agg(h.head) AS heads FROM (
		SELECT u.room, max(u.head) AS head
		FROM (
			SELECT c.rooms, c.heads FROM commits c
			WHERE c.xid >= pg_snapshot_xmax($1::text::pg_snapshot) AND c.xid < pg_snapshot_xmax(pg_current_snapshot())
			UNION ALL
			SELECT c.rooms, c.heads FROM commits c WHERE c.xid = ANY (ARRAY(SELECT e.xid FROM ended e))
		) c, unnest(c.rooms, c.heads) AS u (room, head)
		GROUP BY u.room LIMIT $4
	) h
) f`

// sqlCurrentCursor returns the cursor of a reader that wants only what is
// committed from now on. A transaction under way commits later.
const sqlCurrentCursor = `SELECT epoch, pg_current_snapshot()::text, feed_floor, epoch || '/' || fingerprint FROM meta`

// Commits returns the heads of the rooms with commits since the cursor was
// returned, and the next cursor. For cursor "" it returns only the next cursor.
// It returns each commit once, also that of a transaction that began before the
// cursor was returned and ended after.
func (p *Postgres) Commits(ctx context.Context, cursor message.Cursor) (message.Commits, error) {
	defer p.m.observe("commits", time.Now())
	ctx, cancel, err := p.readContext(ctx)
	if err != nil {
		return message.Commits{}, fmt.Errorf("read the commit feed: %w", err)
	}
	defer cancel()
	c, err := readCommits(ctx, p.repair, cursor)
	if err != nil {
		return message.Commits{}, fmt.Errorf("read the commit feed: %w", err)
	}
	return c, nil
}

// A rowQuerier is a connection, a pool of them, or a transaction.
type rowQuerier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

func readCommits(ctx context.Context, db rowQuerier, cursor message.Cursor) (c message.Commits, err error) {
	var next feedCursor
	if cursor == "" {
		err = db.QueryRow(ctx, sqlCurrentCursor).Scan(&c.Epoch, &next.snapshot, &next.floor, &next.origin)
		c.Next = next.encode()
		return c, err
	}
	from, err := decodeFeedCursor(cursor)
	if err != nil {
		return c, err
	}
	var rooms []string
	var heads []int64
	err = db.QueryRow(ctx, sqlCommits, from.snapshot, from.floor, from.origin, feedRooms+1).
		Scan(&c.Epoch, &next.snapshot, &next.floor, &next.origin, &c.Incomplete, &rooms, &heads)
	if err != nil {
		return c, err
	}
	c.Next = next.encode()
	if len(rooms) > feedRooms {
		c.Incomplete, rooms = true, rooms[:feedRooms]
	}
	for i, room := range rooms {
		c.Heads = append(c.Heads, message.Head{Room: message.Room(room), Seq: message.Seq(heads[i])})
	}
	return c, nil
}
