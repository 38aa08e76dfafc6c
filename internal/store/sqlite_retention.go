package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"switchyard/internal/message"
)

// sqliteTrimRows bounds one transaction of a trim. There is one writer, so
// publications wait for the whole of it, with its flush.
const sqliteTrimRows = 250

// walkStep makes a step of the walk. No other process uses the file, so the walk
// continues from a field, not from a row in the database.
func (s *SQLite) walkStep(ctx context.Context, policy retentionPolicy) (rooms []message.Room, ended bool, err error) {
	err = s.snapshot(ctx, "retention", func(ctx context.Context, tx *sql.Tx) (err error) {
		rows, err := tx.QueryContext(ctx, `SELECT id, name, first <= head AND (head - first >= ?3 OR EXISTS (
				SELECT 1 FROM messages m WHERE m.room_id = r.id AND m.seq = r.first AND m.at < ?4))
			FROM rooms r WHERE id > ?1 ORDER BY id LIMIT ?2`, s.walked, walkPageSize, orNull(policy.count), s.ageCutoff(policy))
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, rows.Close()) }()
		n := 0
		for ; rows.Next(); n++ {
			var room message.Room
			var found sql.NullBool // NULL when one bound is not set and the other not reached
			if err := rows.Scan(&s.walked, &room, &found); err != nil {
				return err
			}
			if found.Bool {
				rooms = append(rooms, room)
			}
		}
		if ended = n < walkPageSize; ended {
			s.walked = 0
		}
		return rows.Err()
	})
	return rooms, ended, err
}

// ageCutoff returns the time before which messages are too old, in µs since
// 1970, or nil without a bound on age.
func (s *SQLite) ageCutoff(policy retentionPolicy) *int64 {
	if policy.age == 0 {
		return nil
	}
	return orNull(s.cutoff(policy.age).UnixMicro())
}

func (s *SQLite) trim(ctx context.Context, room message.Room, policy retentionPolicy) (removed int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*s.cfg.AppendTimeout)
	defer cancel()
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return 0, fmt.Errorf("begin: %w", err)
	}
	defer func() { _ = tx.Rollback() }() // no-op after the commit
	if s.lostFile.Load() != nil {
		return 0, errRoomLocked // until the file is back
	}
	// The transaction began with the write lock, so nothing is appended between
	// its reads and its writes.
	var id, first int64
	var last sql.NullInt64
	// Times in a room never decrease, so the messages that are too old are a prefix.
	err = tx.QueryRowContext(ctx, `
		SELECT r.id, r.first, (
			SELECT max(m.seq) FROM (
				SELECT seq, at FROM messages WHERE room_id = r.id AND seq >= r.first ORDER BY seq LIMIT ?4
			) m WHERE m.seq <= r.head - ?2 OR m.at < ?3)
		FROM rooms r WHERE r.name = ?1`, string(room), orNull(policy.count), s.ageCutoff(policy), sqliteTrimRows).Scan(&id, &first, &last)
	if err != nil || !last.Valid {
		return 0, err
	}
	done, err := tx.ExecContext(ctx, `DELETE FROM messages WHERE room_id = ? AND seq BETWEEN ? AND ?`, id, first, last.Int64)
	if err != nil {
		return 0, err
	}
	n, err := done.RowsAffected()
	if err != nil {
		return 0, err
	}
	if _, err := tx.ExecContext(ctx, `UPDATE rooms SET first = ? WHERE id = ?`, last.Int64+1, id); err != nil {
		return 0, err
	}
	return int(n), tx.Commit()
}

// retention returns the retention of this log.
func (s *SQLite) retention() *retention {
	return &retention{trimmer: s, trimLimit: sqliteTrimRows, policy: s.cfg.retentionPolicy(), m: s.m, log: s.cfg.Logger}
}
