package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// A lockFile lies beside a SQLite database, at the database's path + ".lock".
// Together with a lock on the database file itself, its lock keeps other
// processes out, by whatever name they reach the file. Its content records the
// state of the database. A database that is behind that record, or is a
// different one, was restored or copied, and needs a new epoch. The state
// includes the inode, since the backup of a folder restores both files. A file
// system may reuse a freed inode, so an operator who restores a whole folder
// should leave this file out.
//
// It is written after each commit and not flushed. After a power failure it may
// be behind the database, which is harmless.
type lockFile struct {
	file *os.File
	path string // of the database, without symbolic links
	// database is the database file, with a lock of its own. It is closed after
	// SQLite's connections: the close of any descriptor of a file releases all
	// POSIX locks that the process has on it, and those are SQLite's.
	database *os.File

	mu      sync.Mutex
	commits int64 // highest that recordCommit has written; protected by mu
}

// A databaseState is the content of a lock file.
type databaseState struct {
	databaseID string // meta.identity, which each epoch replaces
	commits    int64  // meta.commits, which counts the commits
	inode      uint64 // of the database file
}

// databaseStateFormat has one length for all values, so that a write replaces
// the previous one entirely.
const databaseStateFormat = "%16s %020d %020d\n"

// sqliteMode is the mode of a new database. SQLite gives it to the -wal and
// -shm files, too.
const sqliteMode = 0o600

// lockSQLite locks the database at path, and creates an empty file for it if
// there is none. It fails when another process has locked it.
func lockSQLite(path string) (*lockFile, error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return nil, &operatorError{fmt.Sprintf("DATABASE_URL (sqlite:%s) is a folder or a device: name a file", path)}
	}
	given := path
	path, err := realPath(path)
	if err != nil {
		return nil, &operatorError{fmt.Sprintf("the folder of DATABASE_URL (sqlite:%s) cannot be read: %v", given, err)}
	}
	f := &lockFile{path: path}
	if f.file, err = os.OpenFile(path+lockSuffix, os.O_CREATE|os.O_RDWR, sqliteMode); err != nil {
		return nil, &operatorError{fmt.Sprintf("the folder of DATABASE_URL (sqlite:%s) cannot be written: %v", given, err)}
	}
	if err := f.lock(given); err != nil {
		return nil, errors.Join(err, f.close())
	}
	return f, nil
}

// lock locks the lock file and then the database file, which it creates if
// there is none.
func (f *lockFile) lock(given string) error {
	used := &operatorError{fmt.Sprintf("another process uses the file of DATABASE_URL (sqlite:%s): stop it, "+
		"or set DATABASE_URL to postgres://… to run several", given)}
	if tryLock(f.file) != nil {
		return used
	}
	if _, err := os.Stat(f.path); errors.Is(err, fs.ErrNotExist) {
		if err := refuseToBeginEmpty(f.path); err != nil {
			return err
		}
	}
	var err error
	if f.database, err = os.OpenFile(f.path, os.O_CREATE|os.O_RDWR, sqliteMode); err != nil {
		return &operatorError{fmt.Sprintf("the file of DATABASE_URL (sqlite:%s) cannot be opened: %v", given, err)}
	}
	if lockDatabaseFile(f.database) != nil {
		return used
	}
	inode, names, err := identify(f.database)
	if err != nil {
		return err
	}
	// SQLite keeps the newest commits in a file beside the name under which the
	// database was opened. Under another name they would be missing, and a later
	// start under the first one would write them over newer ones.
	if names > 1 && f.read().inode != inode {
		return &operatorError{fmt.Sprintf("the file of DATABASE_URL (sqlite:%s) has a second name (a hard link), and was not used under this one: "+
			"name the other one, or remove it once the service has stopped", given)}
	}
	return nil
}

// realPath returns the absolute path of a file without symbolic links, also if
// a link leads to a file that does not exist yet.
func realPath(path string) (string, error) {
	for range 40 { // as many links as Linux follows
		target, err := os.Readlink(path)
		if err != nil {
			break // not a link
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(path), target)
		}
		path = target
	}
	folder, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return "", err
	}
	return filepath.Abs(filepath.Join(folder, filepath.Base(path)))
}

// refuseToBeginEmpty returns an error if there is no database at path, but a
// file that has its messages: one that was saved, or the WAL, which SQLite
// would remove.
func refuseToBeginEmpty(path string) error {
	if saved := savedCopies(path); len(saved) > 0 {
		return &operatorError{fmt.Sprintf("the file of DATABASE_URL (sqlite:%s) is missing, and %s has its messages: "+
			"rename it to %[1]s, or move it to another folder to begin with an empty log", path, saved[len(saved)-1])}
	}
	if info, err := os.Stat(path + walSuffix); err == nil && info.Size() > 0 {
		return &operatorError{fmt.Sprintf("the file of DATABASE_URL (sqlite:%s) is missing, and %[1]s%s has its newest messages: "+
			"put the file back, or move %[1]s%[2]s to another folder to begin with an empty log", path, walSuffix)}
	}
	return nil
}

// read returns the recorded state, or the zero state when none can be read.
func (f *lockFile) read() databaseState {
	var state databaseState
	buf := make([]byte, 128)
	n, _ := f.file.ReadAt(buf, 0)
	if _, err := fmt.Sscanf(string(buf[:n]), "%s %d %d\n", &state.databaseID, &state.commits, &state.inode); err != nil {
		return databaseState{}
	}
	return state
}

// write replaces the recorded state in place.
func (f *lockFile) write(state databaseState) error {
	if _, err := f.file.WriteAt(fmt.Appendf(nil, databaseStateFormat, state.databaseID, state.commits, state.inode), 0); err != nil {
		return fmt.Errorf("write %s: %w", f.file.Name(), err)
	}
	return nil
}

// recordCommit writes the state of a commit, unless the state of a later commit
// is recorded: the append worker and the atomic appender commit one after the
// other, but may call recordCommit in any order.
func (f *lockFile) recordCommit(state databaseState) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if state.commits <= f.commits {
		return nil
	}
	if err := f.write(state); err != nil {
		return err
	}
	f.commits = state.commits
	return nil
}

// close releases the locks. It unlocks each file before it closes it: a process that
// this one is starting has the files open for a moment, too.
func (f *lockFile) close() error {
	err := errors.Join(unlock(f.file), f.file.Close())
	if f.database != nil {
		err = errors.Join(err, unlockDatabaseFile(f.database), f.database.Close())
	}
	return err
}

// sqliteURI returns the URI of a database for the driver. synchronous=FULL
// flushes the WAL at each commit: without it a power failure may lose an acked
// message. Journal mode, synchronous and busy timeout are properties of a
// connection, so the URI sets them for each. The WAL grows while a reader, of this
// process or another one, reads an old state; journal_size_limit, in bytes, is what is
// left of it once it begins anew.
func sqliteURI(path, more string) string {
	return "file:" + escapePath(path) + "?mode=rw&_pragma=busy_timeout(2000)&_pragma=journal_mode(WAL)" +
		"&_pragma=synchronous(FULL)&_pragma=journal_size_limit(8388608)&" + more
}

func escapePath(path string) string {
	return strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23").Replace(path)
}
