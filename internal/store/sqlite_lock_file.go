package store

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
)

// A lockFile lies beside a SQLite database, at its path + ".lock". It is the
// lock that keeps a second process out, and it remembers how far the database
// had come: a database that is behind it, or that it does not know, was
// restored or copied, and what clients remember of it counts no more. The
// inode is part of it, since a backup of the folder brings both files back.
// File systems may give a freed inode again: whoever restores a whole folder
// had better leave this file out.
//
// It is written after each commit and not flushed: after a power failure it
// may be behind the database, which is harmless.
type lockFile struct {
	file *os.File
	path string // of the database

	mu      sync.Mutex
	commits int64 // highest that advance has written; protected by mu
}

// A databaseState is what the side file remembers.
type databaseState struct {
	databaseID string
	commits    int64
	inode      uint64
}

// Of one length whatever the values, so that a write replaces all of the last.
const databaseStateFormat = "%16s %020d %020d\n"

// lockSQLite takes the lock of the database at path, or refuses.
func lockSQLite(path string) (*lockFile, error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return nil, &operatorError{fmt.Sprintf("DATABASE_URL (sqlite:%s) leads to a folder or a device: name a file", path)}
	}
	f, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, &operatorError{fmt.Sprintf("the folder of DATABASE_URL (sqlite:%s) cannot be written: %v", path, err)}
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, &operatorError{fmt.Sprintf("another process uses the file of DATABASE_URL (sqlite:%s): stop it, "+
			"or set DATABASE_URL to postgres://… to run several", path)}
	}
	return &lockFile{file: f, path: path}, nil
}

// read returns the zero mark when there is none that can be read.
func (f *lockFile) read() databaseState {
	var state databaseState
	buf := make([]byte, 128)
	n, _ := f.file.ReadAt(buf, 0)
	if _, err := fmt.Sscanf(string(buf[:n]), "%s %d %d\n", &state.databaseID, &state.commits, &state.inode); err != nil {
		return databaseState{}
	}
	return state
}

// write replaces the mark in place: it always has the same length.
func (f *lockFile) write(state databaseState) error {
	if _, err := f.file.WriteAt(fmt.Appendf(nil, databaseStateFormat, state.databaseID, state.commits, state.inode), 0); err != nil {
		return fmt.Errorf("write %s: %w", f.file.Name(), err)
	}
	return nil
}

// recordCommit writes the mark of a commit, unless that of a later one is there: the
// lane and the unit commit one after the other, but come here in any order.
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

// inode of the database file.
func (f *lockFile) inode() (uint64, error) {
	info, err := os.Stat(f.path)
	if err != nil {
		return 0, fmt.Errorf("look at the database file: %w", err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, errors.New("the file system has no inodes")
	}
	return stat.Ino, nil
}

func (f *lockFile) close() error { return f.file.Close() }

// sqliteURI returns the driver's name for a database. synchronous=FULL flushes
// the WAL at each commit: without it an acked message may be lost. Journal,
// sync mode and timeout belong to a connection, hence to its name.
func sqliteURI(path, mode, more string) string {
	escaped := strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23").Replace(path)
	return "file:" + escaped + "?mode=" + mode + "&_pragma=busy_timeout(2000)&_pragma=journal_mode(WAL)" +
		"&_pragma=synchronous(FULL)&" + more
}
