package http

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/pprof"

	"github.com/go-chi/chi/v5"

	"switchyard/internal/message"
)

// A Component is one part's state in /readyz.
type Component struct {
	Name string
	// State is up, down, or what is wrong in a word or two.
	State string
	// Needed says that the node is not ready while the component is not up.
	Needed bool
}

// healthz tells that the process lives, and nothing else: a probe that
// restarts on it must not restart for a database that is away.
func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
}

// readyz tells whether the node may take new connections, and the state of
// each component.
func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) error {
	status, word := http.StatusOK, "ready"
	answer := map[string]string{}
	for _, c := range s.cfg.Ready() {
		answer[c.Name] = c.State
		if c.Needed && c.State != "up" {
			status, word = http.StatusServiceUnavailable, "not ready"
		}
	}
	if s.isStopping() {
		status, word = http.StatusServiceUnavailable, "draining"
	}
	answer["status"], answer["node"] = word, s.cfg.Node
	if status != http.StatusOK {
		w.Header().Set("Retry-After", "1")
	}
	return writeJSON(w, status, answer)
}

// adminRoutes is for operators on the host: log level and profiles.
func (s *Server) adminRoutes() http.Handler {
	r := chi.NewRouter()
	r.Use(s.identify, s.guard)
	r.NotFound(s.adapt(func(http.ResponseWriter, *http.Request) error { return errNotFound }))
	r.MethodNotAllowed(s.adapt(func(http.ResponseWriter, *http.Request) error { return errMethod }))
	r.Get("/log-level", s.adapt(s.logLevel))
	r.Put("/log-level", s.adapt(s.setLogLevel))
	r.HandleFunc("/debug/pprof/*", pprof.Index)
	r.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	r.HandleFunc("/debug/pprof/profile", pprof.Profile)
	r.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	r.HandleFunc("/debug/pprof/trace", pprof.Trace)
	r.Get("/debug/rooms", s.adapt(func(w http.ResponseWriter, _ *http.Request) error {
		return writeJSON(w, http.StatusOK, s.cfg.Hub.Rooms())
	}))
	return r
}

func (s *Server) logLevel(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, map[string]string{"level": s.cfg.LogLevel.Level().String()})
}

// setLogLevel changes the level while the process runs: PUT /log-level?level=debug.
func (s *Server) setLogLevel(w http.ResponseWriter, r *http.Request) error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(r.URL.Query().Get("level"))); err != nil {
		return &message.InvalidError{Field: "level", Reason: "must be debug, info, warn or error"}
	}
	s.cfg.LogLevel.Set(level)
	s.log.Warn(fmt.Sprintf("log level is now %s", level))
	return s.logLevel(w, r)
}
