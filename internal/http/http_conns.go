package http

import (
	"net"
	"net/http"
	"net/netip"
	"sync"
)

// Connections that are no WebSocket: idle ones, requests, and handshakes that
// never end. Each holds a descriptor, and nobody has said who it is yet.
const (
	maxHTTPConns           = 2048
	maxHTTPConnsPerAddress = 256
)

// A httpConnLimiter bounds them. It is told of each change of state by net/http.
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

// onStateChange implements http.Server.ConnState. It closes a connection that is one
// too many before a byte of it is read; net/http then forgets it.
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

// acquire counts by the peer's own address: what a proxy says is not read yet.
// Proxies and the house are not counted by address, since they speak for many.
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
