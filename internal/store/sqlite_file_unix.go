//go:build unix

package store

import (
	"errors"
	"os"
	"syscall"
)

// tryLock locks an open file, or fails at once if another process has locked it. The
// lock ends when the file is closed, at the latest with the process.
func tryLock(f *os.File) error { return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) }

// inodeOf returns the number of a file in its file system.
func inodeOf(path string) (uint64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, errors.New("the file system has no inodes")
	}
	return stat.Ino, nil
}
