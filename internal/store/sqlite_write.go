package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"switchyard/internal/message"
)

// sqliteWriter commits batches with some statements for each message: SQLite
// runs in this process, so there is no round trip to save. It shares the one
// connection that writes.
type sqliteWriter struct {
	s                                                       *SQLite
	upsertRoom, findID, insertMessage, insertID, updateRoom *sql.Stmt
}

// newSQLiteWriter prepares the statements of a batch.
func newSQLiteWriter(ctx context.Context, s *SQLite) (*sqliteWriter, error) {
	w := &sqliteWriter{s: s}
	for _, p := range []struct {
		stmt **sql.Stmt
		sql  string
	}{
		{&w.upsertRoom, `INSERT INTO rooms (name) VALUES (?) ON CONFLICT (name) DO UPDATE SET name = name RETURNING id, head, last_at`},
		{&w.findID, `SELECT seq, at, digest FROM message_ids WHERE room_id = ? AND sender = ? AND id = ?`},
		{&w.insertMessage, `INSERT INTO messages (room_id, seq, at, id, sender, data) VALUES (?, ?, ?, ?, ?, ?)`},
		{&w.insertID, `INSERT INTO message_ids (room_id, sender, id, seq, at, digest) VALUES (?, ?, ?, ?, ?, ?)`},
		{&w.updateRoom, `UPDATE rooms SET head = ?, last_at = ? WHERE id = ?`},
	} {
		stmt, err := s.write.PrepareContext(ctx, p.sql)
		if err != nil {
			w.close()
			return nil, fmt.Errorf("prepare: %w", err)
		}
		*p.stmt = stmt
	}
	return w, nil
}

func (w *sqliteWriter) close() {
	for _, stmt := range []*sql.Stmt{w.upsertRoom, w.findID, w.insertMessage, w.insertID, w.updateRoom} {
		if stmt != nil {
			_ = stmt.Close()
		}
	}
}

// ping takes the write lock and releases it. While a file is lost it does not:
// Check returns an error then, and save may use the connection for long.
func (w *sqliteWriter) ping(ctx context.Context) error {
	if w.s.lostFile.Load() != nil {
		return nil
	}
	tx, err := w.s.write.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("ping: %w", err)
	}
	return tx.Rollback()
}

func (w *sqliteWriter) commit(ctx context.Context, batch []*queuedPublication) (message.Epoch, []result, error) {
	return w.commitIf(ctx, batch, func([]result) error { return nil })
}

// commitIf runs one BEGIN IMMEDIATE transaction, which takes the write lock
// first: what it reads cannot change before it writes.
func (w *sqliteWriter) commitIf(ctx context.Context, batch []*queuedPublication, precommit func([]result) error) (message.Epoch, []result, error) {
	if lost := w.s.lostFile.Load(); lost != nil {
		return "", nil, lost // without a wait for save, which may use the connection
	}
	tx, err := w.s.write.BeginTx(ctx, nil)
	if err == nil {
		defer func() { _ = tx.Rollback() }() // no-op after the commit
	}
	// Once more, with the connection in hand: save waits for the end of this
	// transaction, so it misses no commit.
	if lost := w.s.lostFile.Load(); lost != nil {
		return "", nil, lost
	}
	if err != nil {
		return "", nil, fmt.Errorf("begin: %w", err)
	}
	b := sqliteBatch{w: w, tx: tx, rooms: map[message.Room]*sqliteRoom{}, now: time.Now().UnixMicro()}
	results := make([]result, len(batch))
	for i, q := range batch {
		if results[i], err = b.add(ctx, q); err != nil {
			return "", nil, fmt.Errorf("store a message: %w", err)
		}
	}
	// Called before heads and feed are written, because a refusal would roll
	// them back.
	if err := precommit(results); err != nil {
		return "", nil, err
	}
	epoch, state, err := b.finish(ctx)
	if err != nil {
		return "", nil, err
	}
	if err := tx.Commit(); err != nil {
		return "", nil, fmt.Errorf("commit: %w", err)
	}
	state.inode = w.s.inode
	if err := w.s.lockFile.recordCommit(state); err != nil {
		// The messages are stored nevertheless. Only a restore to just before
		// this commit would go unnoticed.
		w.s.cfg.Logger.Warn("could not record the commit in the lock file", "error", err)
	}
	return epoch, results, nil
}

// A sqliteBatch is a transaction under way, with the rooms that it has read.
type sqliteBatch struct {
	w     *sqliteWriter
	tx    *sql.Tx
	rooms map[message.Room]*sqliteRoom
	now   int64 // Unix µs
}

// A sqliteRoom is a row of rooms. It advances in memory until finish writes it.
type sqliteRoom struct {
	id, head, at int64
	changed      bool
}

// add stores one message, or returns the stored one with its id.
func (b *sqliteBatch) add(ctx context.Context, q *queuedPublication) (result, error) {
	room, err := b.room(ctx, q.pub.Room)
	if err != nil {
		return result{}, err
	}
	p := q.pub
	var r result
	var at int64
	err = b.tx.StmtContext(ctx, b.w.findID).QueryRowContext(ctx, room.id, p.From, p.ID).Scan(&r.seq, &at, &r.digest)
	if err == nil {
		r.at, r.duplicate = time.UnixMicro(at), true
		return r, nil
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return result{}, err
	}
	room.head++
	room.at = max(room.at, b.now) // times in a room never decrease, even if the clock is set back
	room.changed = true
	_, err = b.tx.StmtContext(ctx, b.w.insertMessage).ExecContext(ctx, room.id, room.head, room.at, p.ID, p.From, notNil(p.Data))
	if err != nil {
		return result{}, err
	}
	_, err = b.tx.StmtContext(ctx, b.w.insertID).ExecContext(ctx, room.id, p.From, p.ID, room.head, room.at, q.digest[:])
	return result{seq: message.Seq(room.head), at: time.UnixMicro(room.at)}, err
}

// room returns a room of the batch, and creates it if it is new. The statement
// updates nothing, but RETURNING is empty after DO NOTHING.
func (b *sqliteBatch) room(ctx context.Context, name message.Room) (*sqliteRoom, error) {
	if r := b.rooms[name]; r != nil {
		return r, nil
	}
	r := &sqliteRoom{}
	if err := b.tx.StmtContext(ctx, b.w.upsertRoom).QueryRowContext(ctx, string(name)).Scan(&r.id, &r.head, &r.at); err != nil {
		return nil, err
	}
	b.rooms[name] = r
	return r, nil
}

// finish writes the rooms' heads and the commit feed, and counts the commit.
func (b *sqliteBatch) finish(ctx context.Context) (message.Epoch, databaseState, error) {
	for name, r := range b.rooms {
		if !r.changed {
			continue
		}
		if _, err := b.tx.StmtContext(ctx, b.w.updateRoom).ExecContext(ctx, r.head, r.at, r.id); err != nil {
			return "", databaseState{}, fmt.Errorf("advance a room: %w", err)
		}
		_, err := b.tx.ExecContext(ctx, `INSERT INTO commits (room, head, at) VALUES (?, ?, ?)`, string(name), r.head, b.now)
		if err != nil {
			return "", databaseState{}, fmt.Errorf("write the commit feed: %w", err)
		}
	}
	var epoch string
	var state databaseState
	err := b.tx.QueryRowContext(ctx, `UPDATE meta SET commits = commits + 1 RETURNING epoch, identity, commits`).
		Scan(&epoch, &state.databaseID, &state.commits)
	if err != nil {
		return "", databaseState{}, fmt.Errorf("count the commit: %w", err)
	}
	return message.Epoch(epoch), state, nil
}

// isDataError recognizes the result codes (sqlite.org/rescode.html) that a
// statement's own data can cause. Triggers raise constraint errors.
func (w *sqliteWriter) isDataError(err error) bool {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_RANGE:
		return true
	}
	return false
}
