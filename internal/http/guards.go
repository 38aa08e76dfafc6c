package http

import (
	"net/http"

	"switchyard/internal/ingress"
	"switchyard/internal/protocol"
)

// errUnknownHost refuses a request for a host that is not in ALLOWED_HOSTS.
var errUnknownHost = &protocol.Error{Code: codeMisdirected, Message: "this service does not answer to that host; see ALLOWED_HOSTS"}

// knownHost admits requests for one of ALLOWED_HOSTS.
func (s *Server) knownHost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.hosts.Allow(callerOf(r).Host) {
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
		if ingress.IsAddressOrSingleLabel(callerOf(r).Host) {
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
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := callerOf(r)
		switch {
		case !ingress.IsAddressOrSingleLabel(c.Host):
			s.refuse(w, r, errUnknownHost)
		case ingress.FromForeignPage(r, &c.Sender):
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
		if !ingress.IsInternal(r, &callerOf(r).Sender) {
			s.refuse(w, r, errNotFound)
			return
		}
		next.ServeHTTP(w, r)
	})
}
