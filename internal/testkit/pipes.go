package testkit

import (
	"context"
	"net"
	"sync"
)

// A PipeListener is a net.Listener whose connections are pipes in this process, for
// bubbles of testing/synctest: their clock stands still while a goroutine waits for
// the kernel. Clients seem to be at 127.0.0.1.
type PipeListener struct {
	accepts chan net.Conn
	closed  chan struct{}
	once    sync.Once
}

// NewPipeListener returns a listener that waits for Dial.
func NewPipeListener() *PipeListener {
	return &PipeListener{accepts: make(chan net.Conn), closed: make(chan struct{})}
}

// Dial opens a connection. It has the form of http.Transport.DialContext, and ignores
// the address.
func (l *PipeListener) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case l.accepts <- loopbackConn{server}:
		return client, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Accept implements net.Listener.
func (l *PipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.accepts:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *PipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Closed returns a channel that Close closes.
func (l *PipeListener) Closed() <-chan struct{} { return l.closed }

// Addr implements net.Listener.
func (l *PipeListener) Addr() net.Addr { return loopbackAddr }

var loopbackAddr = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8000}

type loopbackConn struct{ net.Conn }

func (loopbackConn) RemoteAddr() net.Addr { return loopbackAddr }
