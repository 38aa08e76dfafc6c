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
	mostPlain           = 2048
	mostPlainPerAddress = 256
)

// A plainCount bounds them. It is told of each change of state by net/http.
type plainCount struct {
	server *Server

	mu sync.Mutex
	// Protects following.
	open     map[net.Conn]netip.Prefix // zero: not counted by address
	networks map[netip.Prefix]int
}

func newPlainCount(s *Server) *plainCount {
	return &plainCount{server: s, open: map[net.Conn]netip.Prefix{}, networks: map[netip.Prefix]int{}}
}

// note implements http.Server.ConnState. It closes a connection that is one
// too many before a byte of it is read; net/http then forgets it.
func (p *plainCount) note(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		if !p.take(c) {
			p.server.metrics.plainRefused.Inc()
			_ = c.Close()
		}
	case http.StateHijacked, http.StateClosed:
		p.drop(c)
	case http.StateActive, http.StateIdle:
	}
}

// take counts by the peer's own address: what a proxy says is not read yet.
// Proxies and the house are not counted by address, since they speak for many.
func (p *plainCount) take(c net.Conn) bool {
	peer := parseAddr(c.RemoteAddr().String())
	var of netip.Prefix
	if public(peer) && !p.server.proxies.trust(peer) {
		of = network(peer)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.open) >= mostPlain || of.IsValid() && p.networks[of] >= mostPlainPerAddress {
		return false
	}
	p.open[c] = of
	if of.IsValid() {
		p.networks[of]++
	}
	return true
}

func (p *plainCount) drop(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	of, counted := p.open[c]
	if !counted {
		return
	}
	delete(p.open, c)
	if of.IsValid() {
		if p.networks[of]--; p.networks[of] == 0 {
			delete(p.networks, of)
		}
	}
}
