package conn

import "net"

// init leaves all writes to writeLoop: the sockets of the standard library are for
// overlapped I/O on Windows, which has no write that never blocks.
func (w *directWriter) init(net.Conn) {}

// taken is not known here.
func (w *directWriter) taken() (uint64, bool) { return 0, false }

// unacked is not known here.
func (w *directWriter) unacked() int { return 0 }

// LimitBuffers leaves the system's limits.
func LimitBuffers(net.Conn) {}
