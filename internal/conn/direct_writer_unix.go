//go:build unix

package conn

import "net"

// init makes tryWrite possible on a TCP connection.
func (w *directWriter) init(inner net.Conn) {
	if tcp, ok := inner.(*net.TCPConn); ok {
		w.raw, _ = tcp.SyscallConn() // nil after an error
	}
	w.attempt = func(fd uintptr) bool {
		w.n, w.err = sendNow(fd, w.buf)
		return true // done: do not wait until the socket is writable
	}
}

// LimitBuffers bounds what the kernel keeps for a TCP connection. It is called for each that
// is accepted: WebSockets, and others whose answers nobody may read.
func LimitBuffers(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		if raw, err := tcp.SyscallConn(); err == nil {
			limitBuffers(raw)
		}
	}
}

// taken returns how many bytes the client has acknowledged; known is false where the system
// does not say.
func (w *directWriter) taken() (n uint64, known bool) {
	if w.raw != nil {
		_ = w.raw.Control(func(fd uintptr) { n, known = ackedBytes(fd) }) // an error leaves false
	}
	return n, known
}

// unacked returns how many bytes the socket has accepted and the client has not
// acknowledged; 0 if that is not known.
func (w *directWriter) unacked() (n int) {
	if w.raw != nil {
		_ = w.raw.Control(func(fd uintptr) { n = unackedBytes(fd) }) // an error leaves 0
	}
	return n
}
