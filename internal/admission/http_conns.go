package admission

import (
	"container/list"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// Bounds on connections that are not a WebSocket: idle ones, requests, and
// handshakes that never end. Each uses a file descriptor, and none has
// authenticated yet.
const (
	// MaxHTTPConns is the usual bound on all of them.
	MaxHTTPConns           = 2048
	MaxHTTPConnsPerAddress = 256
	// maxReserved is how many of them are kept for probes.
	maxReserved = 32
	// unreadFor is how long a new connection keeps its place while its first request has
	// not been read, as long as the reserve has room for the one after it.
	unreadFor = time.Second
)

// An HTTPConns enforces these bounds. A new connection over one takes the place of the
// connection that has been silent longest, of its address or of all. Where every one
// has a request under way or is new, it is reserved for probes. It is safe for concurrent
// use.
type HTTPConns struct {
	most, mostPerAddress int // without the reserved ones
	mostReserved         int
	networkOf            func(remoteAddr string) netip.Prefix
	refused              func()

	// mu protects the fields below.
	mu       sync.Mutex
	open     map[net.Conn]*httpConn // without the reserved ones
	reserved map[net.Conn]*httpConn
	networks map[netip.Prefix]*networkConns
	// The connections without a request, the longest silent first.
	silent, silentReserved list.List
}

// A networkConns counts the connections of a network.
type networkConns struct {
	open   int
	silent list.List // those without a request, the longest silent first
}

// An httpConn is an open connection.
type httpConn struct {
	conn    net.Conn
	prefix  netip.Prefix
	network *networkConns // nil: not counted by address
	unread  time.Time     // when it was accepted; zero once a request was read
	// The places in the lists of silent connections; nil while a request is under way.
	inAll, inNetwork *list.Element
}

// NewHTTPConns returns bounds that no connection uses: most in all, some of them in reserve.
// networkOf returns the network by which a peer is counted, zero for none. refused is
// called for each connection that is closed because of a bound.
func NewHTTPConns(most int, networkOf func(remoteAddr string) netip.Prefix, refused func()) *HTTPConns {
	reserved := min(maxReserved, max(1, most/8))
	most = max(1, most-reserved)
	return &HTTPConns{
		most: most, mostReserved: reserved, mostPerAddress: min(MaxHTTPConnsPerAddress, max(1, most/2)), networkOf: networkOf, refused: refused,
		open: map[net.Conn]*httpConn{}, reserved: map[net.Conn]*httpConn{}, networks: map[netip.Prefix]*networkConns{},
	}
}

// Accepted counts a new connection, by the address of its peer: no header has been read
// yet. It returns true if only probes may be answered on it. It closes at most one
// connection: one that is silent, or else the new one.
func (h *HTTPConns) Accepted(c net.Conn) (onlyProbes bool) {
	onlyProbes, closed := h.accept(c)
	if closed != nil {
		h.refused()
		_ = closed.Close()
	}
	return onlyProbes
}

func (h *HTTPConns) accept(c net.Conn) (onlyProbes bool, closed net.Conn) {
	prefix := h.networkOf(c.RemoteAddr().String())
	h.mu.Lock()
	defer h.mu.Unlock()
	state := &httpConn{conn: c, prefix: prefix, unread: time.Now()}
	var silent *list.List // nil: no bound is reached
	if network := h.networks[prefix]; network != nil && network.open >= h.mostPerAddress {
		silent = &network.silent
	} else if len(h.open) >= h.most {
		silent = &h.silent
	}
	full := len(h.reserved) >= h.mostReserved
	// One address whose connections are all new has half of the reserve at most.
	fewReserved := len(h.reserved) < h.mostReserved/2 || silent == &h.silent && !full
	switch {
	case silent == nil:
	case silent.Len() == 0 || fewReserved && first(silent).isNew():
		if full && h.silentReserved.Len() == 0 {
			return true, c
		}
		if full {
			closed = h.forget(first(&h.silentReserved))
		}
		h.reserved[c] = state
		h.setSilent(state, true)
		return true, closed
	default:
		closed = h.forget(first(silent))
	}
	h.open[c] = state
	if prefix.IsValid() {
		if state.network = h.networks[prefix]; state.network == nil {
			state.network = new(networkConns)
			h.networks[prefix] = state.network
		}
		state.network.open++
	}
	h.setSilent(state, true)
	return false, closed
}

// OnStateChange implements http.Server.ConnState, for connections after Accepted.
func (h *HTTPConns) OnStateChange(c net.Conn, state http.ConnState) {
	h.mu.Lock()
	defer h.mu.Unlock()
	known := h.open[c]
	if known == nil {
		known = h.reserved[c]
	}
	if known == nil { // it was closed because of a bound
		return
	}
	switch state {
	case http.StateActive, http.StateIdle:
		known.unread = time.Time{}
		h.setSilent(known, state == http.StateIdle)
	case http.StateHijacked, http.StateClosed:
		h.forget(known)
	}
}

// setSilent records whether a request is under way. The caller holds mu.
func (h *HTTPConns) setSilent(state *httpConn, silent bool) {
	all := &h.silent
	if h.reserved[state.conn] == state {
		all = &h.silentReserved
	}
	if state.inAll != nil {
		all.Remove(state.inAll)
		state.inAll = nil
	}
	if state.inNetwork != nil {
		state.network.silent.Remove(state.inNetwork)
		state.inNetwork = nil
	}
	if !silent {
		return
	}
	state.inAll = all.PushBack(state)
	if state.network != nil {
		state.inNetwork = state.network.silent.PushBack(state)
	}
}

// first returns the longest silent connection of a list, which is not empty.
func first(silent *list.List) *httpConn {
	state, _ := silent.Front().Value.(*httpConn) // the only type in it
	return state
}

// isNew reports whether the connection may just not have been read yet.
func (c *httpConn) isNew() bool { return !c.unread.IsZero() && time.Since(c.unread) < unreadFor }

// forget removes a connection from the counts and returns it. The caller holds mu.
func (h *HTTPConns) forget(state *httpConn) net.Conn {
	h.setSilent(state, false)
	delete(h.open, state.conn)
	delete(h.reserved, state.conn)
	if state.network != nil {
		if state.network.open--; state.network.open == 0 {
			delete(h.networks, state.prefix)
		}
	}
	return state.conn
}
