package http

import (
	"bufio"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"switchyard/internal/admission"
	"switchyard/internal/testkit"
)

func TestDescriptorsAreDivided(t *testing.T) {
	for name, tt := range map[string]struct {
		descriptors, wanted int
		want                connectionShares
	}{
		"no limit":                  {0, 15000, connectionShares{15000, admission.MaxRejecting, admission.MaxHTTPConns}},
		"enough":                    {65000, 15000, connectionShares{15000, admission.MaxRejecting, admission.MaxHTTPConns}},
		"the documented 1,000 less": {15870, 15000, connectionShares{15000, 217, 653}},
		"an eighth for the others":  {1000, 15000, connectionShares{875, 31, 94}},
		"at most 512 of them":       {10000, 15000, connectionShares{9488, 128, 384}},
		"few":                       {64, 15000, connectionShares{56, 2, 6}},
		"nearly none":               {4, 15000, connectionShares{1, 2, 6}},
	} {
		got := divide(tt.descriptors, tt.wanted, admission.MaxRejecting)
		if got != tt.want {
			t.Errorf("%s: %+v, want %+v", name, got, tt.want)
		}
	}
}

// openRequest sends the begin of a request and returns its connection.
func (n *node) openRequest(lines string) (net.Conn, *bufio.Reader) {
	n.t.Helper()
	c, err := net.Dial("tcp", n.addr)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(testkit.Timeout))
	if _, err := io.WriteString(c, lines); err != nil {
		n.t.Fatal(err)
	}
	return c, bufio.NewReader(c)
}

// However many connections are held open, by whomever, a user's request is answered, and
// where each of them has a request a probe is.
func TestConnectionsThatAreHeldOpenLockNobodyOut(t *testing.T) {
	n := startNode(t, func(c *Config) { c.Descriptors = 512 }) // 48 for plain connections, of them 6 in reserve
	const host = "Host: 127.0.0.1\r\n"
	var idle []*bufio.Reader
	for range 100 {
		_, r := n.openRequest("GET /healthz HTTP/1.1\r\n" + host + "\r\n")
		res, err := http.ReadResponse(r, nil)
		if err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("a request beside idle connections: %v %v", res, err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		idle = append(idle, r)
	}
	if _, err := idle[0].ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("the connection that was idle longest: %v, want it closed", err)
	}
	for range 42 {
		n.openRequest("POST /v1/rooms/a/messages HTTP/1.1\r\n" + host + "Authorization: Bearer " + testKey + "\r\nContent-Length: 10\r\n\r\n")
	}
	testkit.Eventually(t, "each connection to have a request", func() bool {
		status, body := n.rawGet("/", host)
		return status == http.StatusServiceUnavailable && strings.Contains(body, "can't serve another connection")
	})
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		if status, body := n.rawGet(path, host); status != http.StatusOK {
			t.Errorf("%s: %d %.100s", path, status, body)
		}
	}
}

// An emptyListener has no descriptor for the first connection.
type emptyListener struct {
	net.Listener
	accepted []net.Conn
}

func (l *emptyListener) Accept() (net.Conn, error) {
	conn := l.accepted[0]
	l.accepted = l.accepted[1:]
	if conn == nil {
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	return conn, nil
}

func (l *emptyListener) Addr() net.Addr { return &net.TCPAddr{} }

// A node whose descriptors had run out waits for a connection on the one in reserve. The
// connection that ends this wait is like any other if descriptors are free again by then.
func TestAConnectionAfterDescriptorsAreFreedIsNotOnTheReserve(t *testing.T) {
	t.Parallel()
	conn, other := net.Pipe()
	defer conn.Close()
	defer other.Close()
	failed := prometheus.NewCounter(prometheus.CounterOpts{Name: "failed"})
	l := newListener(&emptyListener{accepted: []net.Conn{nil, conn}}, slog.New(slog.DiscardHandler), failed, failed)
	defer l.release()
	got, err := l.Accept()
	if g, ok := got.(*headerGuard); err != nil || !ok || g.Conn != conn {
		t.Errorf("accepted %T, %v, want the connection itself", got, err)
	}
}

// A file took the descriptor at the moment at which the connection on the reserve gave it
// back, and was closed later: the next probe is accepted nevertheless.
func TestTheReserveOfDescriptorsIsTakenAgain(t *testing.T) {
	t.Parallel()
	conn, other := net.Pipe()
	defer conn.Close()
	defer other.Close()
	failed := prometheus.NewCounter(prometheus.CounterOpts{Name: "failed"})
	for name, accepted := range map[string][]net.Conn{"while none is free": {nil, nil, conn}, "when some are free": {conn, nil, conn}} {
		l := newListener(&emptyListener{accepted: accepted}, slog.New(slog.DiscardHandler), failed, failed)
		l.release()
		_, first := l.Accept()
		if accepted[0] == nil && first == nil {
			t.Errorf("%s: a connection without a descriptor was accepted", name)
		}
		if _, err := l.Accept(); err != nil {
			t.Errorf("%s: the next connection: %v", name, err)
		}
		l.release()
	}
}

// The last descriptor went to something else when it was given back. The next connection that
// is accepted has it, and is answered only if it is a probe's: a client would keep it.
func TestAConnectionOnTheLastDescriptorIsOnTheReserve(t *testing.T) {
	t.Parallel()
	conn, other := net.Pipe()
	defer conn.Close()
	defer other.Close()
	failed := prometheus.NewCounter(prometheus.CounterOpts{Name: "failed"})
	l := newListener(&emptyListener{accepted: []net.Conn{conn}}, slog.New(slog.DiscardHandler), failed, failed)
	l.release()
	l.open = func(string) (*os.File, error) { return nil, syscall.EMFILE }
	got, err := l.Accept()
	if _, reserved := got.(*reservedConn); err != nil || !reserved {
		t.Fatalf("accepted %T, %v, want one on the reserve", got, err)
	}
	l.open = os.Open
	_ = got.Close()
	if l.reserve == nil {
		t.Error("the reserve is not taken back")
	}
	l.release()
	// A system without the file that the reserve opens serves everybody without one.
	without := newListener(&emptyListener{accepted: []net.Conn{conn}}, slog.New(slog.DiscardHandler), failed, failed)
	without.release()
	without.open = func(string) (*os.File, error) { return nil, os.ErrNotExist }
	if got, err := without.Accept(); err != nil {
		t.Errorf("without a reserve: %v", err)
	} else if _, reserved := got.(*reservedConn); reserved {
		t.Error("without a reserve every connection is taken for one on it")
	}
}
