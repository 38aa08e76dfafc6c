package http

import (
	"syscall"
	"unsafe"
)

// sendNow makes one attempt to send, never waiting: a send(2) past the
// scheduler. The runtime is not told of the call, since it can't block; being
// told, its monitor takes the processor away from a fan-out in the middle of a
// turn, whenever the kernel uses the call to do other work. P is not empty.
func sendNow(fd uintptr, p []byte) (int, error) {
	n, _, errno := syscall.RawSyscall6(syscall.SYS_SENDTO, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)),
		syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
