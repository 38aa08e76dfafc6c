//go:build unix && !linux

package conn

import "syscall"

// limitBuffers leaves the system's limit.
func limitBuffers(syscall.RawConn) {}

// ackedBytes is not known here.
func ackedBytes(uintptr) (uint64, bool) { return 0, false }
