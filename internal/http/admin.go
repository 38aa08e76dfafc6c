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

// An adminAPI serves operators on the host.
type adminAPI struct {
	server  *Server
	respond *responder
}

// routes returns the routes for operators on the host: drain, log level and
// profiles. No proxy is trusted here: an X-Forwarded-Host from one on loopback would
// hide the name that a page has made resolve to this machine.
func (a *adminAPI) routes() http.Handler {
	g := &guard{respond: a.respond}
	r := chi.NewRouter()
	r.Use(g.withCallerInfo, a.respond.recoverPanics, g.adminOnly)
	r.NotFound(a.respond.adapt(func(http.ResponseWriter, *http.Request) error { return errNotFound }))
	r.MethodNotAllowed(a.respond.adapt(func(http.ResponseWriter, *http.Request) error { return errMethod }))
	r.Get("/drain", a.respond.adapt(a.drainState))
	r.Post("/drain", a.respond.adapt(a.beginDrain))
	r.Delete("/drain", a.respond.adapt(a.endDrain))
	r.Get("/log-level", a.respond.adapt(a.logLevel))
	r.Put("/log-level", a.respond.adapt(a.setLogLevel))
	r.HandleFunc("/debug/pprof/*", pprof.Index)
	r.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	r.HandleFunc("/debug/pprof/profile", pprof.Profile)
	r.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	r.HandleFunc("/debug/pprof/trace", pprof.Trace)
	r.Get("/debug/rooms", a.respond.adapt(func(w http.ResponseWriter, _ *http.Request) error {
		return writeJSON(w, http.StatusOK, a.server.cfg.Hub.Rooms())
	}))
	return r
}

func (a *adminAPI) drainState(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, a.server.drain.State())
}

// beginDrain starts a drain: POST /drain?scope=deployment&reason=text. It answers
// at once. The process keeps running, and DELETE cancels the drain.
func (a *adminAPI) beginDrain(w http.ResponseWriter, r *http.Request) error {
	scope := drain.Scope(r.URL.Query().Get("scope"))
	if scope == "" {
		scope = drain.ScopeNode
	}
	if scope != drain.ScopeNode && scope != drain.ScopeDeployment {
		return &message.InvalidError{Field: "scope", Reason: "must be node or deployment"}
	}
	if scope == drain.ScopeDeployment && a.server.cfg.Deployment == "" {
		return &message.InvalidError{Field: "scope", Reason: "can't be deployment: DEPLOYMENT is not set"}
	}
	reason := r.URL.Query().Get("reason")
	if reason == "" {
		reason = "drain"
	}
	if len(reason) > maxReason || !utf8.ValidString(reason) {
		return &message.InvalidError{Field: "reason", Reason: fmt.Sprintf("must be at most %d bytes of UTF-8", maxReason)}
	}
	a.server.drain.Start(scope, reason)
	return writeJSON(w, http.StatusAccepted, a.server.drain.State())
}

// maxReason bounds the reason of a drain, in bytes. Every client gets the reason.
const maxReason = 64

// endDrain cancels a drain. Without a drain it changes nothing.
func (a *adminAPI) endDrain(w http.ResponseWriter, _ *http.Request) error {
	a.server.drain.Undrain()
	return writeJSON(w, http.StatusOK, a.server.drain.State())
}

func (a *adminAPI) logLevel(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, map[string]string{"level": a.server.cfg.LogLevel.Level().String()})
}

// setLogLevel changes the log level of the running process: PUT
// /log-level?level=debug.
func (a *adminAPI) setLogLevel(w http.ResponseWriter, r *http.Request) error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(r.URL.Query().Get("level"))); err != nil {
		return &message.InvalidError{Field: "level", Reason: "must be debug, info, warn or error"}
	}
	a.server.cfg.LogLevel.Set(level)
	a.server.log.Warn(fmt.Sprintf("log level is now %s", level))
	return a.logLevel(w, r)
}
