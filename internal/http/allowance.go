package http

import (
	"net/netip"
	"sync"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/ratelimit"
)

// maxClosedAllowances bounds the closed sessions and addresses whose use of their
// limits is remembered. Each owes something, which takes seconds to pass.
const maxClosedAllowances = 1 << 16

// carriedStates are the used parts of the limits that a reconnect does not renew, by
// kind.
type carriedStates [carriedKinds]ratelimit.State

// owes reports whether a part of a burst is used.
func (c *carriedStates) owes(now time.Duration) bool {
	for _, s := range c {
		if !s.IsZero(now) {
			return true
		}
	}
	return false
}

// An allowance is what a session has used of the limits that a reconnect does not
// renew. The two connections of a takeover share it.
type allowance struct {
	// mu protects states. It is locked after allowances.mu.
	mu     sync.Mutex
	states carriedStates

	// Guarded by allowances.mu.
	session     message.SessionID // "" if no sessions are kept
	network     netip.Prefix      // of its first connection
	connections int               // open ones
	// resumed: the client has offered its session once, so it will not return as a
	// stranger of its address.
	resumed bool
	// onAddress: the address owes it as well.
	onAddress bool
}

// take uses n events of a limit, or returns how long to wait for them.
func (a *allowance) take(kind int, l ratelimit.Limit, now time.Duration, n int) (wait time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.states[kind].Take(l, now, n)
}

// used returns what is used at the moment.
func (a *allowance) used() carriedStates {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.states
}

// allowances are those of this node. A client that reconnects goes on with its
// session's. A connection that offers no session goes on with what closed connections
// of its address owe that had offered none either: at most one burst together, which
// one new connection takes over, because an address may stand for many people. It is
// safe for concurrent use.
type allowances struct {
	limits [carriedKinds]ratelimit.Limit
	max    int // of closed sessions and addresses together

	// mu protects the fields below.
	mu        sync.Mutex
	sessions  map[message.SessionID]*allowance
	closed    int // sessions without an open connection
	addresses map[netip.Prefix]carriedStates
	sweepAt   int // the number of closed sessions and addresses at which they are swept
}

func newAllowances(limits [rateKinds]ratelimit.Limit) *allowances {
	return &allowances{
		limits: [carriedKinds]ratelimit.Limit(limits[:carriedKinds]), max: maxClosedAllowances, sweepAt: 64,
		sessions: map[message.SessionID]*allowance{}, addresses: map[netip.Prefix]carriedStates{},
	}
}

// open returns the allowance of a new connection. close must follow. The network is
// invalid for clients that are not counted by address.
func (all *allowances) open(session message.SessionID, network netip.Prefix, resumed bool, now time.Duration) *allowance {
	all.mu.Lock()
	defer all.mu.Unlock()
	a := all.sessions[session]
	if a == nil {
		a = &allowance{session: session, network: network}
		if session != "" {
			all.sessions[session] = a
		}
		if !resumed {
			a.states = all.addresses[network]
			delete(all.addresses, network)
		}
	} else if a.connections == 0 {
		all.closed--
		all.takeBack(a, now)
	}
	a.connections++
	a.resumed = a.resumed || resumed
	return a
}

// takeBack relieves the address of what a session owes that has returned. Caller holds
// mu.
func (all *allowances) takeBack(a *allowance, now time.Duration) {
	owed, known := all.addresses[a.network]
	if !a.onAddress || !known {
		return
	}
	a.onAddress = false
	used := a.used()
	for kind := range owed {
		owed[kind].Subtract(now, used[kind])
	}
	all.setAddress(a.network, owed, now)
}

// setAddress records what an address owes. Caller holds mu.
func (all *allowances) setAddress(network netip.Prefix, owed carriedStates, now time.Duration) {
	if owed.owes(now) {
		all.addresses[network] = owed
	} else {
		delete(all.addresses, network)
	}
}

// close records that a connection has ended. What it owes is remembered until it has
// passed.
func (all *allowances) close(a *allowance, now time.Duration) {
	all.mu.Lock()
	defer all.mu.Unlock()
	a.connections--
	if a.connections > 0 {
		return
	}
	used := a.used()
	if !used.owes(now) {
		delete(all.sessions, a.session)
		return
	}
	if a.session != "" {
		all.closed++
	}
	if !a.resumed && a.network.IsValid() {
		owed := all.addresses[a.network]
		for kind := range owed {
			owed[kind].Add(all.limits[kind], now, used[kind])
		}
		all.setAddress(a.network, owed, now)
		a.onAddress = true
	}
	if all.remembered() >= all.sweepAt {
		all.sweep(now)
	}
}

// remembered returns how many closed sessions and addresses are known. Caller holds mu.
func (all *allowances) remembered() int { return all.closed + len(all.addresses) }

// sweep forgets what has passed and, over the bound, some of the rest. Caller holds
// mu.
func (all *allowances) sweep(now time.Duration) {
	for id, a := range all.sessions {
		used := a.used()
		if a.connections == 0 && (!used.owes(now) || all.remembered() > all.max/4*3) {
			delete(all.sessions, id)
			all.closed--
		}
	}
	for network, owed := range all.addresses {
		if !owed.owes(now) || all.remembered() > all.max/4*3 {
			delete(all.addresses, network)
		}
	}
	// A sweep visits the open sessions as well: each is paid for by as many that
	// have closed.
	all.sweepAt = min(max(64, 2*all.remembered(), len(all.sessions)), all.max)
}
