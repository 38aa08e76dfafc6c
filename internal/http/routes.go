package http

import (
	"cmp"
	"net/http"
	"strings"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"switchyard/internal/pages"
)

// routes returns the routes of the public listener.
func (s *Server) routes(g *guard) http.Handler {
	respond, calls, health := s.respond, newAPI(s), probes{s}
	r := chi.NewRouter()
	r.Use(trimSlashes, middleware.GetHead, g.withCallerInfo, respond.recoverPanics, respond.onlyProbes)
	r.With(g.knownHost).Get("/ws", newUpgrader(s).upgrade) // not in countRequests, since it hijacks the connection
	r.Group(func(r chi.Router) {
		r.Use(respond.countRequests)
		r.With(g.probeHost).Get("/healthz", respond.adapt(health.healthz))
		r.With(g.probeHost).Get("/readyz", respond.adapt(health.readyz))
		r.With(g.probeHost, g.internalOnly).Method(http.MethodGet, "/metrics", promhttp.HandlerFor(s.cfg.Gatherer, promhttp.HandlerOpts{}))
		known := r.With(g.knownHost)
		known.Route("/v1", calls.routes)
		for path, file := range pages.Handlers(s.cfg.Open) {
			known.Get(path, file)
		}
		r.NotFound(respond.adapt(func(http.ResponseWriter, *http.Request) error { return errNotFound }))
		r.MethodNotAllowed(respond.adapt(methodNotAllowed))
	})
	return r
}

// trimSlashes routes the socket's path with slashes too many, which some libraries
// write. A browser hides a refusal, and follows no redirect. Other paths are matched as
// they are: a proxy may deny some of them by their names.
func trimSlashes(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if path := socketPath(r); path != "" {
			chi.RouteContext(r.Context()).RoutePath = path
		}
		next.ServeHTTP(w, r)
	})
}

// socketPath returns /ws for /ws/, //ws and the like, and "" for other paths.
func socketPath(r *http.Request) string {
	if strings.Trim(r.URL.EscapedPath(), "/") == "ws" {
		return "/ws"
	}
	return ""
}

// methodNotAllowed lists the methods of the route in Allow (RFC 9110 §15.5.6).
func methodNotAllowed(w http.ResponseWriter, r *http.Request) error {
	routes := chi.RouteContext(r.Context()).Routes
	for _, m := range []string{http.MethodGet, http.MethodPost, http.MethodOptions} {
		if routes.Match(chi.NewRouteContext(), m, cmp.Or(socketPath(r), r.URL.Path)) {
			w.Header().Add("Allow", m)
		}
	}
	return errMethod
}
