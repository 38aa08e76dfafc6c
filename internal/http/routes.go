package http

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"switchyard/internal/protocol"
	"switchyard/web"
)

// A handler answers a request or returns an error. adapt turns the error into a
// problem document, which is counted and logged in one place.
type handler func(http.ResponseWriter, *http.Request) error

func (s *Server) routes() http.Handler {
	r := chi.NewRouter()
	r.Use(middleware.GetHead, s.withCallerInfo, s.recoverPanics)
	r.With(s.knownHost).Get("/ws", s.upgrade) // not in countRequests, since it hijacks the connection
	r.Group(func(r chi.Router) {
		r.Use(s.countRequests)
		r.With(s.probeHost).Get("/healthz", s.adapt(s.healthz))
		r.With(s.probeHost).Get("/readyz", s.adapt(s.readyz))
		r.With(s.probeHost, s.internalOnly).Method(http.MethodGet, "/metrics", promhttp.HandlerFor(s.cfg.Gatherer, promhttp.HandlerOpts{}))
		known := r.With(s.knownHost)
		known.Route("/v1", func(r chi.Router) {
			r.With(s.requireReader).Get("/rooms/{room}/messages", s.adapt(s.history))
			r = r.With(s.requireKey)
			r.Post("/messages", s.adapt(s.publishBatch))
			r.Get("/rooms", s.adapt(s.listRooms))
			r.Post("/rooms/{room}/messages", s.adapt(s.publish))
			r.Post("/rooms/{room}/signals", s.adapt(s.signal))
			r.Get("/rooms/{room}/presence", s.adapt(s.presence))
			r.Post("/users/{user}/disconnect", s.adapt(s.disconnectUser))
		})
		for _, f := range pageFiles() {
			known.Get("/"+f, s.file(f))
		}
		known.Get("/", s.file(pageName))
		r.NotFound(s.adapt(func(http.ResponseWriter, *http.Request) error { return errNotFound }))
		r.MethodNotAllowed(s.adapt(methodNotAllowed))
	})
	return r
}

// methodNotAllowed lists the methods of the route in Allow (RFC 9110 §15.5.6).
func methodNotAllowed(w http.ResponseWriter, r *http.Request) error {
	routes := chi.RouteContext(r.Context()).Routes
	for _, m := range []string{http.MethodGet, http.MethodPost} {
		if routes.Match(chi.NewRouteContext(), m, r.URL.Path) {
			w.Header().Add("Allow", m)
		}
	}
	return errMethod
}

// pageFiles returns the names of the page's files, without the page itself.
func pageFiles() []string {
	entries, err := web.Files.ReadDir(".")
	if err != nil {
		panic(err) // the files are built into the program
	}
	var names []string
	for _, e := range entries {
		if e.Name() != pageName {
			names = append(names, e.Name())
		}
	}
	return names
}

// contentTypes are types that the host's table does not know or has wrong: .ts is a
// video for some.
var contentTypes = map[string]string{
	".yaml": "application/yaml", // RFC 9512
	".ts":   "text/plain; charset=utf-8",
}

// file serves one of the page's files. The page may load from and connect to its
// own server only.
func (s *Server) file(name string) http.HandlerFunc {
	content, tag := s.content(name)
	return func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-cache")
		// A page of another origin may import the client, which needs CORS for a
		// module. ALLOWED_ORIGINS decides whether that page may connect.
		h.Set("Access-Control-Allow-Origin", "*")
		if kind := contentTypes[path.Ext(name)]; kind != "" {
			h.Set("Content-Type", kind)
		}
		h.Set("ETag", tag)
		http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(content))
	}
}

// content returns a file and an ETag that changes with it. A browser or a CDN that
// has the file already is answered 304.
func (s *Server) content(name string) (content []byte, tag string) {
	content = s.page
	if name != pageName {
		var err error
		if content, err = web.Files.ReadFile(name); err != nil {
			panic(err) // the files are built into the program
		}
	}
	sum := sha256.Sum256(content)
	return content, fmt.Sprintf(`"%x"`, sum[:12])
}

const pageName = "index.html"

// page returns index.html. It has a warning if the service is open to everybody.
func page(open bool) []byte {
	b, err := web.Files.ReadFile(pageName)
	if err != nil {
		panic(err) // the files are built into the program
	}
	before, rest, found := bytes.Cut(b, []byte("<!--open-->"))
	_, after, closed := bytes.Cut(rest, []byte("<!--/open-->"))
	if !found || !closed {
		panic("the page has lost its warning")
	}
	if open {
		return b
	}
	return slices.Concat(before, after)
}

// withCallerInfo determines the caller of each request, and gives it an id that is
// in the answer and in log lines.
func (s *Server) withCallerInfo(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := &caller{id: rand.Text(), Sender: s.proxies.Sender(r)}
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

// countRequests counts requests by route pattern, a closed set.
func (s *Server) countRequests(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		started := time.Now()
		ww := middleware.NewWrapResponseWriter(w, r.ProtoMajor)
		next.ServeHTTP(ww, r)
		route := chi.RouteContext(r.Context()).RoutePattern()
		if route == "" || ww.Status() == http.StatusNotFound && route == "/*" {
			route = "none"
		}
		status := ww.Status()
		if status == 0 {
			status = http.StatusOK
		}
		s.metrics.requests.WithLabelValues(route, methodLabel(r.Method), strconv.Itoa(status)).Inc()
		s.metrics.requestDuration.WithLabelValues(route).Observe(time.Since(started).Seconds())
	})
}

// methodLabel limits the label to known methods.
func methodLabel(m string) string {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions, http.MethodPatch:
		return m
	}
	return "other"
}

// adapt turns a handler into an http.HandlerFunc.
func (s *Server) adapt(h handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := h(w, r); err != nil {
			s.refuse(w, r, err)
		}
	}
}

// recoverPanics answers a request whose handler panics, and logs the panic with its
// stack. Other requests are not affected.
func (s *Server) recoverPanics(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			fault := recover()
			if fault == nil {
				return
			}
			if fault == http.ErrAbortHandler { //nolint:errorlint // net/http compares it by identity
				panic(fault)
			}
			s.refuse(w, r, fmt.Errorf("panic: %v\n%s", fault, debug.Stack()))
		}()
		next.ServeHTTP(w, r)
	})
}

// refuse writes a problem document. It logs an internal error in full, and answers
// with a general text.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	p := problemFor(err)
	p.RequestID = callerOf(r).id
	level := slog.LevelDebug
	switch {
	case errors.Is(err, errHandshakeRate), errors.Is(err, errNoCapacity):
		// A stranger may cause any number of these. They are in the metrics and in
		// the audit log, which is bounded.
	case p.Code == protocol.CodeUnavailable:
		level = slog.LevelWarn
	case p.Status >= http.StatusInternalServerError:
		level = slog.LevelError
	}
	s.auditRefusal(r, err, &p)
	s.log.Log(r.Context(), level, "request refused", "method", r.Method, "path", r.URL.Path,
		"status", p.Status, "code", p.Code, "request_id", p.RequestID, "remote", callerOf(r).Addr, "error", err)
	p.write(w)
}
