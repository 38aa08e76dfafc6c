package http

import (
	"net/http"
	"net/netip"
	"strings"

	"switchyard/internal/protocol"
)

// hosts are the names of the service, without ports. If there are none, any name is
// accepted. Against DNS rebinding: if a page makes its own name resolve to this
// service, the browser sees one origin, and so does the check of Origin. Only the
// Host header shows the wrong name.
type hosts struct {
	exact    map[string]bool
	suffixes []string // of patterns: .example.com
}

// newHosts takes a list that internal/config has validated.
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

// isAddressOrSingleLabel reports whether a host is an address, or a name without a
// dot as containers and localhost have. An attacker can't own such a name, and
// rebinding needs one.
func isAddressOrSingleLabel(host string) bool {
	a, ok := parseAuthority(host)
	if !ok {
		return false
	}
	_, err := netip.ParseAddr(strings.Trim(a.host, "[]"))
	return err == nil || isLabel(a.host)
}

// errUnknownHost refuses a request for a host that is not in ALLOWED_HOSTS.
var errUnknownHost = &protocol.Error{Code: codeMisdirected, Message: "this service does not answer to that host; see ALLOWED_HOSTS"}

// knownHost admits requests for one of ALLOWED_HOSTS.
func (s *Server) knownHost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.hosts.allow(callerOf(r).host) {
			s.refuse(w, r, errUnknownHost)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// probeHost is knownHost for probes, which also use an address or a name of the
// internal network.
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

// adminOnly protects the admin listener, which has no key, against pages in a
// browser on this machine. Such a page can reach loopback, under a name of its own
// or without reading the answer.
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

// internalOnly answers 404 to requests from outside: those with a header of a
// proxy, and those from a public address. Proxies should not route this path at
// all. This is for a proxy that does, and for a port that is published past all
// proxies.
func (s *Server) internalOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, name := range forwardedHeaders {
			if len(r.Header.Values(name)) > 0 { // even an empty one: a proxy may append to it
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

// forwardedHeaders are the headers in which proxies name clients.
var forwardedHeaders = []string{"X-Forwarded-For", "Forwarded", "X-Real-Ip"}

// sharedAddressSpace is RFC 6598. It is not routed on the Internet, and some VPNs
// assign it to internal machines.
var sharedAddressSpace = netip.MustParsePrefix("100.64.0.0/10")
