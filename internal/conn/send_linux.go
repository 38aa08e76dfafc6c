//go:build !386

package conn

import (
	"syscall"
	"unsafe"
)

// sendNow makes one send(2) that never blocks. It bypasses the scheduler, which
// need not know about a call that can't block. With a normal system call the
// runtime's monitor would take the processor from a fan-out in the middle whenever
// the kernel does other work in that call. p is not empty.
func sendNow(fd uintptr, p []byte) (int, error) {
	n, _, errno := syscall.RawSyscall6(syscall.SYS_SENDTO, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)),
		syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// unackedBytes returns how many bytes wait in the socket for their acknowledgement
// (SIOCOUTQ of tcp(7)), 0 on an error.
func unackedBytes(fd uintptr) int {
	var n int32
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCOUTQ, uintptr(unsafe.Pointer(&n))); errno != 0 {
		return 0
	}
	return int(n)
}
