package store

import (
	"bytes"
	"io"
	"net"
	"os/exec"
	"sync"
	"testing"
)

// A cutter passes bytes on to a server. Armed, it cuts the connection on which
// the client commits: the server gets the COMMIT, the client no answer.
type cutter struct {
	l      net.Listener
	target string
	mu     sync.Mutex
	armed  bool
	cut    bool
	conns  sync.WaitGroup
}

func newCutter(t *testing.T, target string) *cutter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{l: l, target: target}
	c.conns.Go(c.acceptLoop)
	t.Cleanup(func() {
		_ = l.Close()
		c.conns.Wait()
	})
	return c
}

func (c *cutter) port() int { return c.l.Addr().(*net.TCPAddr).Port }

func (c *cutter) acceptLoop() {
	for {
		client, err := c.l.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", c.target)
		if err != nil {
			_ = client.Close()
			continue
		}
		c.conns.Go(func() {
			_, _ = io.Copy(server, client)
			_ = server.Close()
		})
		c.conns.Go(func() {
			_, _ = io.Copy(writerFunc(func(b []byte) (int, error) { return c.answer(client, b) }), server)
			_ = client.Close()
		})
	}
}

// answer drops the connection instead of telling that a COMMIT was done.
func (c *cutter) answer(client net.Conn, b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.armed && bytes.Contains(b, []byte("COMMIT\x00")) {
		c.armed, c.cut = false, true
		return 0, io.ErrClosedPipe
	}
	return client.Write(b)
}

func (c *cutter) cutAfter(t *testing.T) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.armed = true
}

func (c *cutter) hasCut() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cut
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// copyTree replaces a directory by a copy of another, owners and all.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	for _, args := range [][]string{{"rm", "-rf", to}, {"cp", "-a", from, to}} {
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
}
