package http

import (
	"crypto/rand"
	"net/http"

	"switchyard/internal/ingress"
	"switchyard/internal/protocol"
)

// errUnknownHost refuses a request for a host that is not in ALLOWED_HOSTS.
var errUnknownHost = &protocol.Error{Code: codeMisdirected, Message: "this service does not answer to that host; see ALLOWED_HOSTS"}

// A guard admits requests by their host, origin and sender.
type guard struct {
	respond *responder
	hosts   ingress.Hosts
	proxies ingress.Proxies
}

// withCallerInfo determines the caller of each request, and gives it an id that is
// in the answer and in log lines.
func (g *guard) withCallerInfo(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := &caller{id: rand.Text(), Sender: g.proxies.Sender(r)}
		w.Header().Set("X-Request-Id", c.id)
		if len(r.TransferEncoding) > 0 {
			// net/http reads a request with Transfer-Encoding and Content-Length by
			// its chunks, and does not say so. A proxy that went by the length
			// would see another request in the body. Closing the connection
			// prevents that such a request is answered (RFC 9112 §6.1).
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, withCaller(r, c))
	})
}

// knownHost admits requests for one of ALLOWED_HOSTS.
func (g *guard) knownHost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if from := &callerOf(r).Sender; !g.hosts.Allow(from.Host) {
			g.respond.refuse(w, r, &detailedError{errUnknownHost, "the request is for " + from.ShownHost()})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// probeHost is knownHost for probes, which also use an address or a name of the
// internal network.
func (g *guard) probeHost(next http.Handler) http.Handler {
	known := g.knownHost(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if ingress.IsAddressOrSingleLabel(callerOf(r).Host) {
			next.ServeHTTP(w, r)
			return
		}
		known.ServeHTTP(w, r)
	})
}

// adminOnly protects the admin listener, which has no key, against pages in a
// browser on this machine.
func (g *guard) adminOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := callerOf(r)
		switch {
		case !ingress.IsAddressOrSingleLabel(c.Host):
			g.respond.refuse(w, r, errUnknownHost)
		case ingress.FromForeignPage(r, &c.Sender):
			g.respond.refuse(w, r, errOrigin)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// internalOnly answers 404 to requests from outside: those with a header of a
// proxy, and those from a public address. Proxies should not route this path at
// all. This is for a proxy that does, and for a port that is published past all
// proxies. A name with a dot, which a page may have made resolve to this service, counts
// only if ALLOWED_HOSTS lists it.
func (g *guard) internalOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch c := callerOf(r); {
		case !ingress.IsInternal(r, &c.Sender):
			g.respond.refuse(w, r, errNotFound)
		case !ingress.IsAddressOrSingleLabel(c.Host) && !g.hosts.List(c.Host):
			g.respond.refuse(w, r, errUnknownHost)
		default:
			next.ServeHTTP(w, r)
		}
	})
}
