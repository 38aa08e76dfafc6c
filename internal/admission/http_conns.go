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
	// MaxHTTPConns is the usual bound on all of them.
	MaxHTTPConns           = 2048
	maxHTTPConnsPerAddress = 256
)

// An HTTPConns enforces these bounds. net/http calls it for each change of a
// connection's state. It is safe for concurrent use.
type HTTPConns struct {
	most, mostPerAddress int
	networkOf            func(remoteAddr string) netip.Prefix
	refused              func()

	// mu protects the fields below.
	mu       sync.Mutex
	changes  uint64 // numbers the changes of state
	open     map[net.Conn]*httpConn
	networks map[netip.Prefix]int
}

// An httpConn is an open connection.
type httpConn struct {
	network netip.Prefix // zero: not counted by address
	silent  bool         // no request is under way
	since   uint64       // the change that made it silent
}

// NewHTTPConns returns bounds that no connection uses: most in all. networkOf returns
// the network by which a peer is counted, zero for none. refused is called for each
// connection that is closed because of a bound.
func NewHTTPConns(most int, networkOf func(remoteAddr string) netip.Prefix, refused func()) *HTTPConns {
	return &HTTPConns{
		most: most, mostPerAddress: min(maxHTTPConnsPerAddress, max(1, most/2)), networkOf: networkOf, refused: refused,
		open: map[net.Conn]*httpConn{}, networks: map[netip.Prefix]int{},
	}
}

// OnStateChange implements http.Server.ConnState. It closes a connection over the
// bound of its address before a byte of it is read, and net/http then drops it. Over
// the bound on all, it closes the one that has been silent longest, so that a probe
// is answered however many connections are held open.
func (h *HTTPConns) OnStateChange(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		if closed := h.acquire(c); closed != nil {
			h.refused()
			_ = closed.Close()
		}
	case http.StateActive, http.StateIdle:
		h.mark(c, state == http.StateIdle)
	case http.StateHijacked, http.StateClosed:
		h.release(c)
	}
}

// acquire counts a connection, by the address of its peer: no header has been read
// yet. It returns the connection to close, if one is over a bound.
func (h *HTTPConns) acquire(c net.Conn) (closed net.Conn) {
	network := h.networkOf(c.RemoteAddr().String())
	h.mu.Lock()
	defer h.mu.Unlock()
	if network.IsValid() && h.networks[network] >= h.mostPerAddress {
		return c
	}
	if len(h.open) >= h.most {
		if closed = h.longestSilent(); closed == nil {
			return c
		}
		h.forget(closed)
	}
	h.changes++
	h.open[c] = &httpConn{network: network, silent: true, since: h.changes}
	if network.IsValid() {
		h.networks[network]++
	}
	return closed
}

// longestSilent returns the connection without a request that has been so longest.
// The caller holds mu.
func (h *HTTPConns) longestSilent() (longest net.Conn) {
	for c, state := range h.open {
		if state.silent && (longest == nil || state.since < h.open[longest].since) {
			longest = c
		}
	}
	return longest
}

// mark records whether a request is under way.
func (h *HTTPConns) mark(c net.Conn, silent bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if state := h.open[c]; state != nil {
		h.changes++
		state.silent, state.since = silent, h.changes
	}
}

func (h *HTTPConns) release(c net.Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.forget(c)
}

// forget removes a connection from the counts. The caller holds mu.
func (h *HTTPConns) forget(c net.Conn) {
	state := h.open[c]
	if state == nil {
		return
	}
	delete(h.open, c)
	if state.network.IsValid() {
		if h.networks[state.network]--; h.networks[state.network] == 0 {
			delete(h.networks, state.network)
		}
	}
}
