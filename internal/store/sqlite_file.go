package store

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
)

// A sideFile lies beside a SQLite database, at its path + ".lock". It is the
// lock that keeps a second process out, and it remembers how far the database
// had come: a database that is behind it, or that it does not know, was
// restored or copied, and what clients remember of it counts no more. The
// inode is part of it, since a backup of the folder brings both files back.
// File systems may give a freed inode again: whoever restores a whole folder
// had better leave this file out.
//
// It is written after each commit and not flushed: after a power failure it
// may be behind the database, which is harmless.
type sideFile struct {
	file *os.File
	path string // of the database

	mu      sync.Mutex
	commits int64 // highest that advance has written; protected by mu
}

// A mark is what the side file remembers.
type mark struct {
	identity string
	commits  int64
	inode    uint64
}

// Of one length whatever the values, so that a write replaces all of the last.
const markFormat = "%16s %020d %020d\n"

// lockSQLite takes the lock of the database at path, or refuses.
func lockSQLite(path string) (*sideFile, error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return nil, &refusal{fmt.Sprintf("DATABASE_URL (sqlite:%s) leads to a folder or a device: name a file", path)}
	}
	f, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, &refusal{fmt.Sprintf("the folder of DATABASE_URL (sqlite:%s) cannot be written: %v", path, err)}
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, &refusal{fmt.Sprintf("another process uses the file of DATABASE_URL (sqlite:%s): stop it, "+
			"or set DATABASE_URL to postgres://… to run several", path)}
	}
	return &sideFile{file: f, path: path}, nil
}

// read returns the zero mark when there is none that can be read.
func (s *sideFile) read() mark {
	var m mark
	buf := make([]byte, 128)
	n, _ := s.file.ReadAt(buf, 0)
	if _, err := fmt.Sscanf(string(buf[:n]), "%s %d %d\n", &m.identity, &m.commits, &m.inode); err != nil {
		return mark{}
	}
	return m
}

// write replaces the mark in place: it always has the same length.
func (s *sideFile) write(m mark) error {
	if _, err := s.file.WriteAt(fmt.Appendf(nil, markFormat, m.identity, m.commits, m.inode), 0); err != nil {
		return fmt.Errorf("write %s: %w", s.file.Name(), err)
	}
	return nil
}

// advance writes the mark of a commit, unless that of a later one is there: the
// lane and the unit commit one after the other, but come here in any order.
func (s *sideFile) advance(m mark) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.commits <= s.commits {
		return nil
	}
	if err := s.write(m); err != nil {
		return err
	}
	s.commits = m.commits
	return nil
}

// inode of the database file.
func (s *sideFile) inode() (uint64, error) {
	info, err := os.Stat(s.path)
	if err != nil {
		return 0, fmt.Errorf("look at the database file: %w", err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, errors.New("the file system has no inodes")
	}
	return stat.Ino, nil
}

func (s *sideFile) close() error { return s.file.Close() }

// sqliteURI returns the driver's name for a database. synchronous=FULL flushes
// the WAL at each commit: without it an acked message may be lost. Journal,
// sync mode and timeout belong to a connection, hence to its name.
func sqliteURI(path, mode, more string) string {
	escaped := strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23").Replace(path)
	return "file:" + escaped + "?mode=" + mode + "&_pragma=busy_timeout(2000)&_pragma=journal_mode(WAL)" +
		"&_pragma=synchronous(FULL)&" + more
}
