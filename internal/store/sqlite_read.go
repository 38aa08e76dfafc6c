package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"switchyard/internal/message"
)

// snapshot runs f in one read transaction, bounded by AppendTimeout. After Close
// it returns message.ErrClosed.
func (s *SQLite) snapshot(ctx context.Context, operation string, f func(context.Context, *sql.Tx) error) error {
	defer s.m.observe(operation, time.Now())
	if s.closed.Load() {
		return fmt.Errorf("%s: %w", operation, message.ErrClosed)
	}
	if lost := s.lostFile.Load(); lost != nil && lost.replaced {
		return fmt.Errorf("%s: %w", operation, lost) // a new connection would read the other file
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.AppendTimeout)
	defer cancel()
	tx, err := s.reads.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("%s: %w", operation, err)
	}
	// Nothing is written, but all reads of one transaction share a snapshot.
	defer func() { _ = tx.Rollback() }()
	if err := f(ctx, tx); err != nil {
		return fmt.Errorf("%s: %w", operation, err)
	}
	return nil
}

// Read returns part of a room, all of it from one snapshot. An unknown room
// reads as an empty one.
func (s *SQLite) Read(ctx context.Context, r message.Range) (page message.Page, err error) {
	err = s.snapshot(ctx, "read", func(ctx context.Context, tx *sql.Tx) error {
		var room int64
		err := tx.QueryRowContext(ctx, `SELECT m.epoch, coalesce(r.id, 0), coalesce(r.head, 0), coalesce(r.first, 1)
			FROM meta m LEFT JOIN rooms r ON r.name = ?`, string(r.Room)).Scan(&page.Epoch, &room, &page.Head, &page.First)
		if err != nil || r.Limit <= 0 {
			return err
		}
		from, to, more, err := pageBounds(ctx, tx, room, r)
		if err != nil || from == 0 {
			return err
		}
		page.More = more
		return readMessages(ctx, tx, &page, r.Room, room, from, to)
	})
	return page, err
}

// pageBounds returns the first and last seq of a page, and whether more
// messages follow, without reading any data. from is 0 for an empty page.
func pageBounds(ctx context.Context, tx *sql.Tx, room int64, r message.Range) (from, to message.Seq, more bool, err error) {
	query, bound := `SELECT seq, length(data) FROM messages WHERE room_id = ? AND seq > ? ORDER BY seq LIMIT ?`, r.After
	if r.Before > 0 {
		query, bound = `SELECT seq, length(data) FROM messages WHERE room_id = ? AND seq < ? ORDER BY seq DESC LIMIT ?`, r.Before
	}
	rows, err := tx.QueryContext(ctx, query, room, int64(bound), r.Limit+1)
	if err != nil {
		return 0, 0, false, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for count, total := 0, 0; rows.Next(); {
		var seq message.Seq
		var size int
		if err := rows.Scan(&seq, &size); err != nil {
			return 0, 0, false, err
		}
		count++
		total += size
		// The first message is part of the page whatever its size, or a reader
		// would never get past it.
		if count > r.Limit || count > 1 && total > r.MaxBytes {
			return from, to, true, nil
		}
		if count == 1 {
			from, to = seq, seq
		}
		from, to = min(from, seq), max(to, seq)
	}
	return from, to, false, rows.Err()
}

// readMessages appends the messages from one seq to another to a page.
func readMessages(ctx context.Context, tx *sql.Tx, page *message.Page, name message.Room, room int64, from, to message.Seq) (err error) {
	rows, err := tx.QueryContext(ctx, `SELECT seq, at, id, sender, data FROM messages
		WHERE room_id = ? AND seq BETWEEN ? AND ? ORDER BY seq`, room, int64(from), int64(to))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		m := message.Message{Draft: message.Draft{Room: name}, Epoch: page.Epoch}
		var at int64
		if err := rows.Scan(&m.Seq, &at, &m.ID, &m.From, &m.Data); err != nil {
			return err
		}
		m.At = time.UnixMicro(at).UTC()
		page.Messages = append(page.Messages, m)
	}
	return rows.Err()
}

// Commits returns the heads of the rooms with commits since the cursor was
// returned, and the next cursor. For cursor "" it returns only the next cursor.
// SQLite has one writer, which commits in the order of the feed's ids, so the
// id after the last is a cursor that skips nothing.
func (s *SQLite) Commits(ctx context.Context, cursor message.Cursor) (c message.Commits, err error) {
	err = s.snapshot(ctx, "commits", func(ctx context.Context, tx *sql.Tx) error {
		var floor, next int64
		err := tx.QueryRowContext(ctx, `SELECT epoch, feed_floor, max(feed_floor, coalesce((SELECT max(id) + 1 FROM commits), 0)) FROM meta`).
			Scan(&c.Epoch, &floor, &next)
		c.Next = message.Cursor(strconv.FormatInt(next, 10))
		if err != nil || cursor == "" {
			return err
		}
		from, err := strconv.ParseInt(string(cursor), 10, 64)
		if err != nil {
			return fmt.Errorf("the cursor %q is none of this log: %w", cursor, err)
		}
		// A cursor above the next one is of another epoch of the file.
		c.Incomplete = from < floor || from > next
		heads, err := scanHeads(ctx, tx, `SELECT room, max(head) FROM commits WHERE id >= ? GROUP BY room LIMIT ?`,
			from, feedRooms+1)
		if len(heads) > feedRooms {
			c.Incomplete, heads = true, heads[:feedRooms]
		}
		c.Heads = heads
		return err
	})
	return c, err
}

// ListRooms returns rooms whose names begin with prefix and sort after after,
// in byte order, at most limit (1 to 1,000), and reports whether there are
// more. The service's own rooms, whose names begin with _, are left out unless
// prefix also begins with _. The error for an argument out of bounds is a
// *message.InvalidError.
func (s *SQLite) ListRooms(ctx context.Context, prefix string, after message.Room, limit int) (rooms []message.RoomInfo, more bool, err error) {
	names, err := nameRangesFor(prefix, after, limit)
	if err != nil {
		return nil, false, fmt.Errorf("list rooms: %w", err)
	}
	err = s.snapshot(ctx, "list_rooms", func(ctx context.Context, tx *sql.Tx) error {
		// The second range sorts behind the first, and fills what is left of
		// the limit.
		for i := range names.low {
			if err := listRooms(ctx, tx, &rooms, names.after, names.low[i], names.high[i], limit+1-len(rooms)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, false, err
	}
	if len(rooms) > limit {
		return rooms[:limit], true, nil
	}
	return rooms, false, nil
}

// listRooms appends the rooms of one range of names, at most limit.
func listRooms(ctx context.Context, tx *sql.Tx, rooms *[]message.RoomInfo, after, low, high string, limit int) (err error) {
	rows, err := tx.QueryContext(ctx, `SELECT name, head, first, last_at FROM rooms
		WHERE name > ? AND name >= ? AND name < ? ORDER BY name LIMIT ?`, after, low, high, limit)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var r message.RoomInfo
		var at int64
		if err := rows.Scan(&r.Room, &r.Head, &r.First, &at); err != nil {
			return err
		}
		if r.Head > 0 {
			r.LastAt = time.UnixMicro(at).UTC()
		}
		*rooms = append(*rooms, r)
	}
	return rows.Err()
}

// headsPage is the number of rooms of one query, well below SQLite's bound of
// 32,766 parameters.
const headsPage = 500

// Heads returns the seq of each room's last message, in the order of rooms; an
// unknown room is at 0.
func (s *SQLite) Heads(ctx context.Context, rooms []message.Room) (epoch message.Epoch, heads []message.Head, err error) {
	err = s.snapshot(ctx, "heads", func(ctx context.Context, tx *sql.Tx) error {
		if err := tx.QueryRowContext(ctx, `SELECT epoch FROM meta`).Scan(&epoch); err != nil {
			return err
		}
		found := make(map[message.Room]message.Seq, len(rooms))
		for part := range slices.Chunk(rooms, headsPage) {
			query, args := `SELECT name, head FROM rooms WHERE name IN (?`, make([]any, len(part))
			for i, room := range part {
				if args[i] = string(room); i > 0 {
					query += ",?"
				}
			}
			known, err := scanHeads(ctx, tx, query+")", args...)
			if err != nil {
				return err
			}
			for _, h := range known {
				found[h.Room] = h.Seq
			}
		}
		heads = inOrder(rooms, found)
		return nil
	})
	return epoch, heads, err
}

// scanHeads runs a query that returns rooms and their heads.
func scanHeads(ctx context.Context, tx *sql.Tx, query string, args ...any) (heads []message.Head, err error) {
	rows, err := tx.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var h message.Head
		if err := rows.Scan(&h.Room, &h.Seq); err != nil {
			return nil, err
		}
		heads = append(heads, h)
	}
	return heads, rows.Err()
}
