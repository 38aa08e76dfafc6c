package http

import (
	"net/netip"
	"slices"

	"switchyard/internal/protocol"
)

// overLimit is how many connections that can't stay are accepted at once all
// the same, to be told why by a close code: the only answer to a handshake that
// a browser shows to its page. Beyond it they are refused before the upgrade.
const overLimit = 256

// A roster knows who is connected to this node. It is guarded by Server.mu.
type roster struct {
	connected int // all that are open
	turned    int // those of them that are only told why they can't stay
	networks  map[netip.Prefix]int
	users     map[string]*account
}

// An account is what one user has open here; there is none without a
// connection.
type account struct {
	places  int // with those whose upgrade is still under way
	sockets []*socket
}

// A place is one connection's in the roster, from before its upgrade to its
// end.
type place struct {
	server *Server
	// told is the code to close with at once, 0 for who may stay; result is how
	// the connection is counted. Neither changes once the upgrade is done.
	told   protocol.CloseCode
	result string

	// Guarded by Server.mu.
	network netip.Prefix // zero: not counted by address
	user    string       // "": anonymous, or not known yet
}

// admit takes a connection in, perhaps only to tell it why it can't stay; nil
// is for neither.
func (s *Server) admit(c *caller) *place {
	s.mu.Lock()
	defer s.mu.Unlock()
	phase := s.drain.at()
	if s.stopping || phase != "" && phase != phaseDelay {
		return nil
	}
	p := &place{server: s, result: "ok"}
	of := network(c.addr)
	full := s.roster.connected-s.roster.turned >= s.cfg.MaxConnections
	crowded := c.counted && s.cfg.MaxPerAddress > 0 && s.roster.networks[of] >= s.cfg.MaxPerAddress
	if full || crowded {
		result := "too_many"
		if !full {
			result = "too_many_address"
		}
		if !p.turn(protocol.CloseTooMany, result) {
			return nil
		}
	} else if c.counted {
		p.network = of
		s.roster.networks[of]++
	}
	s.roster.connected++
	return p
}

// claim gives the place to a user, who may have too many.
func (p *place) claim(user string) (ok bool) {
	s := p.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if user == "" {
		return true
	}
	a := s.roster.users[user]
	if a != nil && s.cfg.MaxPerUser > 0 && a.places >= s.cfg.MaxPerUser {
		return false
	}
	if a == nil {
		a = &account{}
		s.roster.users[user] = a
	}
	a.places++
	p.user = user
	return true
}

// turnAway makes the connection one that is only told why; false says that too
// many are being told just now.
func (p *place) turnAway(code protocol.CloseCode, result string) bool {
	p.server.mu.Lock()
	defer p.server.mu.Unlock()
	p.vacate(nil)
	return p.turn(code, result)
}

// turn is turnAway without a place to give back. Caller holds mu.
func (p *place) turn(code protocol.CloseCode, result string) bool {
	r := &p.server.roster
	if p.told != 0 || r.turned >= p.server.cfg.overLimit {
		return p.told != 0
	}
	r.turned++
	p.told, p.result = code, result
	return true
}

// enrol makes the socket one that its user can be found by.
func (p *place) enrol(k *socket) {
	p.server.mu.Lock()
	defer p.server.mu.Unlock()
	if a := p.server.roster.users[p.user]; a != nil {
		a.sockets = append(a.sockets, k)
	}
}

// leave gives the place back; k is nil where there never was a socket.
func (p *place) leave(k *socket) {
	s := p.server
	s.mu.Lock()
	defer s.mu.Unlock()
	p.vacate(k)
	if p.told != 0 {
		s.roster.turned--
	}
	s.roster.connected--
	s.noteEmpty()
}

// vacate takes the place off what its network and its user have. Caller holds
// mu.
func (p *place) vacate(k *socket) {
	r := &p.server.roster
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
	if a.places--; a.places == 0 {
		delete(r.users, p.user)
	}
	p.user = ""
}
