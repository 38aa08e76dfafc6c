package http

import (
	"net"
	"net/http"
	"net/netip"
	"sync"
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
	server *Server

	mu sync.Mutex
	// Protects following.
	open     map[net.Conn]netip.Prefix // zero: not counted by address
	networks map[netip.Prefix]int
}

func newHTTPConnLimiter(s *Server) *httpConnLimiter {
	return &httpConnLimiter{server: s, open: map[net.Conn]netip.Prefix{}, networks: map[netip.Prefix]int{}}
}

// onStateChange implements http.Server.ConnState. It closes a connection over a
// bound before a byte of it is read, and net/http then drops it.
func (p *httpConnLimiter) onStateChange(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		if !p.acquire(c) {
			p.server.metrics.httpConnsRefused.Inc()
			_ = c.Close()
		}
	case http.StateHijacked, http.StateClosed:
		p.release(c)
	case http.StateActive, http.StateIdle:
	}
}

// acquire counts a connection, by the address of its peer: no header has been read
// yet. Trusted proxies and internal addresses are not counted by address, since
// many clients share them.
func (p *httpConnLimiter) acquire(c net.Conn) bool {
	peer := parseAddr(c.RemoteAddr().String())
	var prefix netip.Prefix
	if isPublicAddr(peer) && !p.server.proxies.trust(peer) {
		prefix = addressPrefix(peer)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.open) >= maxHTTPConns || prefix.IsValid() && p.networks[prefix] >= maxHTTPConnsPerAddress {
		return false
	}
	p.open[c] = prefix
	if prefix.IsValid() {
		p.networks[prefix]++
	}
	return true
}

func (p *httpConnLimiter) release(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	prefix, counted := p.open[c]
	if !counted {
		return
	}
	delete(p.open, c)
	if prefix.IsValid() {
		if p.networks[prefix]--; p.networks[prefix] == 0 {
			delete(p.networks, prefix)
		}
	}
}
