// Package admission counts the connections of this node and admits new ones within
// limits: WebSockets for the whole node, by address and by user, and plain HTTP
// connections before their requests are read.
package admission

import (
	"net/netip"
	"slices"
	"sync"

	"switchyard/internal/protocol"
)

// MaxRejecting is the usual bound on the connections that are accepted only to be closed at once
// with a close code. A close code is the only refusal that a browser shows to its
// page. Connections beyond the bound are refused before the upgrade.
const MaxRejecting = 256

// Limits are those of a Counter. 0 is no limit for a user and for an address.
type Limits struct {
	// Rejecting bounds the connections that are accepted only to be closed: see
	// MaxRejecting.
	Connections, Rejecting, PerUser, PerAddress int
}

// A Connection is one that a ban can close. Implementations are safe for concurrent
// use.
type Connection interface {
	// CloseWith closes the connection with a code, without blocking. It returns false
	// if the connection is being closed already.
	CloseWith(protocol.CloseCode) bool
}

// A Counter counts the WebSockets of this node, and admits new ones within its limits.
// It is safe for concurrent use, and calls nothing with its lock held.
type Counter struct {
	limits Limits

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
	slots       int // includes connections before their upgrade
	connections []Connection
}

// A Slot counts one connection from before its upgrade to its end.
type Slot struct {
	counter *Counter
	// Neither changes after the upgrade.
	closeCode protocol.CloseCode
	result    string

	// Guarded by Counter.mu.
	network netip.Prefix // zero: not counted by address
	user    string       // "": anonymous, or not known yet
}

// NewCounter returns a counter of no connections.
func NewCounter(limits Limits) *Counter {
	return &Counter{limits: limits, networks: map[netip.Prefix]int{}, users: map[string]*userConnections{}}
}

// Admit returns a slot for a new connection of a network; the zero network is not
// counted. Over a limit it returns a slot that is marked for rejection, or nil if the
// handshake must be refused.
func (c *Counter) Admit(network netip.Prefix) *Slot {
	c.mu.Lock()
	defer c.mu.Unlock()
	slot := &Slot{counter: c, result: "ok"}
	full := c.connected-c.rejecting >= c.limits.Connections
	addressFull := network.IsValid() && c.limits.PerAddress > 0 && c.networks[network] >= c.limits.PerAddress
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
		c.networks[network]++
	}
	c.connected++
	return slot
}

// Count returns the number of open connections.
func (c *Counter) Count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.connected
}

// Emptied returns a channel that is closed when there is no connection.
func (c *Counter) Emptied() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.empty == nil {
		c.empty = make(chan struct{})
	}
	empty := c.empty
	c.notifyEmpty()
	return empty
}

// notifyEmpty closes the channel of Emptied if there is no connection. Caller holds
// mu.
func (c *Counter) notifyEmpty() {
	if c.connected == 0 && c.empty != nil {
		close(c.empty)
		c.empty = nil
	}
}

// CountOf returns how many connections of a user CloseUser would close now.
func (c *Counter) CountOf(user string) int { return len(c.connectionsOf(user)) }

// CloseUser closes the registered connections of a user, because the user was banned.
func (c *Counter) CloseUser(user string) {
	for _, conn := range c.connectionsOf(user) {
		conn.CloseWith(protocol.CloseRemoved)
	}
}

func (c *Counter) connectionsOf(user string) []Connection {
	c.mu.Lock()
	defer c.mu.Unlock()
	if u := c.users[user]; u != nil {
		return slices.Clone(u.connections)
	}
	return nil
}

// CloseCode returns the code that closes the connection right after its upgrade, or 0 if
// it may stay.
func (slot *Slot) CloseCode() protocol.CloseCode { return slot.closeCode }

// Result returns how the handshake ended, as a value of the label result.
func (slot *Slot) Result() string { return slot.result }

// AssignUser counts the slot for a user. It returns false if the user has too many
// connections.
func (slot *Slot) AssignUser(user string) (ok bool) {
	c := slot.counter
	c.mu.Lock()
	defer c.mu.Unlock()
	if user == "" {
		return true
	}
	u := c.users[user]
	if u != nil && c.limits.PerUser > 0 && u.slots >= c.limits.PerUser {
		return false
	}
	if u == nil {
		u = &userConnections{}
		c.users[user] = u
	}
	u.slots++
	slot.user = user
	return true
}

// rejectAfterUpgrade marks the slot for rejection. It returns false if too many
// connections are being rejected.
func (slot *Slot) rejectAfterUpgrade(code protocol.CloseCode, result string) bool {
	slot.counter.mu.Lock()
	defer slot.counter.mu.Unlock()
	slot.uncount(nil)
	return slot.rejectLocked(code, result)
}

// rejectLocked marks a slot that counts for no user and no network. Caller holds
// mu.
func (slot *Slot) rejectLocked(code protocol.CloseCode, result string) bool {
	c := slot.counter
	if slot.closeCode != 0 || c.rejecting >= c.limits.Rejecting {
		return slot.closeCode != 0
	}
	c.rejecting++
	slot.closeCode, slot.result = code, result
	return true
}

// RejectOrError marks the slot for rejection after the upgrade, with a close code
// that a browser shows to its page. If too many connections are being rejected, it
// returns err, for an answer over HTTP.
func (slot *Slot) RejectOrError(code protocol.CloseCode, result string, err error) error {
	if slot.rejectAfterUpgrade(code, result) {
		return nil
	}
	return err
}

// Register makes CloseUser find the connection.
func (slot *Slot) Register(conn Connection) {
	slot.counter.mu.Lock()
	defer slot.counter.mu.Unlock()
	if u := slot.counter.users[slot.user]; u != nil {
		u.connections = append(u.connections, conn)
	}
}

// Release frees the slot. conn is nil if the upgrade failed.
func (slot *Slot) Release(conn Connection) {
	c := slot.counter
	c.mu.Lock()
	defer c.mu.Unlock()
	slot.uncount(conn)
	if slot.closeCode != 0 {
		c.rejecting--
	}
	c.connected--
	c.notifyEmpty()
}

// uncount removes the slot from the counts of its network and its user. Caller
// holds mu.
func (slot *Slot) uncount(conn Connection) {
	c := slot.counter
	if slot.network.IsValid() {
		if c.networks[slot.network]--; c.networks[slot.network] == 0 {
			delete(c.networks, slot.network)
		}
		slot.network = netip.Prefix{}
	}
	u := c.users[slot.user]
	if u == nil {
		return
	}
	if i := slices.Index(u.connections, conn); i >= 0 {
		last := len(u.connections) - 1
		u.connections[i], u.connections[last] = u.connections[last], nil
		u.connections = u.connections[:last]
	}
	if u.slots--; u.slots == 0 {
		delete(c.users, slot.user)
	}
	slot.user = ""
}
