package testkit

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// echoServer starts a TCP server that sends back what it receives, and returns its
// address.
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

// echo sends a byte and returns how long it took to come back, at most limit.
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

func TestProxyForwardsAndCuts(t *testing.T) {
	p := NewProxy(t, echoServer(t))
	conn := dialProxy(t, p)
	mustEcho(t, conn)
	if p.Connections() != 1 {
		t.Errorf("%d connections", p.Connections())
	}
	p.Cut()
	if p.FaultCounts() != (FaultCounts{Cut: 1}) {
		t.Errorf("faults %+v", p.FaultCounts())
	}
	if _, err := echo(conn, 10*time.Second); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a cut connection: %v", err)
	}
	mustEcho(t, dialProxy(t, p))
	p.Refuse(true)
	mustBeRefused(t, p)
}

func mustBeRefused(t *testing.T, p *Proxy) {
	t.Helper()
	conn, err := net.Dial("tcp", p.Addr()) // may be reset already
	if err == nil {
		defer conn.Close()
		_, err = echo(conn, 10*time.Second)
	}
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a refused connection: %v", err)
	}
}

func TestAStalledProxyForwardsNothing(t *testing.T) {
	p := NewProxy(t, echoServer(t))
	old := dialProxy(t, p)
	mustEcho(t, old)
	p.Stall()
	for name, conn := range map[string]net.Conn{"old": old, "new": dialProxy(t, p)} {
		if _, err := echo(conn, 50*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the %s connection: %v, want silence", name, err)
		}
	}
	Eventually(t, "two stalled chunks", func() bool { return p.FaultCounts() == (FaultCounts{Stalled: 2}) })
	p.Resume()
	_ = old.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadFull(old, make([]byte, 1)); err != nil {
		t.Errorf("a stalled byte did not arrive: %v", err)
	}
}

func TestProxyDelays(t *testing.T) {
	p := NewProxy(t, echoServer(t))
	conn := dialProxy(t, p)
	p.Delay(30 * time.Millisecond)
	if took := mustEcho(t, conn); took < 60*time.Millisecond {
		t.Errorf("the round trip took %v, want at least 2 times 30 ms", took)
	}
}

func TestProxyHalfCloses(t *testing.T) {
	p := NewProxy(t, echoServer(t))
	conn := dialProxy(t, p)
	mustEcho(t, conn)
	p.HalfClose()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("read: %v, want io.EOF", err)
	}
	if _, err := conn.Write([]byte("still sent")); err != nil {
		t.Errorf("write: %v", err)
	}
}

// The client receives a part of a truncated chunk, and then the end.
func TestProxyTruncatesAChunk(t *testing.T) {
	p := NewProxy(t, echoServer(t))
	conn := dialProxy(t, p)
	mustEcho(t, conn)
	p.TruncateAfter(5)
	if _, err := conn.Write([]byte("four")); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != "f" {
		t.Errorf("received %q, %v: want the first byte and the end", got, err)
	}
	if p.FaultCounts() != (FaultCounts{Truncated: 1}) {
		t.Errorf("faults %+v", p.FaultCounts())
	}
	mustEcho(t, dialProxy(t, p))
}

func TestProxyDropsAResponse(t *testing.T) {
	p := NewProxy(t, echoServer(t))
	requester, other := dialProxy(t, p), dialProxy(t, p)
	mustEcho(t, requester)
	mustEcho(t, other)
	dropped := p.DropResponse("work", "done", true)
	mustEcho(t, requester) // another response passes
	if _, err := other.Write([]byte("done")); err != nil {
		t.Fatal(err)
	}
	_ = other.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadFull(other, make([]byte, 4)); err != nil { // no request was on this connection
		t.Fatal(err)
	}
	if _, err := requester.Write([]byte("the work is done")); err != nil {
		t.Fatal(err)
	}
	<-dropped
	_ = requester.SetDeadline(time.Now().Add(10 * time.Second))
	if got, _ := io.ReadAll(requester); len(got) > 0 {
		t.Errorf("the client received %q", got)
	}
	if _, err := echo(other, 10*time.Second); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("another connection: %v", err)
	}
	mustBeRefused(t, p)
	p.Refuse(false)
	mustEcho(t, dialProxy(t, p))
	if c := p.FaultCounts(); c.DroppedResponses != 1 || c.Refused != 1 {
		t.Errorf("faults %+v", c)
	}
}
