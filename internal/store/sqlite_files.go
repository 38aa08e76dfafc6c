package store

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"switchyard/internal/message"
)

// This file guards the files of a SQLite database. When one of them is renamed,
// removed or replaced while the service runs, SQLite notices nothing: it goes on
// writing to files that nobody will find again. watchFilesLoop notices it, stops
// all writes, and saves what was committed through the files that are still open.

// The names of the files of a database, behind its path.
const (
	walSuffix  = "-wal"
	shmSuffix  = "-shm"
	lockSuffix = ".lock"
	// savedSuffix begins the name of a copy that save has made.
	savedSuffix = ".saved-"
)

// The database comes first: of several lost files it is the one to name.
var sqliteFileSuffixes = []string{"", walSuffix, shmSuffix, lockSuffix}

const (
	// watchFilesEvery is how often the files are looked for.
	watchFilesEvery = 250 * time.Millisecond
	// saveAgainEvery is how long save waits after it has failed.
	saveAgainEvery = 10 * time.Second
)

// A lostFileError says which file of the database is not in its place. Nothing
// was stored.
type lostFileError struct {
	what string
	// replaced: another file is at the database's path.
	replaced bool
}

func (e *lostFileError) Error() string { return "the log cannot be written: " + e.what }

// Unwrap returns message.ErrUnavailable, which is what publishers get.
func (e *lostFileError) Unwrap() error { return message.ErrUnavailable }

// sqliteFiles are the files of an open database. One goroutine at a time uses
// it.
type sqliteFiles struct {
	path     string
	database *os.File
	opened   map[string]os.FileInfo // by suffix, as they were opened
	counter  uint32                 // the database's change counter
	suspect  bool                   // the last look found another header
}

// newSQLiteFiles opens the connection of anchor, which keeps the files of the
// database the same until it is closed: SQLite removes the -wal and -shm files
// with the last connection. It remembers which files they are.
func newSQLiteFiles(ctx context.Context, anchor *sql.DB, lock *lockFile) (*sqliteFiles, error) {
	if _, err := anchor.ExecContext(ctx, `SELECT 1 FROM meta`); err != nil {
		return nil, fmt.Errorf("open the database: %w", err)
	}
	f := &sqliteFiles{path: lock.path, database: lock.database, opened: map[string]os.FileInfo{}}
	for _, suffix := range sqliteFileSuffixes {
		info, err := os.Stat(f.path + suffix)
		if err != nil {
			return nil, fmt.Errorf("find the files of the database: %w", err)
		}
		f.opened[suffix] = info
	}
	f.overwritten() // reads the counter
	return f, nil
}

// A fileLoss is what has happened to the files of a database.
type fileLoss struct {
	err *lostFileError
	// moved: the database is not at its path. overwritten: the file at its path
	// has another content, and commits that are only in the WAL do not fit it.
	moved, overwritten bool
}

// needsCopy reports whether the file at the database's path is not the database.
func (l fileLoss) needsCopy() bool { return l.moved || l.overwritten }

// check looks for the files. The result's err is nil if all are in their places.
func (f *sqliteFiles) check() (loss fileLoss) {
	for _, suffix := range sqliteFileSuffixes {
		info, err := os.Stat(f.path + suffix)
		var what string
		switch {
		case errors.Is(err, fs.ErrNotExist):
			what = "was removed or renamed"
		case err != nil:
			what = fmt.Sprintf("cannot be found (%v)", err)
		case !os.SameFile(info, f.opened[suffix]):
			what = "was replaced by another file"
		case suffix == "" && f.overwritten():
			what, loss.overwritten = "was overwritten", true
		default:
			continue
		}
		if loss.err == nil {
			loss.moved = suffix == "" && !loss.overwritten
			loss.err = &lostFileError{what: fmt.Sprintf("%s%s %s while the service ran", f.path, suffix, what), replaced: loss.moved && err == nil}
		}
	}
	return loss
}

// overwritten reports whether another program has written another content into
// the database file, such as an older copy: then there is no header of SQLite, or
// its change counter (sqlite.org/fileformat.html) is lower. It must be so twice
// in a row, since SQLite may be writing the header.
func (f *sqliteFiles) overwritten() bool {
	const magic = "SQLite format 3\x00"
	header := make([]byte, 28)
	n, _ := f.database.ReadAt(header, 0) // a short header is judged below
	counter := binary.BigEndian.Uint32(header[24:])
	if n == len(header) && strings.HasPrefix(string(header), magic) && counter >= f.counter {
		f.counter, f.suspect = counter, false
		return false
	}
	if !f.suspect {
		f.suspect = true
		return false
	}
	f.counter = math.MaxUint32 // for good: no later header makes it the same file again
	return true
}

// watchFilesLoop looks for the files until ctx ends.
func (s *SQLite) watchFilesLoop(ctx context.Context) {
	tick := time.NewTicker(watchFilesEvery)
	defer tick.Stop()
	var again time.Time // when save may be tried again
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			s.checkFiles()
			if s.lostFile.Load() == nil || s.saved || now.Before(again) {
				continue
			}
			if err := s.save(ctx); err != nil && ctx.Err() == nil {
				s.cfg.Logger.Error("could not save what the log has committed; trying again", "error", err)
				again = now.Add(saveAgainEvery)
			}
		}
	}
}

// checkFiles sets lostFile, and logs its beginning and its end. It is logged
// again if only another file was lost before, and now the database is.
func (s *SQLite) checkFiles() {
	loss, before := s.files.check(), s.loss
	s.loss = loss
	s.lostFile.Store(loss.err)
	switch {
	case loss.err != nil && (before.err == nil || loss.needsCopy() && !before.needsCopy()):
		s.saved, s.saveTo = false, ""
		path := s.files.path
		remedy := fmt.Sprintf("all messages are in %s: stop the service, remove %[1]s%s if it exists, and start again", path, walSuffix)
		if loss.needsCopy() {
			s.saveTo = path + savedSuffix + time.Now().UTC().Format("20060102T150405Z")
			remedy = fmt.Sprintf("all messages are being saved to %s: stop the service, rename that file to %s, and start again", s.saveTo, path)
		}
		s.cfg.Logger.Error("a file of the log was moved beneath the service; publishes are refused", "error", loss.err.what, "remedy", remedy)
	case loss.err == nil && before.err != nil:
		// A reader that connected meanwhile may have opened another file.
		s.reads.SetMaxIdleConns(0)
		s.reads.SetMaxIdleConns(sqliteIdleReaders)
		s.cfg.Logger.Info("the files of the log are in their places again")
	}
}

// save makes sure that what was committed is in a file that will be found: in
// the database itself, or in a copy if that is not at its path. It uses the one
// connection that writes, so no commit is under way, and no later one succeeds.
//
// It also leaves no WAL behind, which SQLite would write into whatever file is at
// the database's path at the next start.
func (s *SQLite) save(ctx context.Context) error {
	var checkpoint error
	if !s.loss.overwritten {
		// This writes the WAL into the database file, wherever that is now.
		var busy, frames, written int
		checkpoint = s.write.QueryRowContext(ctx, `PRAGMA wal_checkpoint(TRUNCATE)`).Scan(&busy, &frames, &written)
		if checkpoint == nil && busy != 0 {
			checkpoint = errors.New("another program is reading the database")
		}
	}
	if s.saveTo != "" {
		if err := s.copyTo(ctx, s.saveTo); err != nil {
			return err
		}
		s.cfg.Logger.Info("all messages are saved", "file", s.saveTo)
		s.saveTo = "" // once
	}
	if checkpoint != nil {
		return fmt.Errorf("write the WAL into the database: %w", checkpoint)
	}
	s.saved = true
	return nil
}

// copyTo copies the database, as its open connection sees it, into a new file.
func (s *SQLite) copyTo(ctx context.Context, path string) (err error) {
	// The folder may be gone, too.
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("copy the database: %w", err)
	}
	// Created here, because SQLite would make it readable by others.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, sqliteMode)
	if err != nil {
		return fmt.Errorf("copy the database: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := s.write.ExecContext(ctx, `VACUUM INTO ?`, path); err != nil {
		return fmt.Errorf("copy the database to %s: %w", path, err)
	}
	return checkCopy(ctx, path, f)
}

// checkCopy flushes a copy and checks that it is sound: that of a database that
// was overwritten may not be.
func checkCopy(ctx context.Context, path string, f *os.File) error {
	if err := f.Sync(); err != nil {
		return fmt.Errorf("flush %s: %w", path, err)
	}
	db, err := sql.Open("sqlite", "file:"+escapePath(path)+"?mode=ro&immutable=1")
	if err != nil {
		return fmt.Errorf("check %s: %w", path, err)
	}
	var found string
	err = db.QueryRowContext(ctx, `PRAGMA quick_check(1)`).Scan(&found)
	if err == nil && found != "ok" {
		err = errors.New(found)
	}
	if err := errors.Join(err, db.Close()); err != nil {
		return fmt.Errorf("check %s: %w", path, err)
	}
	return nil
}

// savedCopies returns the copies of a database that save has made, oldest
// first.
func savedCopies(path string) []string {
	entries, _ := os.ReadDir(filepath.Dir(path)) // an unreadable folder has none that can be used
	var saved []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), filepath.Base(path)+savedSuffix) {
			saved = append(saved, filepath.Join(filepath.Dir(path), e.Name()))
		}
	}
	slices.Sort(saved)
	return saved
}

// restrictFiles takes the files of a database from other users, and reports
// whether they could use one. The mode of a file that only its owner or group
// may use stays: the operator has chosen it.
func restrictFiles(path string) (restricted bool, err error) {
	const others = 0o007
	for _, suffix := range sqliteFileSuffixes {
		info, err := os.Stat(path + suffix)
		if err != nil || info.Mode()&others == 0 {
			continue // nothing to restrict
		}
		if err := os.Chmod(path+suffix, sqliteMode); err != nil {
			return restricted, fmt.Errorf("take %s%s from other users: %w", path, suffix, err)
		}
		restricted = true
	}
	return restricted, nil
}
