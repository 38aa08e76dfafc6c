package http

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"unicode/utf8"

	"github.com/go-chi/chi/v5"

	"switchyard/internal/drain"
	"switchyard/internal/message"
)

// adminRoutes returns the routes for operators on the host: drain, log level and
// profiles.
func (s *Server) adminRoutes() http.Handler {
	r := chi.NewRouter()
	r.Use(s.withCallerInfo, s.recoverPanics, s.adminOnly)
	r.NotFound(s.adapt(func(http.ResponseWriter, *http.Request) error { return errNotFound }))
	r.MethodNotAllowed(s.adapt(func(http.ResponseWriter, *http.Request) error { return errMethod }))
	r.Get("/drain", s.adapt(s.drainState))
	r.Post("/drain", s.adapt(s.beginDrain))
	r.Delete("/drain", s.adapt(s.endDrain))
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

func (s *Server) drainState(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, s.drain.State())
}

// beginDrain starts a drain: POST /drain?scope=deployment&reason=text. It answers
// at once. The process keeps running, and DELETE cancels the drain.
func (s *Server) beginDrain(w http.ResponseWriter, r *http.Request) error {
	scope := drain.Scope(r.URL.Query().Get("scope"))
	if scope == "" {
		scope = drain.ScopeNode
	}
	if scope != drain.ScopeNode && scope != drain.ScopeDeployment {
		return &message.InvalidError{Field: "scope", Reason: "must be node or deployment"}
	}
	if scope == drain.ScopeDeployment && s.cfg.Deployment == "" {
		return &message.InvalidError{Field: "scope", Reason: "can't be deployment: DEPLOYMENT is not set"}
	}
	reason := r.URL.Query().Get("reason")
	if reason == "" {
		reason = "drain"
	}
	if len(reason) > maxReason || !utf8.ValidString(reason) {
		return &message.InvalidError{Field: "reason", Reason: fmt.Sprintf("must be at most %d bytes of UTF-8", maxReason)}
	}
	s.drain.Start(scope, reason)
	return writeJSON(w, http.StatusAccepted, s.drain.State())
}

// maxReason bounds the reason of a drain, in bytes. Every client gets the reason.
const maxReason = 64

// endDrain cancels a drain. Without a drain it changes nothing.
func (s *Server) endDrain(w http.ResponseWriter, _ *http.Request) error {
	s.drain.Undrain()
	return writeJSON(w, http.StatusOK, s.drain.State())
}

func (s *Server) logLevel(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, map[string]string{"level": s.cfg.LogLevel.Level().String()})
}

// setLogLevel changes the log level of the running process: PUT
// /log-level?level=debug.
func (s *Server) setLogLevel(w http.ResponseWriter, r *http.Request) error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(r.URL.Query().Get("level"))); err != nil {
		return &message.InvalidError{Field: "level", Reason: "must be debug, info, warn or error"}
	}
	s.cfg.LogLevel.Set(level)
	s.log.Warn(fmt.Sprintf("log level is now %s", level))
	return s.logLevel(w, r)
}
