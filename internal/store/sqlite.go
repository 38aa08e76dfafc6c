package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the driver "sqlite"
)

// SQLite is the log in one file, for one process. It is safe for concurrent use.
type SQLite struct {
	*committer
	cfg      Config
	m        *metrics
	lockFile *lockFile
	inode    uint64
	write    *sql.DB // one connection
	reads    *sql.DB
	anchor   *sql.DB // one connection that stays open, so that the files stay the same

	files    *sqliteFiles
	lostFile atomic.Pointer[lostFileError] // set while a file is not in its place
	// Owned by watchFilesLoop, then by Close.
	loss   fileLoss // what checkFiles has found
	saved  bool     // save has succeeded
	saveTo string   // the copy that save makes, "" for none

	clock  *pruneClock
	walked int64 // id of the room that walkStep inspected last; owned by retentionLoop

	stop   context.CancelFunc // ends loops
	loops  sync.WaitGroup
	closed atomic.Bool
}

// sqliteIdleReaders is how many connections for reads stay open for later ones.
const sqliteIdleReaders = 2

// OpenSQLite opens the log at sqlite:path. It returns an error of one line,
// which names the setting and the remedy, when another process has the file
// open, or when the schema is missing, older than this binary or too new for it.
func OpenSQLite(ctx context.Context, c Config) (*SQLite, error) {
	c.AppendWorkers = 1
	c = c.withDefaults()
	if err := c.validate(); err != nil {
		return nil, err
	}
	path, ok := sqlitePath(c.URL)
	if !ok || path == "" {
		return nil, &operatorError{"DATABASE_URL is malformed: it must look like sqlite:switchyard.db"}
	}
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil, checkSchemaVersion(0, latestVersion("sqlite"), 0)
	}
	lock, err := lockSQLite(path)
	if err != nil {
		return nil, err
	}
	restricted, err := restrictFiles(lock.path)
	if err != nil {
		c.Logger.Warn("other users of this machine can read the messages", "error", err)
	} else if restricted {
		c.Logger.Info("the files of the log were taken from other users of this machine", "file", lock.path)
	}
	s := &SQLite{cfg: c, m: newMetrics(c.Registerer), lockFile: lock, clock: newPruneClock(c.longestKept())}
	s.clock.observe(time.Now())
	if err := s.open(ctx, lock.path); err != nil {
		return nil, errors.Join(err, s.closeFiles())
	}
	return s, nil
}

// open is the second part of OpenSQLite. After an error the caller closes the files.
func (s *SQLite) open(ctx context.Context, path string) error {
	var err error
	if s.write, err = sql.Open("sqlite", sqliteURI(path, "_txlock=immediate")); err != nil {
		return fmt.Errorf("open the database: %w", err)
	}
	// SQLite allows one writer at a time anyway. With one connection, writers
	// wait for it in order instead of polling the file's lock.
	s.write.SetMaxOpenConns(1)
	if s.reads, err = sql.Open("sqlite", sqliteURI(path, "_pragma=query_only(1)")); err != nil {
		return fmt.Errorf("open the database: %w", err)
	}
	// Readers and the writer do not wait for each other: WAL mode gives each
	// reader a snapshot.
	s.reads.SetMaxOpenConns(s.cfg.MaxConns - 1)
	s.reads.SetMaxIdleConns(sqliteIdleReaders)
	s.reads.SetConnMaxIdleTime(5 * time.Minute)
	if s.anchor, err = sql.Open("sqlite", sqliteURI(path, "_pragma=query_only(1)")); err != nil {
		return fmt.Errorf("open the database: %w", err)
	}
	s.anchor.SetMaxOpenConns(1)
	if err := s.checkSchema(ctx); err != nil {
		return err
	}
	if err := s.matchEpoch(ctx); err != nil {
		return err
	}
	if s.files, err = newSQLiteFiles(ctx, s.anchor, s.lockFile); err != nil {
		return err
	}
	w, err := newSQLiteWriter(ctx, s)
	if err != nil {
		return err
	}
	// The atomic appender has a writer of its own, since the append worker
	// closes its statements when it ends, and a batch may then be under way.
	batchWriter, err := newSQLiteWriter(ctx, s)
	if err != nil {
		w.close()
		return err
	}
	s.committer = newCommitter(s.cfg, s.m, []writer{w}, batchWriter)
	for name, db := range map[string]*sql.DB{"write": s.write, "read": s.reads} {
		s.m.pool(name, func() (used, idle, limit int) {
			stats := db.Stats()
			return stats.InUse, stats.Idle, stats.MaxOpenConnections
		})
	}
	background, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.loops.Go(func() { s.pruneLoop(background) })
	s.loops.Go(func() { s.retention().retentionLoop(background) })
	s.loops.Go(func() { s.watchFilesLoop(background) })
	return nil
}

// Check returns nil if a publish would be stored: no file is lost, and the
// database has answered within the last 5 s.
func (s *SQLite) Check() error {
	if lost := s.lostFile.Load(); lost != nil {
		return lost
	}
	return s.committer.Check()
}

// matchEpoch begins a new epoch unless the lock file has recorded this
// database, and the database is not behind that record.
func (s *SQLite) matchEpoch(ctx context.Context) error {
	var state databaseState
	err := s.write.QueryRowContext(ctx, `SELECT identity, commits FROM meta`).Scan(&state.databaseID, &state.commits)
	if err != nil {
		return fmt.Errorf("read the epoch: %w", err)
	}
	if state.inode, _, err = identify(s.lockFile.database); err != nil {
		return err
	}
	s.inode = state.inode
	recorded := s.lockFile.read()
	if recorded.databaseID == state.databaseID && recorded.inode == state.inode && recorded.commits <= state.commits && state.databaseID != "" {
		return nil
	}
	level := slog.LevelWarn
	if state.databaseID == "" {
		level = slog.LevelInfo // its first one
	}
	epoch := newEpoch()
	state.databaseID = string(newEpoch())
	// The cursors of an older epoch are invalid: the feed begins again.
	_, err = s.write.ExecContext(ctx, `
		UPDATE meta SET epoch = ?, identity = ?,
			feed_floor = 1 + coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'commits'), 0);
		DELETE FROM commits`, string(epoch), state.databaseID)
	if err != nil {
		return fmt.Errorf("write the epoch: %w", err)
	}
	s.cfg.Logger.Log(ctx, level, "the log begins a new epoch: the file is new, restored, copied or moved", "epoch", epoch)
	if err := s.lockFile.write(state); err != nil {
		return err
	}
	return s.lockFile.file.Sync()
}

// Close refuses new publications, commits the pending ones, and closes the
// file. When ctx ends first, the rest fails with message.ErrUnavailable. A
// second call does nothing.
func (s *SQLite) Close(ctx context.Context) error {
	if s.closed.Swap(true) {
		return nil
	}
	err := s.committer.close(ctx)
	s.stop()
	s.loops.Wait()
	if s.checkFiles(); s.lostFile.Load() != nil && !s.saved {
		err = errors.Join(err, s.save(ctx))
	}
	if s.loss.overwritten {
		// SQLite would write its WAL into the other content, now or at the next start.
		_ = os.Truncate(s.files.path+walSuffix, 0)
	}
	if err := errors.Join(err, s.closeFiles()); err != nil {
		return fmt.Errorf("close the log: %w", err)
	}
	return nil
}

// closeFiles releases the lock last, when nothing writes any more.
func (s *SQLite) closeFiles() error {
	var errs []error
	for _, db := range []*sql.DB{s.reads, s.write, s.anchor} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	return errors.Join(append(errs, s.lockFile.close())...)
}

// pruneLoop prunes each minute.
func (s *SQLite) pruneLoop(ctx context.Context) {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := s.prune(ctx); err != nil && !errors.Is(err, context.Canceled) {
			s.cfg.Logger.Warn("could not prune the log", "error", err)
		}
	}
}

// prune removes old rows of the commit feed and ids older than IDWindow.
func (s *SQLite) prune(ctx context.Context) error {
	for _, job := range []struct {
		name, sql string
		kept      time.Duration
	}{{"prune_commits", sqlitePruneCommits, feedRetention}, {"prune_ids", sqlitePruneIDs, s.cfg.IDWindow}} {
		for full := true; full; {
			began := time.Now()
			n, err := s.pruneOnce(ctx, job.sql, s.cutoff(job.kept))
			s.m.observe(job.name, began)
			if err != nil {
				return fmt.Errorf("%s: %w", job.name, err)
			}
			full = n == pruneRows
		}
	}
	return nil
}

// cutoff returns the time before which everything has been stored for longer than
// kept.
func (s *SQLite) cutoff(kept time.Duration) time.Time {
	s.clock.observe(time.Now())
	return s.clock.cutoff(kept)
}

// The statements of prune take the time before which rows are removed, in µs
// since 1970, and the bound in rows.
const (
	sqlitePruneCommits = `DELETE FROM commits WHERE id IN (
		SELECT id FROM (SELECT id, at FROM commits ORDER BY id LIMIT ?2) WHERE at < ?1)`
	sqlitePruneIDs = `DELETE FROM message_ids WHERE (room_id, sender, id) IN (
		SELECT room_id, sender, id FROM message_ids WHERE at < ?1 ORDER BY at LIMIT ?2)`
)

// pruneOnce removes at most pruneRows rows and returns how many. It occupies the
// one connection that writes, so its transaction is small.
func (s *SQLite) pruneOnce(ctx context.Context, query string, before time.Time) (int64, error) {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return 0, err
	}
	defer func() { _ = tx.Rollback() }() // no-op after the commit
	if s.lostFile.Load() != nil {
		return 0, nil // until the file is back
	}
	done, err := tx.ExecContext(ctx, query, before.UnixMicro(), pruneRows)
	if err != nil {
		return 0, err
	}
	n, err := done.RowsAffected()
	if err != nil {
		return 0, err
	}
	// sqlite_sequence has the highest id even when no row is left.
	_, err = tx.ExecContext(ctx, `UPDATE meta SET feed_floor = max(feed_floor, coalesce(
		(SELECT min(id) FROM commits), (SELECT seq + 1 FROM sqlite_sequence WHERE name = 'commits'), 1))`)
	if err != nil {
		return 0, err
	}
	return n, tx.Commit()
}

// migrateSQLite holds the lock of the file, so that no other process writes.
func migrateSQLite(ctx context.Context, path string) error {
	if path == "" {
		return &operatorError{"DATABASE_URL is malformed: it must look like sqlite:switchyard.db"}
	}
	lock, err := lockSQLite(path)
	if err != nil {
		return err
	}
	_, _ = restrictFiles(lock.path) // OpenSQLite warns
	db, err := sql.Open("sqlite", sqliteURI(lock.path, "_txlock=immediate"))
	if err != nil {
		return errors.Join(fmt.Errorf("migrate: %w", err), lock.close())
	}
	return errors.Join(migrate(ctx, db, goose.DialectSQLite3, "sqlite"), db.Close(), lock.close())
}
