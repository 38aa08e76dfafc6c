//go:build unix

package store

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// tryLock locks an open file, or fails at once if another process has locked it. The
// lock ends with unlock, at the latest with the process.
func tryLock(f *os.File) error { return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) }

func unlock(f *os.File) error { return syscall.Flock(int(f.Fd()), syscall.LOCK_UN) }

// identify returns the number of an open file in its file system, and how many names it
// has there.
func identify(f *os.File) (inode, names uint64, err error) {
	info, err := f.Stat()
	if err != nil {
		return 0, 0, fmt.Errorf("find the inode of the database: %w", err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, errors.New("the file system has no inodes")
	}
	return stat.Ino, uint64(stat.Nlink), nil //nolint:unconvert // another type on other systems
}
