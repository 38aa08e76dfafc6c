package http

import (
	"net"
	"net/http"
	"net/netip"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"switchyard/internal/ingress"
)

// Bounds on connections that are not a WebSocket: idle ones, requests, and
// handshakes that never end. Each uses a file descriptor, and none has
// authenticated yet.
const (
	maxHTTPConns           = 2048
	maxHTTPConnsPerAddress = 256
)

// An httpConnLimiter enforces these bounds. net/http calls it for each change of a
// connection's state. It is safe for concurrent use.
type httpConnLimiter struct {
	proxies ingress.Proxies
	refused prometheus.Counter

	// mu protects the fields below.
	mu       sync.Mutex
	open     map[net.Conn]netip.Prefix // zero: not counted by address
	networks map[netip.Prefix]int
}

func newHTTPConnLimiter(p ingress.Proxies, refused prometheus.Counter) *httpConnLimiter {
	return &httpConnLimiter{proxies: p, refused: refused, open: map[net.Conn]netip.Prefix{}, networks: map[netip.Prefix]int{}}
}

// onStateChange implements http.Server.ConnState. It closes a connection over a
// bound before a byte of it is read, and net/http then drops it.
func (l *httpConnLimiter) onStateChange(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		if !l.acquire(c) {
			l.refused.Inc()
			_ = c.Close()
		}
	case http.StateHijacked, http.StateClosed:
		l.release(c)
	case http.StateActive, http.StateIdle:
	}
}

// acquire counts a connection, by the address of its peer: no header has been read
// yet.
func (l *httpConnLimiter) acquire(c net.Conn) bool {
	prefix := l.proxies.PeerNetwork(c.RemoteAddr().String())
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.open) >= maxHTTPConns || prefix.IsValid() && l.networks[prefix] >= maxHTTPConnsPerAddress {
		return false
	}
	l.open[c] = prefix
	if prefix.IsValid() {
		l.networks[prefix]++
	}
	return true
}

func (l *httpConnLimiter) release(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	prefix, counted := l.open[c]
	if !counted {
		return
	}
	delete(l.open, c)
	if prefix.IsValid() {
		if l.networks[prefix]--; l.networks[prefix] == 0 {
			delete(l.networks, prefix)
		}
	}
}
