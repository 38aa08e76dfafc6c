package store

import (
	"fmt"
	"os"

	"golang.org/x/sys/windows"
)

// farByte is one byte far behind the content of any file: on Windows a lock keeps others
// from reading what it covers.
func farByte() *windows.Overlapped { return &windows.Overlapped{OffsetHigh: 1 << 30} }

// tryLock locks an open file, or fails at once if another process has locked it. The
// lock ends with unlock, at the latest with the process.
func tryLock(f *os.File) error {
	return windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, farByte())
}

func unlock(f *os.File) error {
	return windows.UnlockFileEx(windows.Handle(f.Fd()), 0, 1, 0, farByte())
}

// lockDatabaseFile locks a SQLite database for this open file, without waiting. It does
// not meet SQLite's own locks, which are at 1 GiB.
func lockDatabaseFile(f *os.File) error { return tryLock(f) }

func unlockDatabaseFile(f *os.File) error { return unlock(f) }

// identify returns the number of an open file in its file system, which Windows calls its
// index, and how many names it has there.
func identify(f *os.File) (index, names uint64, err error) {
	var info windows.ByHandleFileInformation
	if err := windows.GetFileInformationByHandle(windows.Handle(f.Fd()), &info); err != nil {
		return 0, 0, fmt.Errorf("find the index of the database's file: %w", err)
	}
	return uint64(info.FileIndexHigh)<<32 | uint64(info.FileIndexLow), uint64(info.NumberOfLinks), nil
}
