package http

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"switchyard/internal/protocol"
	"switchyard/web"
)

// A handler answers a request or says why not; one place turns the error into
// a problem document, counts and logs it.
type handler func(http.ResponseWriter, *http.Request) error

func (s *Server) routes() http.Handler {
	r := chi.NewRouter()
	r.Get("/ws", s.upgrade) // outside the middleware: it takes the connection over
	r.Group(func(r chi.Router) {
		r.Use(s.identify, s.observe)
		r.Get("/healthz", s.adapt(s.healthz))
		r.Get("/readyz", s.adapt(s.readyz))
		r.Method(http.MethodGet, "/metrics", promhttp.HandlerFor(s.cfg.Gatherer, promhttp.HandlerOpts{}))
		r.Route("/v1/rooms/{room}/messages", func(r chi.Router) {
			r.Use(s.requireKey)
			r.Post("/", s.adapt(s.publish))
			r.Get("/", s.adapt(s.history))
		})
		for _, f := range pageFiles() {
			r.Get("/"+f, s.file(f))
		}
		r.Get("/", s.file("index.html"))
		r.NotFound(s.adapt(func(http.ResponseWriter, *http.Request) error { return errNotFound }))
		r.MethodNotAllowed(s.adapt(func(http.ResponseWriter, *http.Request) error { return errMethod }))
	})
	return r
}

// pageFiles are the names of what the page is made of.
func pageFiles() []string {
	entries, err := web.Files.ReadDir(".")
	if err != nil {
		panic(err) // built into the program
	}
	var names []string
	for _, e := range entries {
		if e.Name() != "index.html" {
			names = append(names, e.Name())
		}
	}
	return names
}

// file serves one of the page's files. The page may load and reach nothing
// but its own server.
func (s *Server) file(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-cache")
		http.ServeFileFS(w, r, web.Files, name)
	}
}

type contextKey int

const (
	requestIDKey contextKey = iota
	apiNameKey
)

// identify gives each request an id, which answers and log lines bear.
func (s *Server) identify(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := rand.Text()
		w.Header().Set("X-Request-Id", id)
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), requestIDKey, id)))
	})
}

func requestID(r *http.Request) string {
	id, _ := r.Context().Value(requestIDKey).(string)
	return id
}

// observe counts requests by route pattern, a closed set.
func (s *Server) observe(next http.Handler) http.Handler {
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
		s.metrics.requests.WithLabelValues(route, method(r.Method), strconv.Itoa(status)).Inc()
		s.metrics.requestDuration.WithLabelValues(route).Observe(time.Since(started).Seconds())
	})
}

// method keeps the label to the methods there are.
func method(m string) string {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions, http.MethodPatch:
		return m
	}
	return "other"
}

// adapt turns a handler's error into the answer.
func (s *Server) adapt(h handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := h(w, r); err != nil {
			s.refuse(w, r, err)
		}
	}
}

// refuse answers with a problem document. What is our fault is logged whole
// and told in general words.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	p := problemFor(err)
	p.RequestID = requestID(r)
	if p.Status >= http.StatusInternalServerError {
		level := slog.LevelError
		if p.Code == protocol.CodeUnavailable {
			level = slog.LevelWarn
		}
		s.log.Log(r.Context(), level, "request failed", "method", r.Method, "path", r.URL.Path,
			"status", p.Status, "request_id", p.RequestID, "error", err)
	}
	var e *protocol.Error
	if errors.As(err, &e) && e.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(e.RetryAfter.Round(time.Second).Seconds())))
	}
	p.write(w)
}
