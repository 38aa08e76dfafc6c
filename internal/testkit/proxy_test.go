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

func TestProxyForwardsAndCuts(t *testing.T) {
	p := NewProxy(t, echoServer(t))
	conn := dialProxy(t, p)
	mustEcho(t, conn)
	if p.Connections() != 1 {
		t.Errorf("%d connections", p.Connections())
	}
	p.Cut()
	if p.FaultCounts() != (FaultCounts{Cut: 1}) {
		t.Errorf("harm %+v", p.FaultCounts())
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
	for deadline := time.Now().Add(10 * time.Second); p.FaultCounts() != (FaultCounts{Stalled: 2}); {
		if time.Now().After(deadline) {
			t.Fatalf("harm %+v", p.FaultCounts())
		}
		<-time.After(time.Millisecond)
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

// What is torn arrives in part, and then ends.
func TestProxyTruncatesAChunk(t *testing.T) {
	p := NewProxy(t, echoServer(t))
	conn := dialProxy(t, p)
	mustEcho(t, conn) // a byte there and a byte back
	p.TruncateAfter(5)
	if _, err := conn.Write([]byte("four")); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != "f" {
		t.Errorf("came back %q, %v: want the first byte and the end", got, err)
	}
	if p.FaultCounts() != (FaultCounts{Truncated: 1}) {
		t.Errorf("harm %+v", p.FaultCounts())
	}
	mustEcho(t, dialProxy(t, p))
}

func TestProxyDropsAResponse(t *testing.T) {
	p := NewProxy(t, echoServer(t))
	asking, other := dialProxy(t, p), dialProxy(t, p)
	mustEcho(t, asking)
	mustEcho(t, other)
	dropped := p.DropResponse("work", "done", true)
	mustEcho(t, asking) // other answers pass
	if _, err := other.Write([]byte("done")); err != nil {
		t.Fatal(err)
	}
	_ = other.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadFull(other, make([]byte, 4)); err != nil { // it was not asked here
		t.Fatal(err)
	}
	if _, err := asking.Write([]byte("the work is done")); err != nil {
		t.Fatal(err)
	}
	<-dropped
	_ = asking.SetDeadline(time.Now().Add(10 * time.Second))
	if got, _ := io.ReadAll(asking); len(got) > 0 {
		t.Errorf("the client heard %q", got)
	}
	if _, err := echo(other, 10*time.Second); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("another connection: %v", err)
	}
	mustBeRefused(t, p)
	p.Refuse(false)
	mustEcho(t, dialProxy(t, p))
	if h := p.FaultCounts(); h.DroppedResponses != 1 || h.Refused != 1 {
		t.Errorf("harm %+v", h)
	}
}
