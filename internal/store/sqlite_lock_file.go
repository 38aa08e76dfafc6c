package store

import (
	"fmt"
	"os"
	"strings"
	"sync"
)

// A lockFile lies beside a SQLite database, at the database's path + ".lock".
// Its lock keeps other processes out. Its content records the state of the
// database. A database that is behind that record, or is a different one, was
// restored or copied, and needs a new epoch. The state includes the inode,
// since the backup of a folder restores both files. A file system may reuse a
// freed inode, so an operator who restores a whole folder should leave this
// file out.
//
// It is written after each commit and not flushed. After a power failure it may
// be behind the database, which is harmless.
type lockFile struct {
	file *os.File
	path string // of the database

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

// lockSQLite locks the database at path. It fails when another process has
// locked it.
func lockSQLite(path string) (*lockFile, error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return nil, &operatorError{fmt.Sprintf("DATABASE_URL (sqlite:%s) is a folder or a device: name a file", path)}
	}
	f, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, &operatorError{fmt.Sprintf("the folder of DATABASE_URL (sqlite:%s) cannot be written: %v", path, err)}
	}
	if err := tryLock(f); err != nil {
		_ = f.Close()
		return nil, &operatorError{fmt.Sprintf("another process uses the file of DATABASE_URL (sqlite:%s): stop it, "+
			"or set DATABASE_URL to postgres://… to run several", path)}
	}
	return &lockFile{file: f, path: path}, nil
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

// inode returns the inode of the database file.
func (f *lockFile) inode() (uint64, error) {
	inode, err := inodeOf(f.path)
	if err != nil {
		return 0, fmt.Errorf("find the inode of the database: %w", err)
	}
	return inode, nil
}

func (f *lockFile) close() error { return f.file.Close() }

// sqliteURI returns the URI of a database for the driver. synchronous=FULL
// flushes the WAL at each commit: without it a power failure may lose an acked
// message. Journal mode, synchronous and busy timeout are properties of a
// connection, so the URI sets them for each.
func sqliteURI(path, mode, more string) string {
	escaped := strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23").Replace(path)
	return "file:" + escaped + "?mode=" + mode + "&_pragma=busy_timeout(2000)&_pragma=journal_mode(WAL)" +
		"&_pragma=synchronous(FULL)&" + more
}
