package http

import (
	"context"
	"net/http"
	"net/netip"
	"strings"
)

// A caller is who made a request, as far as this service can know: it is
// found once, at the door, and goes with the request's context.
type caller struct {
	// id names the request in answers and log lines.
	id string
	// addr is the client's own address, without a port. It is the peer's unless
	// trusted proxies vouch for another.
	addr netip.Addr
	// counted says that the address is worth counting connections by.
	countByAddress bool
	// host is what the client asked for, host[:port].
	host string
	// proto is http or https, the scheme that the client used; "" where nobody
	// who would know has told.
	proto string
	// key is the name of the API key that let the request in, user whose token
	// did; "" for none.
	key, user string
}

type callerKey struct{}

func withCaller(r *http.Request, c *caller) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), callerKey{}, c))
}

// callerOf returns who made a request that came through identify.
func callerOf(r *http.Request) *caller {
	c, _ := r.Context().Value(callerKey{}).(*caller)
	return c
}

// proxies are the networks whose word about a client is believed.
type proxies []netip.Prefix

func (p proxies) trust(a netip.Addr) bool {
	for _, prefix := range p {
		if prefix.Contains(a) {
			return true
		}
	}
	return false
}

// caller finds out who made a request. What X-Forwarded-For, -Host and -Proto
// say counts only when a trusted proxy is the peer; other headers that some
// proxies write (X-Real-Ip, Forwarded) never do, since a proxy that does not
// write them hands on what the client invented.
func (p proxies) caller(r *http.Request) *caller {
	peer := parseAddr(r.RemoteAddr)
	c := &caller{addr: peer, host: r.Host, countByAddress: isPublicAddr(peer)}
	if !peer.IsValid() || !p.trust(peer) {
		return c
	}
	c.countByAddress = true
	c.addr = p.client(peer, r.Header.Values("X-Forwarded-For"))
	if hosts := r.Header.Values("X-Forwarded-Host"); len(hosts) > 0 {
		c.host = singleValue(hosts)
	}
	if protos := r.Header.Values("X-Forwarded-Proto"); len(protos) > 0 {
		c.proto = forwardedProto(singleValue(protos))
	}
	return c
}

// client walks from the peer towards the client, over every entry that a
// trusted proxy wrote. Each proxy appends whom it heard, so the entries count
// from the right, over all lines; the first that is no proxy of ours is the
// client, and what stands left of it is its own invention. An entry that is no
// address ends the walk at who wrote it.
func (p proxies) client(peer netip.Addr, lines []string) netip.Addr {
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
			if last = a; !p.trust(a) {
				return a
			}
		}
	}
	return last
}

// cutLastComma returns what follows the last comma, what stands before it, and
// whether there was one.
func cutLastComma(s string) (last, rest string, more bool) {
	i := strings.LastIndexByte(s, ',')
	if i < 0 {
		return s, "", false
	}
	return s[i+1:], s[:i], true
}

// parseAddr reads an address with or without a port, IPv6 with or without
// brackets. Zones are dropped: they mean something on this machine only. An
// IPv4 address in IPv6's clothes is the IPv4 address. The zero Addr is none.
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

// singleValue returns the one value of a header that must not have several: of two
// nobody knows which one is true, and "" matches nothing.
func singleValue(values []string) string {
	if len(values) != 1 || strings.Contains(values[0], ",") {
		return ""
	}
	return strings.TrimSpace(values[0])
}

// forwardedProto reads X-Forwarded-Proto; some proxies name the WebSocket's
// scheme. What it can't read comes back as is and equals no scheme.
func forwardedProto(s string) string {
	switch s = strings.ToLower(s); s {
	case "http", "ws":
		return "http"
	case "https", "wss":
		return "https"
	}
	return "unknown"
}

// isPublicAddr says whether an address can be a stranger's own. Behind a peer on
// loopback or in a private network stands a proxy that nobody named, or the
// house itself: to count its connections would bound everybody together.
func isPublicAddr(a netip.Addr) bool {
	return a.IsValid() && !a.IsLoopback() && !a.IsPrivate() && !a.IsLinkLocalUnicast()
}

// ipv6PrefixBits is what one subscriber of IPv6 has at least: counting single
// addresses would bound nobody.
const ipv6PrefixBits = 64

// addressPrefix is what connections are counted by: an IPv4 address, or the /64 of
// an IPv6 one.
func addressPrefix(a netip.Addr) netip.Prefix {
	bits := a.BitLen()
	if a.Is6() {
		bits = ipv6PrefixBits
	}
	p, _ := a.Prefix(bits) // in range by construction; zero for no address
	return p
}
