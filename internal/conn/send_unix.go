//go:build unix && (!linux || 386)

package conn

import "syscall"

// sendNow makes one write, which does not block: the sockets of the standard
// library are nonblocking. Linux on 386 is here because its system calls for sockets
// have another form.
func sendNow(fd uintptr, p []byte) (int, error) { return syscall.Write(int(fd), p) }

// unackedBytes is not known here.
func unackedBytes(uintptr) int { return 0 }
