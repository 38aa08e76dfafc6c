//go:build !linux

package http

import "syscall"

// sendNow makes one attempt to write: the sockets of the standard library do
// not block.
func sendNow(fd uintptr, p []byte) (int, error) { return syscall.Write(int(fd), p) }
