package http

import (
	"net/netip"
	"slices"
	"sync"

	"switchyard/internal/protocol"
)

// maxRejecting bounds the connections that are accepted only to be closed at once
// with a close code. A close code is the only refusal that a browser shows to its
// page. Connections beyond the bound are refused before the upgrade.
const maxRejecting = 256

// An admission counts the connections of this node, and admits new ones within its
// limits. It is safe for concurrent use, and its lock is a leaf.
type admission struct {
	// The limits; 0 is none for those of a user and an address.
	maxConnections, maxRejecting, maxPerUser, maxPerAddress int

	// mu protects the fields below, and the slots.
	mu        sync.Mutex
	connected int // all open connections
	rejecting int // the part of them that is only being rejected
	networks  map[netip.Prefix]int
	users     map[string]*userConnections
	empty     chan struct{} // closed when nobody is connected; nil: nobody waits
}

// A userConnections is what one user has open on this node. It exists while the
// user has a slot.
type userConnections struct {
	slots   int // includes connections before their upgrade
	sockets []*socket
}

// An admissionSlot counts one connection from before its upgrade to its end.
type admissionSlot struct {
	admission *admission
	// closeCode closes the connection right after the upgrade; 0 means that it may
	// stay. result is its value of the label result. Neither changes after the
	// upgrade.
	closeCode protocol.CloseCode
	result    string

	// Guarded by admission.mu.
	network netip.Prefix // zero: not counted by address
	user    string       // "": anonymous, or not known yet
}

func newAdmission(cfg *Config) *admission {
	return &admission{
		maxConnections: cfg.MaxConnections, maxRejecting: cfg.maxRejecting, maxPerUser: cfg.MaxPerUser, maxPerAddress: cfg.MaxPerAddress,
		networks: map[netip.Prefix]int{}, users: map[string]*userConnections{},
	}
}

// admit returns a slot for a new connection of a network; the zero network is not
// counted. Over a limit it returns a slot that is marked for rejection, or nil if the
// handshake must be refused.
func (a *admission) admit(network netip.Prefix) *admissionSlot {
	a.mu.Lock()
	defer a.mu.Unlock()
	slot := &admissionSlot{admission: a, result: "ok"}
	full := a.connected-a.rejecting >= a.maxConnections
	addressFull := network.IsValid() && a.maxPerAddress > 0 && a.networks[network] >= a.maxPerAddress
	if full || addressFull {
		result := "too_many"
		if !full {
			result = "too_many_address"
		}
		if !slot.rejectLocked(protocol.CloseTooManyConnections, result) {
			return nil
		}
	} else if network.IsValid() {
		slot.network = network
		a.networks[network]++
	}
	a.connected++
	return slot
}

// count returns the number of open connections.
func (a *admission) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.connected
}

// emptied returns a channel that is closed when there is no connection.
func (a *admission) emptied() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.empty == nil {
		a.empty = make(chan struct{})
	}
	empty := a.empty
	a.notifyEmpty()
	return empty
}

// notifyEmpty closes the channel of emptied if there is no connection. Caller holds
// mu.
func (a *admission) notifyEmpty() {
	if a.connected == 0 && a.empty != nil {
		close(a.empty)
		a.empty = nil
	}
}

// socketsOf returns the registered connections of a user.
func (a *admission) socketsOf(user string) []*socket {
	a.mu.Lock()
	defer a.mu.Unlock()
	if u := a.users[user]; u != nil {
		return slices.Clone(u.sockets)
	}
	return nil
}

// assignUser counts the slot for a user. It returns false if the user has too many
// connections.
func (slot *admissionSlot) assignUser(user string) (ok bool) {
	a := slot.admission
	a.mu.Lock()
	defer a.mu.Unlock()
	if user == "" {
		return true
	}
	u := a.users[user]
	if u != nil && a.maxPerUser > 0 && u.slots >= a.maxPerUser {
		return false
	}
	if u == nil {
		u = &userConnections{}
		a.users[user] = u
	}
	u.slots++
	slot.user = user
	return true
}

// rejectAfterUpgrade marks the slot for rejection. It returns false if too many
// connections are being rejected.
func (slot *admissionSlot) rejectAfterUpgrade(code protocol.CloseCode, result string) bool {
	slot.admission.mu.Lock()
	defer slot.admission.mu.Unlock()
	slot.uncount(nil)
	return slot.rejectLocked(code, result)
}

// rejectLocked marks a slot that counts for no user and no network. Caller holds
// mu.
func (slot *admissionSlot) rejectLocked(code protocol.CloseCode, result string) bool {
	a := slot.admission
	if slot.closeCode != 0 || a.rejecting >= a.maxRejecting {
		return slot.closeCode != 0
	}
	a.rejecting++
	slot.closeCode, slot.result = code, result
	return true
}

// rejectOrError marks the slot for rejection after the upgrade, with a close code
// that a browser shows to its page. If too many connections are being rejected, it
// returns err, for an answer over HTTP.
func (slot *admissionSlot) rejectOrError(code protocol.CloseCode, result string, err error) error {
	if slot.rejectAfterUpgrade(code, result) {
		return nil
	}
	return err
}

// register lets the socket be found by its user.
func (slot *admissionSlot) register(sock *socket) {
	slot.admission.mu.Lock()
	defer slot.admission.mu.Unlock()
	if u := slot.admission.users[slot.user]; u != nil {
		u.sockets = append(u.sockets, sock)
	}
}

// release frees the slot. sock is nil if the upgrade failed.
func (slot *admissionSlot) release(sock *socket) {
	a := slot.admission
	a.mu.Lock()
	defer a.mu.Unlock()
	slot.uncount(sock)
	if slot.closeCode != 0 {
		a.rejecting--
	}
	a.connected--
	a.notifyEmpty()
}

// uncount removes the slot from the counts of its network and its user. Caller
// holds mu.
func (slot *admissionSlot) uncount(sock *socket) {
	a := slot.admission
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
