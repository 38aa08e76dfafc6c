package admission

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"testing"
)

// An addressedConn has an address of the test's choice and records that it was
// closed.
type addressedConn struct {
	net.Conn
	addr   string
	closed bool
}

func (c *addressedConn) RemoteAddr() net.Addr {
	a, _ := net.ResolveTCPAddr("tcp", c.addr)
	return a
}

func (c *addressedConn) Close() error { c.closed = true; return nil }

func TestConnectionsThatAreNoWebSocketAreBounded(t *testing.T) {
	const total, perAddress = 2048, 256 // docs/limits.md
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
		p.OnStateChange(c, http.StateNew)
		return c
	}
	var first *addressedConn
	for i := range perAddress {
		c := open(fmt.Sprintf("198.51.100.1:%d", 1000+i))
		if c.closed {
			t.Fatalf("connection %d of an address is closed", i)
		}
		if first == nil {
			first = c
		}
	}
	if c := open("198.51.100.1:9"); !c.closed {
		t.Error("an address has more connections than its limit")
	}
	p.OnStateChange(first, http.StateHijacked) // became a WebSocket
	if c := open("198.51.100.1:9"); c.closed {
		t.Error("a slot was not released")
	}
	if c := open("198.51.100.2:9"); c.closed {
		t.Error("another address is refused")
	}
	var proxied []*addressedConn
	for len(p.open) < total {
		c := open("203.0.113.9:9") // many clients share a proxy
		if c.closed {
			t.Fatal("a proxy is counted by address")
		}
		proxied = append(proxied, c)
	}
	// A new one takes the place of the one that has been silent longest.
	second := open("203.0.113.9:9")
	if second.closed || len(p.open) != total {
		t.Errorf("closed: %v; %d are open, want %d", second.closed, len(p.open), total)
	}
	for c := range p.open {
		p.OnStateChange(c, http.StateActive)
	}
	if c := open("203.0.113.9:9"); !c.closed {
		t.Error("there are more connections with a request than the limit")
	}
	p.OnStateChange(proxied[7], http.StateIdle)
	p.OnStateChange(proxied[3], http.StateIdle)
	if c := open("203.0.113.9:9"); c.closed || !proxied[7].closed || proxied[3].closed {
		t.Errorf("refused: %v, closed %v and %v, want the first of two that became idle to be closed", c.closed, proxied[7].closed, proxied[3].closed)
	} else {
		proxied = append(proxied, c, second)
	}
	for _, c := range proxied {
		p.OnStateChange(c, http.StateActive)
		p.OnStateChange(c, http.StateIdle)
		p.OnStateChange(c, http.StateClosed)
		p.OnStateChange(c, http.StateClosed)
	}
	if len(p.open) != perAddress || len(p.networks) != 2 { // one was silent longest
		t.Errorf("%d open of %d addresses", len(p.open), len(p.networks))
	}
	if refused != 4 {
		t.Errorf("%d were counted as refused, want 4", refused)
	}
}
