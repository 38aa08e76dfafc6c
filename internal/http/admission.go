package http

import (
	"net/netip"
	"slices"

	"switchyard/internal/protocol"
)

// maxRejecting bounds the connections that are accepted only to be closed at once
// with a close code. A close code is the only refusal that a browser shows to its
// page. Connections beyond the bound are refused before the upgrade.
const maxRejecting = 256

// An admission counts the connections of this node. It is guarded by Server.mu.
type admission struct {
	connected int // all open connections
	rejecting int // the part of them that is only being rejected
	networks  map[netip.Prefix]int
	users     map[string]*userConnections
}

// A userConnections is what one user has open on this node. It exists while the
// user has a slot.
type userConnections struct {
	slots   int // includes connections before their upgrade
	sockets []*socket
}

// An admissionSlot counts one connection from before its upgrade to its end.
type admissionSlot struct {
	server *Server
	// closeCode closes the connection right after the upgrade; 0 means that it may
	// stay. result is its value of the label result. Neither changes after the
	// upgrade.
	closeCode protocol.CloseCode
	result    string

	// Guarded by Server.mu.
	network netip.Prefix // zero: not counted by address
	user    string       // "": anonymous, or not known yet
}

// admit returns a slot for a new connection. Over a limit it returns a slot that is
// marked for rejection, or nil if the handshake must be refused.
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

// assignUser counts the slot for a user. It returns false if the user has too many
// connections.
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

// rejectAfterUpgrade marks the slot for rejection. It returns false if too many
// connections are being rejected.
func (p *admissionSlot) rejectAfterUpgrade(code protocol.CloseCode, result string) bool {
	p.server.mu.Lock()
	defer p.server.mu.Unlock()
	p.uncount(nil)
	return p.rejectLocked(code, result)
}

// rejectLocked marks a slot that counts for no user and no network. Caller holds
// mu.
func (p *admissionSlot) rejectLocked(code protocol.CloseCode, result string) bool {
	r := &p.server.admission
	if p.closeCode != 0 || r.rejecting >= p.server.cfg.maxRejecting {
		return p.closeCode != 0
	}
	r.rejecting++
	p.closeCode, p.result = code, result
	return true
}

// register lets the socket be found by its user.
func (p *admissionSlot) register(k *socket) {
	p.server.mu.Lock()
	defer p.server.mu.Unlock()
	if a := p.server.admission.users[p.user]; a != nil {
		a.sockets = append(a.sockets, k)
	}
}

// release frees the slot. k is nil if the upgrade failed.
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

// uncount removes the slot from the counts of its network and its user. Caller
// holds mu.
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
