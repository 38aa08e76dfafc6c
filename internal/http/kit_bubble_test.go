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

// dialRaw opens a connection to one of the node's addresses.
func (n *node) dialRaw(addr string) (net.Conn, error) {
	if l := n.pipes[addr]; l != nil {
		return l.Dial(context.Background(), "tcp", addr)
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
