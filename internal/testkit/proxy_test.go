package testkit

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// echoServer answers with what it gets.
func echoServer(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer conn.Close(); _, _ = io.Copy(conn, conn) }()
		}
	}()
	return l.Addr().String()
}

func dialProxy(t *testing.T, p *Proxy) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// echo returns how long an answer took, at most limit.
func echo(conn net.Conn, limit time.Duration) (time.Duration, error) {
	start := time.Now()
	_ = conn.SetDeadline(start.Add(limit))
	if _, err := conn.Write([]byte("x")); err != nil {
		return 0, err
	}
	_, err := io.ReadFull(conn, make([]byte, 1))
	return time.Since(start), err
}

func mustEcho(t *testing.T, conn net.Conn) time.Duration {
	t.Helper()
	took, err := echo(conn, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	return took
}

func TestProxyPassesAndCuts(t *testing.T) {
	p := NewProxy(t, echoServer(t))
	conn := dialProxy(t, p)
	mustEcho(t, conn)
	if p.Connections() != 1 {
		t.Errorf("%d connections", p.Connections())
	}
	p.Cut()
	if _, err := echo(conn, 10*time.Second); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a cut connection: %v", err)
	}
	mustEcho(t, dialProxy(t, p))
	p.Refuse(true)
	refused, err := net.Dial("tcp", p.Addr()) // may be reset already
	if err == nil {
		defer refused.Close()
		_, err = echo(refused, 10*time.Second)
	}
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a refused connection: %v", err)
	}
}

func TestProxyStallsWithoutAWord(t *testing.T) {
	p := NewProxy(t, echoServer(t))
	old := dialProxy(t, p)
	mustEcho(t, old)
	p.Stall()
	for name, conn := range map[string]net.Conn{"old": old, "new": dialProxy(t, p)} {
		if _, err := echo(conn, 50*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the %s connection: %v, want silence", name, err)
		}
	}
	p.Resume()
	_ = old.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadFull(old, make([]byte, 1)); err != nil {
		t.Errorf("what was held back did not come: %v", err)
	}
}

func TestProxyDelays(t *testing.T) {
	p := NewProxy(t, echoServer(t))
	conn := dialProxy(t, p)
	p.Delay(30 * time.Millisecond)
	if took := mustEcho(t, conn); took < 60*time.Millisecond {
		t.Errorf("there and back took %v, want 2 times 30 ms", took)
	}
}

func TestProxyHalfCloses(t *testing.T) {
	p := NewProxy(t, echoServer(t))
	conn := dialProxy(t, p)
	mustEcho(t, conn)
	p.HalfClose()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("read: %v, want the end", err)
	}
	if _, err := conn.Write([]byte("still heard")); err != nil {
		t.Errorf("write: %v", err)
	}
}
