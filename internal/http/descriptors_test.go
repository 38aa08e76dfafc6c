package http

import (
	"log/slog"
	"net"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"switchyard/internal/admission"
)

func TestDescriptorsAreDivided(t *testing.T) {
	for name, tt := range map[string]struct {
		descriptors, wanted int
		want                connectionBudget
	}{
		"no limit":                  {0, 15000, connectionBudget{15000, admission.MaxRejecting, admission.MaxHTTPConns}},
		"enough":                    {65000, 15000, connectionBudget{15000, admission.MaxRejecting, admission.MaxHTTPConns}},
		"the documented 1,000 less": {15870, 15000, connectionBudget{15000, 217, 653}},
		"an eighth for the others":  {1000, 15000, connectionBudget{875, 31, 94}},
		"at most 512 of them":       {10000, 15000, connectionBudget{9488, 128, 384}},
		"few":                       {64, 15000, connectionBudget{56, 2, 6}},
		"nearly none":               {4, 15000, connectionBudget{1, 2, 6}},
	} {
		got := divide(tt.descriptors, tt.wanted, admission.MaxRejecting)
		if got != tt.want {
			t.Errorf("%s: %+v, want %+v", name, got, tt.want)
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
	l := newListener(&emptyListener{accepted: []net.Conn{nil, conn}}, slog.New(slog.DiscardHandler), failed)
	defer l.release()
	got, err := l.Accept()
	if err != nil || got != conn {
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
		l := newListener(&emptyListener{accepted: accepted}, slog.New(slog.DiscardHandler), failed)
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
