package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"switchyard/internal/message"
)

// sqlListRooms reads two ranges of the index on names: below the service's own
// rooms, and above them. There may be many of its own, one for each node that
// ever ran, and a filter would have to read them all.
const sqlListRooms = `
SELECT l.name, l.head, l.first, CASE WHEN l.head > 0 THEN l.last_at END FROM (
	(SELECT name, head, first, last_at FROM rooms
		WHERE name > $1 AND name >= $2 AND name < $3 ORDER BY name LIMIT $6::bigint)
	UNION ALL
	(SELECT name, head, first, last_at FROM rooms
		WHERE name > $1 AND name >= $4 AND name < $5 ORDER BY name LIMIT $6::bigint)
) l ORDER BY l.name LIMIT $6`

// ListRooms returns rooms whose names begin with prefix and sort after after,
// in byte order, at most limit (1 to 1,000), and reports whether there are
// more. The service's own rooms, whose names begin with _, are left out unless
// prefix also begins with _. The error for an argument out of bounds is a
// *message.InvalidError.
func (p *Postgres) ListRooms(ctx context.Context, prefix string, after message.Room, limit int) ([]message.RoomInfo, bool, error) {
	defer p.m.observe("list_rooms", time.Now())
	names, err := nameRangesFor(prefix, after, limit)
	if err != nil {
		return nil, false, fmt.Errorf("list rooms: %w", err)
	}
	ctx, cancel, err := p.readContext(ctx)
	if err != nil {
		return nil, false, fmt.Errorf("list rooms: %w", err)
	}
	defer cancel()
	// One row more than the limit shows whether there are more.
	rows, err := p.reads.Query(ctx, sqlListRooms, names.after, names.low[0], names.high[0], names.low[1], names.high[1], limit+1)
	if err != nil {
		return nil, false, fmt.Errorf("list rooms: %w", err)
	}
	rooms, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r message.RoomInfo, err error) {
		var at *time.Time
		err = row.Scan(&r.Room, &r.Head, &r.First, &at)
		if at != nil {
			r.LastAt = at.UTC()
		}
		return r, err
	})
	if err != nil {
		return nil, false, fmt.Errorf("list rooms: %w", err)
	}
	if len(rooms) > limit {
		return rooms[:limit], true, nil
	}
	return rooms, false, nil
}
