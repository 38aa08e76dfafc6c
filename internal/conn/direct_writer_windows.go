package conn

import "net"

// init leaves all writes to writeLoop: the sockets of the standard library are for
// overlapped I/O on Windows, which has no write that never blocks.
func (w *directWriter) init(net.Conn) {}

// unacked is not known here.
func (w *directWriter) unacked() int { return 0 }
