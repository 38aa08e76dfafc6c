package conn

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// unsentLimit is how many bytes of a client that takes nothing the kernel keeps, beside
// those that are on their way. What is over it waits in the queue, where it is bounded and
// counted. A client at any distance gets what its connection carries.
const unsentLimit = 32 << 10

// receiveBuffer is how many bytes of a client that is not read the kernel keeps, of which it
// uses half for itself (SO_RCVBUF of socket(7)): it would keep megabytes. That is enough for
// twice RATE_BYTES at 100 ms from here.
const receiveBuffer = 256 << 10

// limitBuffers sets both limits (also TCP_NOTSENT_LOWAT of tcp(7)). An error leaves the
// system's.
func limitBuffers(raw syscall.RawConn) {
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer/2) // it is doubled
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentLimit)
	})
}

// ackedBytes returns how many bytes the peer has acknowledged since the connection began
// (tcpi_bytes_acked of linux/tcp.h, since Linux 4.1).
func ackedBytes(fd uintptr) (n uint64, known bool) {
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil || info.Bytes_acked == 0 { // not even the handshake: some sandboxes do not count
		return 0, false
	}
	return info.Bytes_acked, true
}
