// Package ingress judges who may come in by the request alone: its sender behind
// trusted proxies, its origin, and its host. It knows no user and no configuration
// but its lists.
package ingress

import (
	"net/http"
	"net/netip"
	"strings"
)

// A Sender is what a request says about where it comes from.
type Sender struct {
	// Addr is the client's own address, without a port. It is the peer's address
	// unless a trusted proxy names another.
	Addr netip.Addr
	// Network is the network by which connections of this address are counted: an
	// IPv4 address, or the /64 of an IPv6 address. It is zero if they are not
	// counted by address.
	Network netip.Prefix
	// Host is the host that the client requested, host[:port].
	Host string
	// ports are ports that Host may have had, if it has none: some proxies leave
	// the port out of Host and name it elsewhere.
	ports []string
	// proto is the scheme that the client used, http or https; "" if no trusted
	// proxy named it.
	proto string
}

// Proxies are the networks of trusted proxies.
type Proxies []netip.Prefix

func (p Proxies) trusts(a netip.Addr) bool {
	for _, prefix := range p {
		if prefix.Contains(a) {
			return true
		}
	}
	return false
}

// Sender determines where a request comes from. The headers of proxies count only
// if the peer is a trusted proxy. Where several trusted proxies wrote a value, the
// one that the client reached has seen what the browser sees. X-Real-Ip never counts:
// a proxy that does not write it passes on what the client invented.
func (p Proxies) Sender(r *http.Request) Sender {
	peer := parseAddr(r.RemoteAddr)
	if !peer.IsValid() || !p.trusts(peer) {
		return Sender{Addr: peer, Network: p.peerNetwork(peer), Host: r.Host}
	}
	f := readForwarding(r.Header)
	addr, first := p.client(peer, f.clients)
	s := Sender{Addr: addr, Host: r.Host, proto: forwardedProto(valueOf(first, f.protos))}
	if !p.trusts(addr) { // A proxy that names no client is not counted: all behind it would share one limit.
		s.Network = network(addr)
	}
	if host := valueOf(first, f.hosts); host != "" {
		s.Host = host
		s.ports = portsOf(host, r.Host)
	}
	if port := valueOf(first, f.ports); port != "" {
		s.ports = append(s.ports, port)
	}
	return s
}

// portsOf returns the port of another header's host, if it is the same host.
func portsOf(host, other string) []string {
	a, ok := parseAuthority(host)
	b, alsoOK := parseAuthority(other)
	if !ok || !alsoOK || a.host != b.host || b.port == "" {
		return nil
	}
	return []string{b.port}
}

// client finds the client's address in X-Forwarded-For. Each proxy appends the
// address of its peer, so the entries are read from the right, across all lines. The
// first address that is no trusted proxy is the client; everything left of it is
// the client's invention. An invalid entry ends the search at the proxy that wrote
// it. wrote is the number of the proxy that wrote the last entry read, which is the
// trusted proxy that the client reached; 1 is the peer.
func (p Proxies) client(peer netip.Addr, lines []string) (last netip.Addr, wrote int) {
	last = peer
	for entry := range fromRight(lines) {
		wrote++
		a := parseAddr(entry)
		if !a.IsValid() {
			break
		}
		if last = a; !p.trusts(a) {
			break
		}
	}
	return last, max(wrote, 1)
}

// parseAddr parses an address with or without a port, IPv6 with or without
// brackets. It drops zones, which mean something on one machine only, and converts
// an IPv4-mapped IPv6 address to IPv4. It returns the zero Addr for invalid text.
func parseAddr(s string) netip.Addr {
	a, err := netip.ParseAddr(s)
	if err != nil {
		if ap, err := netip.ParseAddrPort(s); err == nil {
			a = ap.Addr()
		} else if inner, ok := strings.CutPrefix(s, "["); ok && strings.HasSuffix(inner, "]") {
			a, _ = netip.ParseAddr(strings.TrimSuffix(inner, "]"))
		}
	}
	return a.WithZone("").Unmap()
}

// isPublic reports whether an address may belong to one client on the Internet.
// A peer on loopback or in a private network is an internal client or a proxy that
// is not configured as trusted. A limit for its address would limit all clients
// behind it together.
func isPublic(a netip.Addr) bool {
	return a.IsValid() && !a.IsLoopback() && !a.IsPrivate() && !a.IsLinkLocalUnicast()
}

// ipv6PrefixBits is the smallest network of one IPv6 subscriber. A limit for single
// addresses would limit nobody.
const ipv6PrefixBits = 64

// network returns the network by which connections of an address are counted.
func network(a netip.Addr) netip.Prefix {
	bits := a.BitLen()
	if a.Is6() {
		bits = ipv6PrefixBits
	}
	p, _ := a.Prefix(bits) // in range by construction; zero for the zero Addr
	return p
}

// PeerNetwork returns the network by which connections of a peer are counted as long
// as no header was read.
func (p Proxies) PeerNetwork(remoteAddr string) netip.Prefix {
	return p.peerNetwork(parseAddr(remoteAddr))
}

// peerNetwork returns the zero Prefix for trusted proxies and internal addresses,
// since many clients share them.
func (p Proxies) peerNetwork(peer netip.Addr) netip.Prefix {
	if !isPublic(peer) || p.trusts(peer) {
		return netip.Prefix{}
	}
	return network(peer)
}
