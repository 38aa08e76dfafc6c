package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"switchyard/internal/message"
)

// sqlCreateRooms inserts the missing rooms only: ON CONFLICT alone would use up
// a room id for each room of each batch.
const sqlCreateRooms = `
INSERT INTO rooms (name)
SELECT n.name FROM unnest($1::text[]) AS n (name)
WHERE NOT EXISTS (SELECT FROM rooms r WHERE r.name = n.name)
ORDER BY n.name COLLATE "C"
ON CONFLICT (name) DO NOTHING`

// sqlLockRooms locks rooms in the byte order of their names, which is the same
// on all nodes, so that batches do not deadlock.
const sqlLockRooms = `
SELECT id FROM rooms WHERE name = ANY ($1::text[]) ORDER BY name COLLATE "C" FOR UPDATE`

// sqlAppend is a statement of its own, so that its snapshot is taken after the
// locks. The snapshot has the ids that other nodes have stored in these rooms,
// and no node can store another until this transaction commits.
//
// It numbers the new messages of a room in the order of the batch. Rows pass
// from one step to the next without a join between steps, which would be
// quadratic. LIMIT 1 stops the planner from turning the lookup of ids into a
// join: planned on empty tables, that join would use the room alone, and read
// all ids of the room for each message.
//
// Its guard divides by zero when the tables are not the ones that this
// connection has verified, because a dump was restored in the meantime, or when
// a pooler has given the connection another server process. The batch is then
// rolled back and the connection renewed, which begins a new epoch, or finds the
// pooler.
const sqlAppend = `
WITH numbered AS MATERIALIZED (
	SELECT f.*, coalesce(f.known, f.head + count(*) FILTER (WHERE f.known IS NULL)
		OVER (PARTITION BY f.room_id ORDER BY f.pos)) AS seq
	FROM (
		SELECT i.pos, i.sender, i.id, i.data, i.digest, r.id AS room_id, r.head,
			k.seq AS known, k.digest AS known_digest,
			coalesce(k.at, greatest((SELECT clock_timestamp()), r.last_at)) AS at
		FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[], $5::bytea[])
			WITH ORDINALITY AS i (name, sender, id, data, digest, pos)
		JOIN rooms r ON r.name = i.name
		LEFT JOIN LATERAL (
			SELECT m.seq, m.at, m.digest FROM message_ids m
			WHERE m.room_id = r.id AND m.sender = i.sender AND m.id = i.id
			LIMIT 1
		) k ON true
	) f
), stored AS (
	INSERT INTO messages (room_id, seq, at, id, sender, data)
	SELECT room_id, seq, at, id, sender, data FROM numbered WHERE known IS NULL
), remembered AS (
	INSERT INTO message_ids (room_id, sender, id, seq, at, digest)
	SELECT room_id, sender, id, seq, at, digest FROM numbered WHERE known IS NULL
), advanced AS (
	UPDATE rooms r SET head = h.head, last_at = h.at
	FROM (SELECT room_id, max(seq) AS head, max(at) AS at FROM numbered WHERE known IS NULL GROUP BY room_id) h
	WHERE r.id = h.room_id
	RETURNING r.name, r.head
), feed AS (
	INSERT INTO commits (xid, rooms, heads, at)
	SELECT pg_current_xact_id(), array_agg(name), array_agg(head), clock_timestamp() FROM advanced HAVING count(*) > 0
)
SELECT seq, at, known IS NOT NULL, known_digest,
	(SELECT epoch FROM meta WHERE 1 / (fingerprint = $6 || '/' || to_regclass('messages')::oid::text AND pg_backend_pid() = $7)::int = 1),
	(SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint)
FROM numbered ORDER BY pos`

// sqlPing has the same guard as sqlAppend, and returns the flushed WAL
// position. It fails on a replica, so a demoted primary is not reported as
// healthy.
const sqlPing = `
SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint FROM meta
WHERE 1 / (fingerprint = $1 || '/' || to_regclass('messages')::oid::text AND pg_backend_pid() = $2)::int = 1`

// A pgWriter has the connection of one append worker or of the atomic appender,
// and replaces the connection when it breaks or is old. One goroutine at a time
// uses it.
type pgWriter struct {
	p                 *Postgres
	conn              *pgx.Conn // nil when there is none
	fingerprintPrefix string    // the verified fingerprint without the tables
	epoch             string    // that of the log when the server was verified
	renewAt           time.Time // when the connection is renewed
	lockedRooms       map[string]lockedRoom
	left              int32 // the server process of a commit that was left without an answer; 0: none
}

// connect opens and verifies a connection, and prepares its statements.
func (w *pgWriter) connect(ctx context.Context) error {
	config := w.p.conn.Copy()
	w.p.refresh(config)
	verified := neverCancel(config)
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		w.p.makeRoom(err)
		return fmt.Errorf("connect: %w", err)
	}
	w.conn, w.lockedRooms = conn, map[string]lockedRoom{}
	id, epoch, err := w.p.verifyServer(ctx, conn)
	if err != nil {
		w.close()
		return err
	}
	if err := w.awaitLeft(ctx); err != nil {
		w.close()
		return err
	}
	for name, sql := range map[string]string{
		"begin": "BEGIN ISOLATION LEVEL READ COMMITTED", "create": sqlCreateRooms, "lock": sqlLockRooms,
		"append": sqlAppend, "commit": "COMMIT", "ping": sqlPing, "find_locked": sqlFindLockedRooms,
	} {
		if _, err := conn.Prepare(ctx, name, sql); err != nil {
			w.close()
			return fmt.Errorf("prepare %s: %w", name, err)
		}
	}
	w.fingerprintPrefix, w.epoch = id.databaseID+"/"+id.timeline, epoch
	w.renewAt = time.Now().Add(w.p.cfg.ConnLifetime)
	verified.Store(true)
	return nil
}

// ready makes sure that there is a connection, and opens a new one when the
// connection is broken or due for renewal.
func (w *pgWriter) ready(ctx context.Context) error {
	if w.conn != nil && !w.conn.IsClosed() && time.Now().Before(w.renewAt) {
		return nil
	}
	w.close()
	return w.connect(ctx)
}

// close may be called twice, and with a broken connection.
func (w *pgWriter) close() {
	if w.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = w.conn.Close(ctx) // no statement is running, so the error can be ignored
	w.conn = nil
}

// ping reads the flushed WAL position, which only a primary has.
func (w *pgWriter) ping(ctx context.Context) error {
	if err := w.ready(ctx); err != nil {
		return err
	}
	var wal int64
	if err := w.conn.QueryRow(ctx, "ping", w.fingerprintPrefix, backendOf(w.conn)).Scan(&wal); err != nil {
		err = w.explain(ctx, err)
		w.close()
		return fmt.Errorf("ping: %w", err)
	}
	w.p.wal.raise(w.epoch, wal)
	return nil
}

// commit sends the whole transaction in one round trip and then reads all
// answers. PostgreSQL skips the statements after the first error.
func (w *pgWriter) commit(ctx context.Context, batch []*queuedPublication) (message.Epoch, []result, error) {
	return w.commitIf(ctx, batch, nil)
}

// commitIf calls precommit with the results of the statements, and then sends
// COMMIT in a round trip of its own, during which the rooms stay locked. With
// precommit nil it is commit.
func (w *pgWriter) commitIf(ctx context.Context, batch []*queuedPublication, precommit func([]result) error) (message.Epoch, []result, error) {
	if err := w.ready(ctx); err != nil {
		return "", nil, err
	}
	if err := w.checkLockedRooms(ctx, batch); err != nil {
		return "", nil, w.resetAfter(ctx, err)
	}
	epoch, results, err := w.send(ctx, batch, precommit == nil)
	if err == nil && precommit != nil {
		if refused := precommit(results); refused != nil {
			w.rollback(ctx)
			return "", nil, refused
		}
		err = w.sendCommit(ctx)
	}
	if err == nil {
		w.forgetLockedRooms(batch)
		return epoch, results, nil
	}
	if sqlState(err) == lockNotAvailable {
		if w.rollback(ctx); w.conn != nil {
			if found := w.findLockedRooms(ctx, batch); found != nil {
				err = found
			}
		}
	}
	return "", nil, w.resetAfter(ctx, err)
}

// resetAfter makes the connection usable again after an error, or closes it. It
// returns the error.
func (w *pgWriter) resetAfter(ctx context.Context, err error) error {
	var locked *lockedRoomsError
	switch {
	case errors.As(err, &locked):
	case w.isDataError(err):
		w.rollback(ctx)
		err = w.advanceRoomIDs(ctx, err)
	default:
		if w.conn != nil && w.conn.IsClosed() {
			w.left = backendOf(w.conn)
		}
		err = w.explain(ctx, err)
		w.close() // its state is unknown: the next attempt opens and verifies a new one
	}
	return err
}

// explain returns errPoolerSwitches if that is why a statement has failed: a
// guard has refused, or another server process lacks the prepared statements.
func (w *pgWriter) explain(ctx context.Context, err error) error {
	if !w.p.pooled.Load() || w.conn.IsClosed() {
		return err
	}
	if w.rollback(ctx); w.conn == nil {
		return err
	}
	if switched := isStill(ctx, w.conn.PgConn(), backendOf(w.conn)); errors.Is(switched, errPoolerSwitches) {
		return switched
	}
	return err
}

// rollback rolls the transaction back, or closes the connection.
func (w *pgWriter) rollback(ctx context.Context) {
	if _, err := w.conn.Exec(ctx, "ROLLBACK"); err != nil {
		w.close() // the server then rolls back
	}
}

// sendCommit commits the transaction that send has left open.
func (w *pgWriter) sendCommit(ctx context.Context) error {
	tag, err := w.conn.Exec(ctx, "commit")
	if err == nil && tag.String() != "COMMIT" {
		err = fmt.Errorf("the database answered %q", tag)
	}
	if err != nil {
		return fmt.Errorf("commit a batch: %w", err)
	}
	return nil
}

// send sends a batch, with or without its COMMIT, and returns the results in
// the order of the batch. The parameters are arrays, one for each column, so
// that the prepared statements serve batches of any size.
func (w *pgWriter) send(ctx context.Context, batch []*queuedPublication, commit bool) (message.Epoch, []result, error) {
	n := len(batch)
	names, senders, ids := make([]string, n), make([]string, n), make([]string, n)
	data, digests := make([][]byte, n), make([][]byte, n)
	for i, q := range batch {
		names[i], senders[i], ids[i] = string(q.pub.Room), q.pub.From, q.pub.ID
		data[i], digests[i] = notNil(q.pub.Data), q.digest[:]
	}
	rooms := roomsOf(batch)

	var b pgx.Batch
	b.Queue("begin")
	b.Queue("create", rooms)
	b.Queue("lock", rooms)
	b.Queue("append", names, senders, ids, data, digests, w.fingerprintPrefix, backendOf(w.conn))
	if commit {
		b.Queue("commit")
	}
	answers := w.conn.SendBatch(ctx, &b)
	epoch, results, err := w.readAnswers(answers, n, commit)
	if closed := answers.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return "", nil, fmt.Errorf("commit %d messages: %w", n, err)
	}
	return epoch, results, nil
}

// readAnswers reads the answers to the statements of send. It checks the command
// tag of the COMMIT: a failed transaction answers COMMIT with ROLLBACK.
func (w *pgWriter) readAnswers(answers pgx.BatchResults, n int, commit bool) (message.Epoch, []result, error) {
	for range 3 { // begin, create, lock
		if _, err := answers.Exec(); err != nil {
			return "", nil, err
		}
	}
	rows, err := answers.Query()
	if err != nil {
		return "", nil, err
	}
	defer rows.Close()
	var epoch string
	var wal int64
	results := make([]result, 0, n)
	for rows.Next() {
		var r result
		if err := rows.Scan(&r.seq, &r.at, &r.duplicate, &r.digest, &epoch, &wal); err != nil {
			return "", nil, err
		}
		results = append(results, r)
	}
	if err := rows.Err(); err != nil {
		return "", nil, err
	}
	rows.Close()
	if commit {
		tag, err := answers.Exec()
		if err != nil {
			return "", nil, err
		}
		if tag.String() != "COMMIT" {
			return "", nil, fmt.Errorf("the database answered %q", tag)
		}
	}
	if len(results) != n {
		return "", nil, fmt.Errorf("the database answered with %d of %d rows", len(results), n)
	}
	w.p.wal.raise(epoch, wal)
	return message.Epoch(epoch), results, nil
}

// notNil returns b, or empty data for nil, which would be stored as NULL.
func notNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// isDataError recognizes the error classes (PostgreSQL's manual, appendix A)
// that a statement's own data can cause: data, constraints, triggers, limits,
// and internal errors, which a damaged page causes for one room and not for
// others. Any other error (connection, rights, resources, operator, a schema
// that is being restored) would fail any other batch as well.
func (w *pgWriter) isDataError(err error) bool {
	state := sqlState(err)
	if len(state) != 5 || state == divisionByZero {
		return false
	}
	switch state[:2] {
	case "21", "22", "23", "2F", "38", "39", "44", "54", "P0", "XX":
		return true
	}
	return false
}

const (
	divisionByZero = "22012" // the guard of sqlAppend and sqlPing
	undefinedTable = "42P01"
)

// sqlState returns the SQLSTATE code of an error of PostgreSQL, "" for any other.
func sqlState(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}
