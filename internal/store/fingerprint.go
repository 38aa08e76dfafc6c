package store

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"switchyard/internal/message"
)

// A operatorError is an error of one line for the operator: which setting, what is
// wrong, what to do.
type operatorError struct{ text string }

func (r *operatorError) Error() string { return r.text }

// serverIdentity is what a new connection learns of the server at its other end.
type serverIdentity struct {
	databaseID string // system identifier, database oid and timeline
	timeline   string
	tables     string // oid of messages: another one after a dump was restored
	wal        int64
}

func (id serverIdentity) fingerprint() string {
	return id.databaseID + "/" + id.timeline + "/" + id.tables
}

// The functions of the WAL fail on a replica, so they are not asked there. The
// timeline is the first 8 hex digits of the current WAL file's name: the one in
// the control file is as old as the last checkpoint.
const sqlServerIdentity = `
SELECT pg_is_in_recovery(), current_setting('fsync'), current_setting('full_page_writes'),
       current_setting('synchronous_commit'),
       CASE WHEN NOT pg_is_in_recovery() THEN substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) ELSE '' END,
       CASE WHEN NOT pg_is_in_recovery() THEN (pg_current_wal_flush_lsn() - '0/0')::bigint ELSE 0 END,
       (SELECT system_identifier::text FROM pg_control_system()) || '/' ||
       (SELECT oid::text FROM pg_database WHERE datname = current_database()),
       coalesce(to_regclass('messages')::oid::text, '')`

// verify is run on every new connection of every pool: the server may be another
// one than a second ago. It refuses servers that forget, and gives the log a
// new epoch where it is not the one it was.
func (p *Postgres) verify(ctx context.Context, conn *pgx.Conn) error {
	_, err := p.identify(ctx, conn)
	return err
}

// identify is vet, and tells what it learned.
func (p *Postgres) identify(ctx context.Context, conn *pgx.Conn) (serverIdentity, error) {
	// Read before the query, since another connection may raise it meanwhile.
	seen := p.wal.Load()
	var id serverIdentity
	var replica bool
	var fsync, pages, commit string
	err := conn.QueryRow(ctx, sqlServerIdentity).Scan(&replica, &fsync, &pages, &commit, &id.timeline, &id.wal, &id.databaseID, &id.tables)
	if err != nil {
		return id, fmt.Errorf("identify the database: %w", err)
	}
	if err := checkServerSettings(replica, fsync, pages, commit); err != nil {
		return id, err
	}
	if err := checkSchema(ctx, conn); err != nil {
		return id, err
	}
	if commit == "local" || commit == "remote_write" {
		// A commit must be where a failover finds it. What is stricter stays.
		if _, err := conn.Exec(ctx, "SET synchronous_commit = on"); err != nil {
			return id, fmt.Errorf("set synchronous_commit: %w", err)
		}
	}
	// What was flushed once and is not there now was lost with a disk, though
	// everything else may look the same: a copy of the files was put back.
	lost := id.wal < seen
	if err := p.matchEpoch(ctx, conn, id, lost); err != nil {
		return id, err
	}
	p.recordWAL(id.wal)
	return id, nil
}

// checkServerSettings returns what speaks against a server. A new connection asks again,
// since all three settings can be changed without a restart.
func checkServerSettings(replica bool, fsync, pages, commit string) error {
	const forgets = "the server of DATABASE_URL has %s = off and would lose acked messages in a crash: " +
		"set %[1]s = on in postgresql.conf"
	switch {
	case replica:
		return &operatorError{"the server of DATABASE_URL is a read-only replica: name the primary, or add target_session_attrs=read-write"}
	case fsync == "off":
		return &operatorError{fmt.Sprintf(forgets, "fsync")}
	case pages == "off":
		return &operatorError{fmt.Sprintf(forgets, "full_page_writes")}
	case commit == "off":
		return &operatorError{fmt.Sprintf(forgets, "synchronous_commit")}
	}
	return nil
}

// matchEpoch begins a new epoch unless the database is the one it was.
func (p *Postgres) matchEpoch(ctx context.Context, conn *pgx.Conn, id serverIdentity, lost bool) error {
	var stored string
	if err := conn.QueryRow(ctx, `SELECT fingerprint FROM meta`).Scan(&stored); err != nil {
		return fmt.Errorf("read the epoch: %w", err)
	}
	if stored == id.fingerprint() && !lost {
		return nil
	}
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		var epoch string
		err := tx.QueryRow(ctx, `SELECT epoch, fingerprint FROM meta FOR UPDATE`).Scan(&epoch, &stored)
		if err != nil {
			return fmt.Errorf("lock the epoch: %w", err)
		}
		switch {
		case stored == id.fingerprint() && !lost: // another connection was faster
			return nil
		case p.cfg.TrustFailover && !lost && epoch != "" && differsOnlyInTimeline(stored, id):
			p.cfg.Logger.Warn("the database has failed over; the epoch stays, as TrustFailover vouches for it", "fingerprint", id.fingerprint())
		default:
			level := slog.LevelWarn
			if epoch == "" {
				level = slog.LevelInfo // its first one
			}
			epoch = string(newEpoch())
			p.cfg.Logger.Log(ctx, level, "the log begins a new epoch: the database is new, restored, or has failed over",
				"epoch", epoch, "was", stored, "is", id.fingerprint(), "wal_lost", lost)
			// Nobody's cursor means anything any more.
			if _, err := tx.Exec(ctx, `DELETE FROM commits`); err != nil {
				return fmt.Errorf("empty the commit feed: %w", err)
			}
			if _, err := tx.Exec(ctx, `UPDATE meta SET feed_floor = pg_current_xact_id()::text::bigint`); err != nil {
				return fmt.Errorf("void the cursors: %w", err)
			}
		}
		if _, err := tx.Exec(ctx, `UPDATE meta SET epoch = $1, fingerprint = $2`, epoch, id.fingerprint()); err != nil {
			return fmt.Errorf("write the epoch: %w", err)
		}
		return nil
	})
}

// differsOnlyInTimeline says whether the fingerprints differ in the timeline alone.
func differsOnlyInTimeline(stored string, id serverIdentity) bool {
	parts := strings.Split(stored, "/")
	return len(parts) == 4 && parts[0]+"/"+parts[1] == id.databaseID && parts[3] == id.tables
}

// recordWAL raises the highest WAL position seen.
func (p *Postgres) recordWAL(position int64) {
	for {
		seen := p.wal.Load()
		if position <= seen || p.wal.CompareAndSwap(seen, position) {
			return
		}
	}
}

// newEpoch returns 16 random hex digits.
func newEpoch() message.Epoch {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails, says its documentation
	return message.Epoch(hex.EncodeToString(b[:]))
}

// janitorLoop prunes each minute. Every node tries; an advisory lock lets one
// do it at a time.
func (p *Postgres) janitorLoop(ctx context.Context) {
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
