//go:build unix && !linux

package store

import "os"

// lockDatabaseFile locks a SQLite database for this open file, without waiting.
// It does not meet SQLite's own locks, which are of another kind.
func lockDatabaseFile(f *os.File) error { return tryLock(f) }

func unlockDatabaseFile(f *os.File) error { return unlock(f) }
