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

// Sender determines where a request comes from. X-Forwarded-For, -Host and -Proto
// count only if the peer is a trusted proxy. Other headers that some proxies write
// (X-Real-Ip, Forwarded) never count: a proxy that does not write them passes on
// what the client invented.
func (p Proxies) Sender(r *http.Request) Sender {
	peer := parseAddr(r.RemoteAddr)
	if !peer.IsValid() || !p.trusts(peer) {
		return Sender{Addr: peer, Network: p.peerNetwork(peer), Host: r.Host}
	}
	addr := p.client(peer, r.Header.Values("X-Forwarded-For"))
	s := Sender{Addr: addr, Network: network(addr), Host: r.Host}
	if hosts := r.Header.Values("X-Forwarded-Host"); len(hosts) > 0 {
		s.Host = singleValue(hosts)
	}
	if protos := r.Header.Values("X-Forwarded-Proto"); len(protos) > 0 {
		s.proto = forwardedProto(singleValue(protos))
	}
	return s
}

// client finds the client's address in X-Forwarded-For. Each proxy appends the
// address of its peer, so the entries are read from the right, across all lines. The
// first address that is no trusted proxy is the client; everything left of it is
// the client's invention. An invalid entry ends the search at the proxy that wrote
// it.
func (p Proxies) client(peer netip.Addr, lines []string) netip.Addr {
	last := peer
	for i := len(lines) - 1; i >= 0; i-- {
		rest, more := lines[i], true
		for more {
			var entry string
			entry, rest, more = cutLastComma(rest)
			a := parseAddr(strings.TrimSpace(entry))
			if !a.IsValid() {
				return last
			}
			if last = a; !p.trusts(a) {
				return a
			}
		}
	}
	return last
}

// cutLastComma splits s around its last comma. more says whether there was one.
func cutLastComma(s string) (last, rest string, more bool) {
	i := strings.LastIndexByte(s, ',')
	if i < 0 {
		return s, "", false
	}
	return s[i+1:], s[:i], true
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

// singleValue returns the value of a header that must have only one. For several it
// returns "", which matches nothing, because it is not known which value is true.
func singleValue(values []string) string {
	if len(values) != 1 || strings.Contains(values[0], ",") {
		return ""
	}
	return strings.TrimSpace(values[0])
}

// forwardedProto normalizes X-Forwarded-Proto, for which some proxies write the
// WebSocket's scheme. It returns a text that equals no scheme for anything else.
func forwardedProto(s string) string {
	switch s = strings.ToLower(s); s {
	case "http", "ws":
		return "http"
	case "https", "wss":
		return "https"
	}
	return "unknown"
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
