package store

import (
	"os"
	"syscall"
)

// lockDatabaseFile locks a SQLite database for this open file, without waiting.
// The lock is on one byte far behind any content: unlike the lock of a whole
// file, it is in the way neither of SQLite's own locks, which are at 1 GiB, nor
// of reads, also on network file systems that map locks to those of a server.
func lockDatabaseFile(f *os.File) error { return setDatabaseLock(f, syscall.F_WRLCK) }

func unlockDatabaseFile(f *os.File) error { return setDatabaseLock(f, syscall.F_UNLCK) }

func setDatabaseLock(f *os.File, kind int16) error {
	const setOFDLock = 37 // F_OFD_SETLK of fcntl(2): the lock belongs to the open file, not to the process
	return syscall.FcntlFlock(f.Fd(), setOFDLock, &syscall.Flock_t{Type: kind, Start: 1 << 62, Len: 1})
}
