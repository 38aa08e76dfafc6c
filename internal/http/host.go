package http

import (
	"net/http"
	"net/netip"
	"strings"

	"switchyard/internal/protocol"
)

// hosts are the names that the service answers to, ports aside; with none it
// answers to any. A page that had its own name resolve to this service
// (DNS rebinding) would be of the same origin to the browser and to us: its
// Host gives it away.
type hosts struct {
	exact    map[string]bool
	suffixes []string // of patterns: .example.com
}

// newHosts takes what internal/config has checked.
func newHosts(list []string) hosts {
	h := hosts{exact: map[string]bool{}}
	for _, item := range list {
		item = strings.ToLower(item)
		if suffix, ok := strings.CutPrefix(item, "*"); ok {
			h.suffixes = append(h.suffixes, suffix)
		} else if addr, err := netip.ParseAddr(item); err == nil && addr.Is6() {
			h.exact["["+addr.String()+"]"] = true
		} else {
			h.exact[item] = true
		}
	}
	return h
}

func (h *hosts) allow(host string) bool {
	if len(h.exact) == 0 && len(h.suffixes) == 0 {
		return true
	}
	a, ok := parseAuthority(host)
	if !ok {
		return false
	}
	for _, suffix := range h.suffixes {
		if label, ok := strings.CutSuffix(a.host, suffix); ok && isLabel(label) {
			return true
		}
	}
	return h.exact[a.host]
}

// isAddressOrSingleLabel says whether a host can't be a name that a stranger owns: an
// address, or a name without a dot, as containers and localhost have. Rebinding
// needs a name of the attacker's.
func isAddressOrSingleLabel(host string) bool {
	a, ok := parseAuthority(host)
	if !ok {
		return false
	}
	_, err := netip.ParseAddr(strings.Trim(a.host, "[]"))
	return err == nil || isLabel(a.host)
}

// errUnknownHost refuses a request for somebody else.
var errUnknownHost = &protocol.Error{Code: codeMisdirected, Message: "this service does not answer to that host; see ALLOWED_HOSTS"}

// knownHost lets requests in that name one of ALLOWED_HOSTS.
func (s *Server) knownHost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.hosts.allow(callerOf(r).host) {
			s.refuse(w, r, errUnknownHost)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// probeHost is knownHost for probes: they ask by address, or by a name of the
// house.
func (s *Server) probeHost(next http.Handler) http.Handler {
	known := s.knownHost(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if isAddressOrSingleLabel(callerOf(r).host) {
			next.ServeHTTP(w, r)
			return
		}
		known.ServeHTTP(w, r)
	})
}

// adminOnly guards the admin listener, which has no key, against pages in a
// browser on this machine: they reach loopback as well as anybody here, with
// their own name for it or without reading the answer.
func (s *Server) adminOnly(next http.Handler) http.Handler {
	var noOrigins origins
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := callerOf(r)
		site := r.Header.Get("Sec-Fetch-Site")
		switch {
		case !isAddressOrSingleLabel(c.host):
			s.refuse(w, r, errUnknownHost)
		case !noOrigins.allow(r), site != "" && site != "none" && site != "same-origin":
			s.refuse(w, r, errOrigin)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// internalOnly answers whoever comes from outside as if there were nothing here:
// what a proxy handed on, of our own or not, and what comes from an address that
// is a stranger's. Proxies should not route it; this is for where one does, or
// where the port is published past all of them.
func (s *Server) internalOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, name := range forwardedHeaders {
			if len(r.Header.Values(name)) > 0 { // also an empty one: a proxy may add its own after it
				s.refuse(w, r, errNotFound)
				return
			}
		}
		if a := callerOf(r).addr; isPublicAddr(a) && !sharedAddressSpace.Contains(a) {
			s.refuse(w, r, errNotFound)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// forwardedHeaders are the headers by which proxies tell of clients.
var forwardedHeaders = []string{"X-Forwarded-For", "Forwarded", "X-Real-Ip"}

// sharedAddressSpace is RFC 6598: no address of the Internet's, and what some VPNs give to
// machines of the house.
var sharedAddressSpace = netip.MustParsePrefix("100.64.0.0/10")
