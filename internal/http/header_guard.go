package http

import (
	"errors"
	"net"
	"sync/atomic"
)

// maxHeaderLines bounds the lines of a request's header. net/http bounds its bytes alone, and
// ten thousand short lines take a megabyte.
const maxHeaderLines = 256

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

var errTooManyHeaderLines = errors.New("a request's header has too many lines")

// Read implements net.Conn.
func (g *headerGuard) Read(p []byte) (int, error) {
	n, err := g.Conn.Read(p)
	if g.inHeader.Load() && !g.count(p[:n]) {
		g.refused()
		_ = g.Close()
		return 0, errTooManyHeaderLines
	}
	return n, err
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
