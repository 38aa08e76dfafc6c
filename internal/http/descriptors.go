package http

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"switchyard/internal/admission"
	"switchyard/internal/conn"
	"switchyard/internal/protocol"
)

// maxOtherShare bounds the descriptors that are kept from WebSockets for other
// connections where there are not enough for all.
const maxOtherShare = 512

// acceptLogEvery is the least time between two log lines about connections that
// can't be accepted.
const acceptLogEvery = 10 * time.Second

// reservedTimeout bounds the wait for a request on the descriptor in reserve.
const reservedTimeout = time.Second

// A connectionShares is how many connections of each kind may be open at a time.
type connectionShares struct {
	webSockets int
	rejecting  int // WebSockets that are accepted only to be closed
	plain      int // connections that are no WebSocket
}

// divide divides descriptors among the kinds of connections. WebSockets get as many
// as are wanted if an eighth, up to maxOtherShare, is left for the others.
func divide(descriptors, wanted, rejecting int) connectionShares {
	others := rejecting + admission.MaxHTTPConns
	if descriptors <= 0 || descriptors-wanted >= others { // 0: unlimited
		return connectionShares{wanted, rejecting, admission.MaxHTTPConns}
	}
	others = max(descriptors-wanted, min(descriptors/8, maxOtherShare), 8)
	rejecting = min(rejecting, others/4)
	return connectionShares{max(1, min(wanted, descriptors-others)), rejecting, others - rejecting}
}

// A listener accepts connections as long as there is a descriptor, and then, with
// one that it keeps in reserve, one connection at a time, which is answered only if
// it is a probe's. It counts and logs what can't be accepted.
type listener struct {
	net.Listener
	log    *slog.Logger
	failed prometheus.Counter
	refuse func() // counts a connection that is ended
	open   func(name string) (*os.File, error)
	logNow rate.Sometimes

	mu      sync.Mutex // Protects following.
	reserve *os.File   // nil while its descriptor is in use
}

func newListener(l net.Listener, log *slog.Logger, failed, refused prometheus.Counter) *listener {
	own := &listener{Listener: l, log: log, failed: failed, refuse: refused.Inc, open: os.Open, logNow: rate.Sometimes{First: 1, Interval: acceptLogEvery}}
	own.restore()
	return own
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	accepted, err := l.Listener.Accept()
	if errors.Is(err, net.ErrClosed) {
		return nil, err
	}
	if err == nil {
		return l.admit(accepted), nil
	}
	l.failed.Inc()
	l.logNow.Do(func() {
		l.log.Warn("connections cannot be accepted; only probes are answered", "addr", l.Addr().String(), "error", err)
	})
	if !errors.Is(err, syscall.EMFILE) {
		return nil, err
	}
	if !l.release() {
		l.restore() // likewise; the next try can use it
		return nil, err
	}
	if accepted, err = l.Listener.Accept(); err != nil {
		l.restore()
		return nil, err
	}
	return l.admit(accepted), nil
}

// admit bounds what an accepted connection takes. It is on the descriptor in reserve if none
// is left for that one: the wait may have been long enough for another to become free, and
// something else may have taken the descriptor that an earlier connection gave back.
func (l *listener) admit(accepted net.Conn) net.Conn {
	conn.LimitBuffers(accepted)
	guarded := newHeaderGuard(accepted, l.refuse)
	if l.restore() {
		return guarded
	}
	return &reservedConn{Conn: guarded, restore: sync.OnceFunc(func() { l.restore() })}
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.release()
	return l.Listener.Close()
}

// release frees the descriptor in reserve. It returns false if there is none.
func (l *listener) release() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reserve == nil {
		return false
	}
	_ = l.reserve.Close()
	l.reserve = nil
	return true
}

// restore takes a descriptor into reserve again. It returns false if there is none. A file
// that can't be opened for another reason leaves the listener without a reserve.
func (l *listener) restore() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reserve != nil {
		return true
	}
	var err error
	if l.reserve, err = l.open(os.DevNull); err != nil {
		l.reserve = nil
	}
	return !errors.Is(err, syscall.EMFILE) && !errors.Is(err, syscall.ENFILE)
}

// A reservedConn uses the descriptor in reserve, which its end gives back.
type reservedConn struct {
	net.Conn
	restore func()
}

// Close implements net.Conn.
func (c *reservedConn) Close() error {
	err := c.Conn.Close()
	c.restore()
	return err
}

// reservedKey is the key of the context of requests that arrive on a connection in
// reserve: on the last descriptor, or beyond a bound on connections.
type reservedKey struct{}

// SetReadDeadline implements net.Conn. Others wait for the descriptor.
func (c *reservedConn) SetReadDeadline(t time.Time) error {
	if latest := time.Now().Add(reservedTimeout); t.IsZero() || t.After(latest) {
		t = latest
	}
	return c.Conn.SetReadDeadline(t)
}

// countConns makes a server count its connections, and let them in as they are served.
func countConns(server *http.Server, conns *admission.HTTPConns) {
	gate := admission.NewAcceptGate(max(1, runtime.GOMAXPROCS(0)-1)) // one processor is left for the open ones
	server.ConnState = func(c net.Conn, state http.ConnState) {
		if g, ok := c.(*headerGuard); ok && state == http.StateIdle {
			g.inHeader.Store(true)
		}
		gate.OnStateChange(c, state)
		conns.OnStateChange(c, state)
	}
	server.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		gate.Enter(c)
		onlyProbes := conns.Accepted(c)
		if _, reserved := c.(*reservedConn); reserved || onlyProbes {
			return context.WithValue(ctx, reservedKey{}, true)
		}
		return ctx
	}
}

// errNoConnection refuses what is no probe on a connection in reserve.
var errNoConnection = &protocol.Error{
	Code: protocol.CodeUnavailable, Message: "this node can't serve another connection at the moment", RetryAfter: time.Second,
}

// onlyProbes answers requests that arrive on a connection in reserve only if they are
// probes, and ends the connection.
func (re *responder) onlyProbes(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Context().Value(reservedKey{}) != nil {
			w.Header().Set("Connection", "close")
			if path := r.URL.Path; path != "/healthz" && path != "/readyz" && path != "/metrics" {
				re.refuse(w, r, errNoConnection)
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}
