package store

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"switchyard/internal/message"
)

// An operatorError is one line for the operator: which setting is concerned,
// what is wrong, and what to do.
type operatorError struct{ text string }

func (e *operatorError) Error() string { return e.text }

// A serverIdentity is the identity of a server, as a new connection has read
// it.
type serverIdentity struct {
	databaseID string // system identifier and the database's oid, separated by a slash
	timeline   string
	tables     string // oid of the table messages; a restored dump has a different one
	wal        int64  // flushed WAL position, in bytes
	replayed   int64  // WAL position at which recovery ended; 0 if it started without
}

// fingerprint returns the value of meta.fingerprint while the epoch is valid.
func (id serverIdentity) fingerprint() string {
	return id.databaseID + "/" + id.timeline + "/" + id.tables
}

// sqlServerIdentity does not call the WAL functions on a replica, where they
// fail. The timeline is the first 8 hex digits of the current WAL file's name:
// the one in the control file is as old as the last checkpoint.
const sqlServerIdentity = `
SELECT pg_is_in_recovery(), current_setting('fsync'), current_setting('full_page_writes'),
       current_setting('synchronous_commit'),
       CASE WHEN NOT pg_is_in_recovery() THEN substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) ELSE '' END,
       CASE WHEN NOT pg_is_in_recovery() THEN (pg_current_wal_flush_lsn() - '0/0')::bigint ELSE 0 END,
       coalesce((pg_last_wal_replay_lsn() - '0/0')::bigint, 0),
       (SELECT system_identifier::text FROM pg_control_system()) || '/' ||
       (SELECT oid::text FROM pg_database WHERE datname = current_database()),
       coalesce(to_regclass('messages')::oid::text, '')`

// verify runs on every new connection of every pool, since the server may have
// been replaced a second ago. It refuses a server that may lose commits, and
// begins a new epoch when it is not the same database as before.
func (p *Postgres) verify(ctx context.Context, conn *pgx.Conn) error {
	_, _, err := p.verifyServer(ctx, conn)
	return err
}

// verifyServer does what verify does, including its writes, and returns the identity
// of the server and the epoch of its log.
func (p *Postgres) verifyServer(ctx context.Context, conn *pgx.Conn) (id serverIdentity, epoch string, err error) {
	// Read before the query, since another connection may raise p.wal during
	// the query.
	seen := p.wal.load()
	var replica bool
	var fsync, fullPageWrites, synchronousCommit string
	err = conn.QueryRow(ctx, sqlServerIdentity).Scan(&replica, &fsync, &fullPageWrites, &synchronousCommit, &id.timeline, &id.wal, &id.replayed, &id.databaseID, &id.tables)
	if err != nil {
		return id, "", fmt.Errorf("identify the database: %w", err)
	}
	if err := checkServerSettings(replica, fsync, fullPageWrites, synchronousCommit); err != nil {
		return id, "", err
	}
	if err := checkSchema(ctx, conn); err != nil {
		return id, "", err
	}
	if synchronousCommit == "local" || synchronousCommit == "remote_write" {
		// A commit must survive a failover. A stricter setting is kept.
		if _, err := conn.Exec(ctx, "SET synchronous_commit = on"); err != nil {
			return id, "", fmt.Errorf("set synchronous_commit: %w", err)
		}
	}
	epoch, err = p.ensureEpoch(ctx, conn, id, seen)
	return id, epoch, err
}

// checkServerSettings returns an error if the server is a replica or may lose
// commits in a crash. Each new connection checks again, since all three
// settings can be changed without a restart.
func checkServerSettings(replica bool, fsync, fullPageWrites, synchronousCommit string) error {
	const lossFormat = "the server of DATABASE_URL has %s = off and would lose acked messages in a crash: " +
		"set %[1]s = on in postgresql.conf"
	switch {
	case replica:
		return &operatorError{"the server of DATABASE_URL is a read-only standby: name the primary, or add target_session_attrs=read-write"}
	case fsync == "off":
		return &operatorError{fmt.Sprintf(lossFormat, "fsync")}
	case fullPageWrites == "off":
		return &operatorError{fmt.Sprintf(lossFormat, "full_page_writes")}
	case synchronousCommit == "off":
		return &operatorError{fmt.Sprintf(lossFormat, "synchronous_commit")}
	}
	return nil
}

// ensureEpoch begins a new epoch unless the database is the one that the stored
// fingerprint describes, and has not lost WAL that this node had seen. It returns the
// epoch.
func (p *Postgres) ensureEpoch(ctx context.Context, conn *pgx.Conn, id serverIdentity, seen seenWAL) (epoch string, err error) {
	var stored string
	if err := conn.QueryRow(ctx, `SELECT epoch, fingerprint FROM meta`).Scan(&epoch, &stored); err != nil {
		return "", fmt.Errorf("read the epoch: %w", err)
	}
	if stored == id.fingerprint() && !seen.isMissing(id) && p.wal.accept(epoch, id) {
		return epoch, nil
	}
	p.beginning.Lock()
	defer p.beginning.Unlock()
	before := epoch
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, `SELECT epoch, fingerprint FROM meta FOR UPDATE`).Scan(&epoch, &stored)
		if err != nil {
			return fmt.Errorf("lock the epoch: %w", err)
		}
		// WAL whose flush this node has recorded is missing, or the epoch is one that
		// was over: the data files were replaced by an older copy, though the
		// fingerprint may be the same. If another connection has begun a new epoch for
		// that, its position counts.
		over, now := p.wal.isOver(epoch), p.wal.load()
		lost := over || seen.isMissing(id) && now.isMissing(id)
		begun := epoch != before || epoch == now.epoch && epoch != seen.epoch // by another connection, or node
		switch {
		case stored == id.fingerprint() && (!lost || begun && !over):
			return nil
		case p.cfg.TrustFailover && !lost && epoch != "" && differsOnlyInTimeline(stored, id):
			p.cfg.Logger.Warn("the database has failed over; the epoch is kept, because DATABASE_TRUST_FAILOVER is set", "fingerprint", id.fingerprint())
		default:
			level := slog.LevelWarn
			if epoch == "" {
				level = slog.LevelInfo // the first epoch of this database
			}
			epoch = string(newEpoch())
			p.cfg.Logger.Log(ctx, level, "the log begins a new epoch: the database is new, restored, or has failed over",
				"epoch", epoch, "old_fingerprint", stored, "new_fingerprint", id.fingerprint(), "wal_lost", lost)
			// The cursors of the old epoch are invalid. The floor is taken after the
			// rows are deleted, so that it is above all of them.
			if _, err := tx.Exec(ctx, `DELETE FROM commits`); err != nil {
				return fmt.Errorf("empty the commit feed: %w", err)
			}
			if _, err := tx.Exec(ctx, `UPDATE meta SET feed_floor = pg_snapshot_xmax(pg_current_snapshot())::text::bigint`); err != nil {
				return fmt.Errorf("invalidate the cursors: %w", err)
			}
		}
		if _, err := tx.Exec(ctx, `UPDATE meta SET epoch = $1, fingerprint = $2`, epoch, id.fingerprint()); err != nil {
			return fmt.Errorf("write the epoch: %w", err)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	p.wal.accept(epoch, id)
	return epoch, nil
}

// differsOnlyInTimeline reports whether id's fingerprint equals the stored one
// except for the timeline.
func differsOnlyInTimeline(stored string, id serverIdentity) bool {
	parts := strings.Split(stored, "/")
	return len(parts) == 4 && parts[0]+"/"+parts[1] == id.databaseID && parts[3] == id.tables
}

// seenWAL is the highest WAL position that a node has seen flushed in an epoch, in bytes,
// and the timeline of the server that it saw last.
type seenWAL struct {
	epoch    string
	timeline string
	position int64
}

// isMissing reports whether a server lacks WAL that was seen. A promoted standby has
// written WAL of its own since, so what it had replayed before counts. The timeline of
// a primary that was replaced is the lower one: it lacks what its successor has stored.
func (s seenWAL) isMissing(id serverIdentity) bool {
	promoted := id.timeline > s.timeline && id.replayed > 0
	return id.wal < s.position || promoted && id.replayed < s.position || id.timeline < s.timeline
}

// A walPosition is the WAL that this node has seen in an epoch. It begins anew with each
// epoch: WAL that was missing when an epoch began is not missing again for the next
// connection. It is safe for concurrent use, and its lock is a leaf.
type walPosition struct {
	mu   sync.Mutex
	seen seenWAL
	over map[string]bool // the epochs before this one
}

func (w *walPosition) load() seenWAL {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen
}

// isOver reports whether another epoch has followed this one.
func (w *walPosition) isOver(epoch string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.over[epoch]
}

// raise raises the position if the epoch is still the same, and never lowers it.
func (w *walPosition) raise(epoch string, position int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if epoch == w.seen.epoch {
		w.seen.position = max(w.seen.position, position)
	}
}

// accept begins anew if a verified server has another epoch, and raises the position
// otherwise. It returns false, and changes nothing, if the epoch is over.
func (w *walPosition) accept(epoch string, id serverIdentity) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over[epoch] {
		return false
	}
	if epoch != w.seen.epoch {
		if w.over == nil {
			w.over = make(map[string]bool)
		}
		w.over[w.seen.epoch] = true
		w.seen.position = 0
	}
	w.seen = seenWAL{epoch: epoch, timeline: id.timeline, position: max(w.seen.position, id.wal)}
	return true
}

// newEpoch returns 16 random hex digits.
func newEpoch() message.Epoch {
	var b [8]byte
	_, _ = rand.Read(b[:]) // documented never to fail
	return message.Epoch(hex.EncodeToString(b[:]))
}

// pruneLoop prunes each minute. Every node tries, and an advisory lock lets one
// prune at a time.
func (p *Postgres) pruneLoop(ctx context.Context) {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := p.prune(ctx); err != nil && !errors.Is(err, context.Canceled) {
			p.cfg.Logger.Warn("could not prune the log", "error", err)
		}
	}
}
