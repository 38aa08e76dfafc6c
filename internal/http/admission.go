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
	if !s.drain.TakesClients() { // with mu held, so that a drain does not miss the connection
		return nil
	}
	slot := &admissionSlot{server: s, result: "ok"}
	prefix := addressPrefix(c.addr)
	full := s.admission.connected-s.admission.rejecting >= s.cfg.MaxConnections
	addressFull := c.countByAddress && s.cfg.MaxPerAddress > 0 && s.admission.networks[prefix] >= s.cfg.MaxPerAddress
	if full || addressFull {
		result := "too_many"
		if !full {
			result = "too_many_address"
		}
		if !slot.rejectLocked(protocol.CloseTooManyConnections, result) {
			return nil
		}
	} else if c.countByAddress {
		slot.network = prefix
		s.admission.networks[prefix]++
	}
	s.admission.connected++
	return slot
}

// assignUser counts the slot for a user. It returns false if the user has too many
// connections.
func (slot *admissionSlot) assignUser(user string) (ok bool) {
	s := slot.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if user == "" {
		return true
	}
	u := s.admission.users[user]
	if u != nil && s.cfg.MaxPerUser > 0 && u.slots >= s.cfg.MaxPerUser {
		return false
	}
	if u == nil {
		u = &userConnections{}
		s.admission.users[user] = u
	}
	u.slots++
	slot.user = user
	return true
}

// rejectAfterUpgrade marks the slot for rejection. It returns false if too many
// connections are being rejected.
func (slot *admissionSlot) rejectAfterUpgrade(code protocol.CloseCode, result string) bool {
	slot.server.mu.Lock()
	defer slot.server.mu.Unlock()
	slot.uncount(nil)
	return slot.rejectLocked(code, result)
}

// rejectLocked marks a slot that counts for no user and no network. Caller holds
// mu.
func (slot *admissionSlot) rejectLocked(code protocol.CloseCode, result string) bool {
	a := &slot.server.admission
	if slot.closeCode != 0 || a.rejecting >= slot.server.cfg.maxRejecting {
		return slot.closeCode != 0
	}
	a.rejecting++
	slot.closeCode, slot.result = code, result
	return true
}

// register lets the socket be found by its user.
func (slot *admissionSlot) register(sock *socket) {
	slot.server.mu.Lock()
	defer slot.server.mu.Unlock()
	if u := slot.server.admission.users[slot.user]; u != nil {
		u.sockets = append(u.sockets, sock)
	}
}

// release frees the slot. sock is nil if the upgrade failed.
func (slot *admissionSlot) release(sock *socket) {
	s := slot.server
	s.mu.Lock()
	defer s.mu.Unlock()
	slot.uncount(sock)
	if slot.closeCode != 0 {
		s.admission.rejecting--
	}
	s.admission.connected--
	s.notifyEmpty()
}

// uncount removes the slot from the counts of its network and its user. Caller
// holds mu.
func (slot *admissionSlot) uncount(sock *socket) {
	a := &slot.server.admission
	if slot.network.IsValid() {
		if a.networks[slot.network]--; a.networks[slot.network] == 0 {
			delete(a.networks, slot.network)
		}
		slot.network = netip.Prefix{}
	}
	u := a.users[slot.user]
	if u == nil {
		return
	}
	if i := slices.Index(u.sockets, sock); i >= 0 {
		last := len(u.sockets) - 1
		u.sockets[i], u.sockets[last] = u.sockets[last], nil
		u.sockets = u.sockets[:last]
	}
	if u.slots--; u.slots == 0 {
		delete(a.users, slot.user)
	}
	slot.user = ""
}
