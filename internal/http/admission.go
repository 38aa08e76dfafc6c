package http

import (
	"net/netip"
	"slices"

	"switchyard/internal/protocol"
)

// maxRejecting is how many connections that can't stay are accepted at once all
// the same, to be told why by a close code: the only answer to a handshake that
// a browser shows to its page. Beyond it they are refused before the upgrade.
const maxRejecting = 256

// A admission knows who is connected to this node. It is guarded by Server.mu.
type admission struct {
	connected int // all that are open
	rejecting int // those of them that are only told why they can't stay
	networks  map[netip.Prefix]int
	users     map[string]*userConnections
}

// An userConnections is what one user has open here; there is none without a
// connection.
type userConnections struct {
	slots   int // with those whose upgrade is still under way
	sockets []*socket
}

// A admissionSlot is one connection's in the roster, from before its upgrade to its
// end.
type admissionSlot struct {
	server *Server
	// told is the code to close with at once, 0 for who may stay; result is how
	// the connection is counted. Neither changes once the upgrade is done.
	closeCode protocol.CloseCode
	result    string

	// Guarded by Server.mu.
	network netip.Prefix // zero: not counted by address
	user    string       // "": anonymous, or not known yet
}

// admit takes a connection in, perhaps only to tell it why it can't stay; nil
// is for neither.
func (s *Server) admit(c *caller) *admissionSlot {
	s.mu.Lock()
	defer s.mu.Unlock()
	phase := s.drain.currentPhase()
	if s.stopping || phase != "" && phase != phaseDelay {
		return nil
	}
	p := &admissionSlot{server: s, result: "ok"}
	prefix := addressPrefix(c.addr)
	full := s.admission.connected-s.admission.rejecting >= s.cfg.MaxConnections
	addressFull := c.countByAddress && s.cfg.MaxPerAddress > 0 && s.admission.networks[prefix] >= s.cfg.MaxPerAddress
	if full || addressFull {
		result := "too_many"
		if !full {
			result = "too_many_address"
		}
		if !p.rejectLocked(protocol.CloseTooManyConnections, result) {
			return nil
		}
	} else if c.countByAddress {
		p.network = prefix
		s.admission.networks[prefix]++
	}
	s.admission.connected++
	return p
}

// assignUser gives the place to a user, who may have too many.
func (p *admissionSlot) assignUser(user string) (ok bool) {
	s := p.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if user == "" {
		return true
	}
	a := s.admission.users[user]
	if a != nil && s.cfg.MaxPerUser > 0 && a.slots >= s.cfg.MaxPerUser {
		return false
	}
	if a == nil {
		a = &userConnections{}
		s.admission.users[user] = a
	}
	a.slots++
	p.user = user
	return true
}

// rejectAfterUpgrade makes the connection one that is only told why; false says that too
// many are being told just now.
func (p *admissionSlot) rejectAfterUpgrade(code protocol.CloseCode, result string) bool {
	p.server.mu.Lock()
	defer p.server.mu.Unlock()
	p.uncount(nil)
	return p.rejectLocked(code, result)
}

// rejectLocked is turnAway without a place to give back. Caller holds mu.
func (p *admissionSlot) rejectLocked(code protocol.CloseCode, result string) bool {
	r := &p.server.admission
	if p.closeCode != 0 || r.rejecting >= p.server.cfg.maxRejecting {
		return p.closeCode != 0
	}
	r.rejecting++
	p.closeCode, p.result = code, result
	return true
}

// register makes the socket one that its user can be found by.
func (p *admissionSlot) register(k *socket) {
	p.server.mu.Lock()
	defer p.server.mu.Unlock()
	if a := p.server.admission.users[p.user]; a != nil {
		a.sockets = append(a.sockets, k)
	}
}

// release gives the place back; k is nil where there never was a socket.
func (p *admissionSlot) release(k *socket) {
	s := p.server
	s.mu.Lock()
	defer s.mu.Unlock()
	p.uncount(k)
	if p.closeCode != 0 {
		s.admission.rejecting--
	}
	s.admission.connected--
	s.notifyEmpty()
}

// uncount takes the place off what its network and its user have. Caller holds
// mu.
func (p *admissionSlot) uncount(k *socket) {
	r := &p.server.admission
	if p.network.IsValid() {
		if r.networks[p.network]--; r.networks[p.network] == 0 {
			delete(r.networks, p.network)
		}
		p.network = netip.Prefix{}
	}
	a := r.users[p.user]
	if a == nil {
		return
	}
	if i := slices.Index(a.sockets, k); i >= 0 {
		last := len(a.sockets) - 1
		a.sockets[i], a.sockets[last] = a.sockets[last], nil
		a.sockets = a.sockets[:last]
	}
	if a.slots--; a.slots == 0 {
		delete(r.users, p.user)
	}
	p.user = ""
}
