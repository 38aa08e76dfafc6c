package admission

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// An addressedConn has an address of the test's choice and records that it was
// closed.
type addressedConn struct {
	net.Conn
	addr       string
	onlyProbes bool
	closed     bool
}

func (c *addressedConn) RemoteAddr() net.Addr {
	a, _ := net.ResolveTCPAddr("tcp", c.addr)
	return a
}

func (c *addressedConn) Close() error { c.closed = true; return nil }

func TestConnectionsThatAreNoWebSocketAreBounded(t *testing.T) {
	synctest.Test(t, connectionsThatAreNoWebSocketAreBounded)
}

func connectionsThatAreNoWebSocketAreBounded(t *testing.T) {
	const total, perAddress, reserved = 2048, 256, 32 // docs/limits.md
	refused := 0
	p := NewHTTPConns(MaxHTTPConns, func(remoteAddr string) netip.Prefix {
		addr := netip.MustParseAddrPort(remoteAddr).Addr()
		if addr == netip.MustParseAddr("203.0.113.9") {
			return netip.Prefix{} // a proxy
		}
		return netip.PrefixFrom(addr, 32)
	}, func() { refused++ })
	open := func(addr string) *addressedConn {
		c := &addressedConn{addr: addr}
		c.onlyProbes = p.Accepted(c)
		return c
	}
	each := func(conns []*addressedConn, state http.ConnState) {
		for _, c := range conns {
			p.OnStateChange(c, state)
		}
	}
	var own []*addressedConn
	for i := range perAddress {
		own = append(own, open(fmt.Sprintf("198.51.100.1:%d", 1000+i)))
		if c := own[i]; c.closed || c.onlyProbes {
			t.Fatalf("connection %d of an address: %+v", i, c)
		}
	}
	// None is closed before its first request could be read.
	if c := open("198.51.100.1:9"); c.closed || !c.onlyProbes || refused != 0 {
		t.Errorf("while the connections of an address are new: %+v", c)
	} else {
		p.OnStateChange(c, http.StateClosed)
	}
	time.Sleep(time.Second)
	// A new one takes the place of the one that has been silent longest.
	p.OnStateChange(own[0], http.StateActive)
	p.OnStateChange(own[0], http.StateIdle)
	if c := open("198.51.100.1:9"); c.closed || c.onlyProbes || own[0].closed || !own[1].closed {
		t.Errorf("over the bound of an address: %+v, closed %v and %v", c, own[0].closed, own[1].closed)
	} else {
		own[1] = c
	}
	each(own, http.StateActive)
	if c := open("198.51.100.1:9"); c.closed || !c.onlyProbes {
		t.Errorf("while the address has a request on each: %+v", c)
	} else {
		p.OnStateChange(c, http.StateClosed)
	}
	p.OnStateChange(own[2], http.StateHijacked) // became a WebSocket
	if own[2] = open("198.51.100.1:9"); own[2].onlyProbes {
		t.Error("a slot was not released")
	}
	if c := open("198.51.100.2:9"); c.closed || c.onlyProbes {
		t.Errorf("another address: %+v", c)
	}
	var proxied []*addressedConn
	for len(p.open) < total-reserved {
		c := open("203.0.113.9:9") // many clients share a proxy
		if c.closed || c.onlyProbes {
			t.Fatal("a proxy is counted by address")
		}
		proxied = append(proxied, c)
	}
	time.Sleep(time.Second)
	if c := open("203.0.113.9:9"); c.onlyProbes || !own[2].closed || len(p.open) != total-reserved {
		t.Errorf("over the bound on all: %+v, the longest silent is closed: %v; %d are open, want %d", c, own[2].closed, len(p.open), total-reserved)
	} else {
		proxied = append(proxied, c)
	}
	for c := range p.open {
		p.OnStateChange(c, http.StateActive)
	}
	// Where each has a request, new ones are for probes, the newest ones of them.
	var probes []*addressedConn
	for range reserved {
		probes = append(probes, open("203.0.113.9:9"))
	}
	p.OnStateChange(probes[0], http.StateActive)
	probes = append(probes, open("203.0.113.9:9"))
	for i, c := range probes {
		if !c.onlyProbes || c.closed != (i == 1) {
			t.Errorf("connection %d in reserve: %+v", i, c)
		}
	}
	each(probes, http.StateActive)
	if c := open("203.0.113.9:9"); !c.closed {
		t.Error("there are more connections with a request than the limit")
	}
	p.OnStateChange(proxied[7], http.StateIdle)
	p.OnStateChange(proxied[3], http.StateIdle)
	if c := open("203.0.113.9:9"); c.onlyProbes || !proxied[7].closed || proxied[3].closed {
		t.Errorf("new: %+v, closed %v and %v, want the first of two that became idle to be closed", c, proxied[7].closed, proxied[3].closed)
	} else {
		proxied = append(proxied, c)
	}
	for _, all := range [][]*addressedConn{own, proxied, probes} {
		each(all, http.StateActive)
		each(all, http.StateIdle)
		each(all, http.StateClosed)
		each(all, http.StateClosed)
	}
	if len(p.open) != 1 || len(p.networks) != 1 || len(p.reserved) != 0 || p.silent.Len() != 0 || p.silentReserved.Len() != 0 {
		t.Errorf("%d open of %d addresses, %d in reserve, %d and %d silent", len(p.open), len(p.networks), len(p.reserved), p.silent.Len(), p.silentReserved.Len())
	}
	if refused != 5 {
		t.Errorf("%d were counted as refused, want 5", refused)
	}
}

// Who connects faster than requests are read takes the reserve, and then pushes out the
// connections that are silent longest, new or not.
func TestAFloodOfNewConnectionsHoldsNobodyOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewHTTPConns(16, func(string) netip.Prefix { return netip.Prefix{} }, func() {})
		var conns []*addressedConn
		for i := range 17 {
			c := &addressedConn{addr: "203.0.113.9:9"}
			if c.onlyProbes = p.Accepted(c); c.onlyProbes != (i == 14 || i == 15) {
				t.Errorf("connection %d: only for probes %v", i, c.onlyProbes)
			}
			conns = append(conns, c)
		}
		for i, c := range conns {
			if c.closed != (i == 0) {
				t.Errorf("connection %d: closed %v", i, c.closed)
			}
		}
	})
}

// The new connections of one address take no more than half of the reserve: others' probes
// have a place.
func TestOneAddressLeavesAReserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewHTTPConns(MaxHTTPConns, func(string) netip.Prefix { return netip.MustParsePrefix("198.51.100.1/32") }, func() {})
		reserved := 0
		for range 400 {
			if p.Accepted(&addressedConn{addr: "198.51.100.1:9"}) {
				reserved++
			}
		}
		if reserved != 16 {
			t.Errorf("%d connections of an address are in reserve, want half of 32", reserved)
		}
	})
}
