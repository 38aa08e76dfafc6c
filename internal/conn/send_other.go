//go:build !linux

package conn

import "syscall"

// sendNow makes one write, which does not block: the sockets of the standard
// library are nonblocking.
func sendNow(fd uintptr, p []byte) (int, error) { return syscall.Write(int(fd), p) }
