package http

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"
)

// maxHeaderLines bounds the lines of a request's header. net/http bounds its bytes alone, and
// ten thousand short lines take a megabyte.
const maxHeaderLines = 256

// refusedHeaderTimeout bounds the time for the answer to a header with more.
const refusedHeaderTimeout = 500 * time.Millisecond

// A headerGuard is an accepted connection that ends when a header has too many lines. What is
// read of the next request together with the end of the last one is not counted.
type headerGuard struct {
	net.Conn
	refused func()
	// inHeader means that what is read belongs to a header. The server sets it between two
	// requests.
	inHeader atomic.Bool
	lines    int // of this header; it belongs to the reader, like length
	length   int // of the present line
}

func newHeaderGuard(c net.Conn, refused func()) *headerGuard {
	g := &headerGuard{Conn: c, refused: refused}
	g.inHeader.Store(true)
	return g
}

// Read implements net.Conn.
func (g *headerGuard) Read(p []byte) (int, error) {
	n, err := g.Conn.Read(p)
	if g.inHeader.Load() && !g.count(p[:n]) {
		g.refuse()
		return 0, io.EOF // net/http closes the connection
	}
	return n, err
}

// refuse answers as net/http answers a header of too many bytes, and reads on for a moment:
// with bytes unread the close would be a reset, which the answer does not survive.
func (g *headerGuard) refuse() {
	g.refused()
	_ = g.SetDeadline(time.Now().Add(refusedHeaderTimeout))
	_, _ = io.WriteString(g.Conn, "HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
	_ = g.CloseWrite()
	_, _ = io.CopyN(io.Discard, g.Conn, headerBytes)
}

// count counts the lines of a header up to its end, and returns false if there are too many.
func (g *headerGuard) count(p []byte) bool {
	for _, c := range p {
		switch {
		case c == '\n' && g.length == 0:
			few := g.lines <= maxHeaderLines
			g.lines = 0
			g.inHeader.Store(false)
			return few
		case c == '\n':
			g.lines, g.length = g.lines+1, 0
		case c != '\r':
			g.length++
		}
	}
	return g.lines <= maxHeaderLines
}

// CloseWrite implements what net/http asks for to let a client read the last answer.
func (g *headerGuard) CloseWrite() error {
	if c, ok := g.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return errors.ErrUnsupported
}
