package http

import (
	"context"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
)

// bubbles holds the testing.TB of each test that runs in a bubble.
var bubbles sync.Map

// inBubble runs f in a bubble of testing/synctest, in virtual time. A node that f
// starts listens in memory instead of on TCP, because a bubble's clock stands still
// while a goroutine waits for the kernel.
func inBubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		bubbles.Store(t, true)
		defer bubbles.Delete(t)
		f(t)
	})
}

// A memoryListener is a net.Listener without a kernel.
type memoryListener struct {
	accepts chan net.Conn
	closed  chan struct{}
	once    sync.Once
}

func newMemoryListener() *memoryListener {
	return &memoryListener{accepts: make(chan net.Conn), closed: make(chan struct{})}
}

// Accept implements net.Listener.
func (l *memoryListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.accepts:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *memoryListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr implements net.Listener.
func (l *memoryListener) Addr() net.Addr { return loopbackAddr }

var loopbackAddr = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8000}

func (l *memoryListener) dial() (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case l.accepts <- loopbackConn{server}:
		return client, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// A loopbackConn comes from 127.0.0.1.
type loopbackConn struct{ net.Conn }

func (loopbackConn) RemoteAddr() net.Addr { return loopbackAddr }

// dialRaw opens a connection to one of the node's addresses.
func (n *node) dialRaw(addr string) (net.Conn, error) {
	if l := n.memory[addr]; l != nil {
		return l.dial()
	}
	return net.Dial("tcp", addr)
}

// httpClient returns a client of the node's listeners. The caller has a connection
// for each call.
func (n *node) httpClient() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(_ context.Context, _, addr string) (net.Conn, error) { return n.dialRaw(addr) },
	}}
}
