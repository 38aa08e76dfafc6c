package admission

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

// An HTTPConns enforces these bounds. net/http calls it for each change of a
// connection's state. It is safe for concurrent use.
type HTTPConns struct {
	networkOf func(remoteAddr string) netip.Prefix
	refused   func()

	// mu protects the fields below.
	mu       sync.Mutex
	open     map[net.Conn]netip.Prefix // zero: not counted by address
	networks map[netip.Prefix]int
}

// NewHTTPConns returns bounds that no connection uses. networkOf returns the network by
// which a peer is counted, zero for none. refused is called for each connection over
// a bound.
func NewHTTPConns(networkOf func(remoteAddr string) netip.Prefix, refused func()) *HTTPConns {
	return &HTTPConns{networkOf: networkOf, refused: refused, open: map[net.Conn]netip.Prefix{}, networks: map[netip.Prefix]int{}}
}

// OnStateChange implements http.Server.ConnState. It closes a connection over a
// bound before a byte of it is read, and net/http then drops it.
func (h *HTTPConns) OnStateChange(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		if !h.acquire(c) {
			h.refused()
			_ = c.Close()
		}
	case http.StateHijacked, http.StateClosed:
		h.release(c)
	case http.StateActive, http.StateIdle:
	}
}

// acquire counts a connection, by the address of its peer: no header has been read
// yet.
func (h *HTTPConns) acquire(c net.Conn) bool {
	prefix := h.networkOf(c.RemoteAddr().String())
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.open) >= maxHTTPConns || prefix.IsValid() && h.networks[prefix] >= maxHTTPConnsPerAddress {
		return false
	}
	h.open[c] = prefix
	if prefix.IsValid() {
		h.networks[prefix]++
	}
	return true
}

func (h *HTTPConns) release(c net.Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	prefix, counted := h.open[c]
	if !counted {
		return
	}
	delete(h.open, c)
	if prefix.IsValid() {
		if h.networks[prefix]--; h.networks[prefix] == 0 {
			delete(h.networks, prefix)
		}
	}
}
