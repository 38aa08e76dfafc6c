package http

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"

	"switchyard/internal/audit"
	"switchyard/internal/protocol"
)

// A handler answers a request or returns an error. adapt turns the error into a
// problem document, which is counted and logged in one place.
type handler func(http.ResponseWriter, *http.Request) error

// A responder answers requests that fail, and counts, logs and audits them in one
// place.
type responder struct {
	log       *refusalLog
	metrics   *metrics
	audit     *audit.Log
	late      *lateRefusals
	isClosing func() bool // a refusal of a closing node is no limit that was reached
}

// countRequests counts requests by route pattern, a closed set.
func (re *responder) countRequests(next http.Handler) http.Handler {
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
		re.metrics.requests.WithLabelValues(route, methodLabel(r.Method), strconv.Itoa(status)).Inc()
		re.metrics.requestDuration.WithLabelValues(route).Observe(time.Since(started).Seconds())
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
func (re *responder) adapt(h handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := h(w, r); err != nil {
			re.refuse(w, r, err)
		}
	}
}

// recoverPanics answers a request whose handler panics, and logs the panic with its
// stack. Other requests are not affected.
func (re *responder) recoverPanics(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			fault := recover()
			if fault == nil {
				return
			}
			if fault == http.ErrAbortHandler { //nolint:errorlint // net/http compares it by identity
				panic(fault)
			}
			re.refuse(w, r, fmt.Errorf("panic: %v\n%s", fault, debug.Stack()))
		}()
		next.ServeHTTP(w, r)
	})
}

// refuse writes a problem document. It logs an internal error in full, and answers
// with a general text.
func (re *responder) refuse(w http.ResponseWriter, r *http.Request, err error) {
	p := problemFor(err)
	p.RequestID = callerOf(r).id
	level := slog.LevelDebug
	switch {
	case errors.Is(err, errHandshakeRate), errors.Is(err, errNoCapacity), errors.Is(err, errTooManyOfUser), errors.Is(err, errNoMemory):
		// A stranger may cause any number of these. They are in the metrics and in
		// the audit log, which is bounded.
	case p.Code == protocol.CodeUnavailable:
		level = slog.LevelWarn
	case p.Status >= http.StatusInternalServerError:
		level = slog.LevelError
	}
	re.auditRefusal(r, err, &p)
	re.log.record(r.Context(), level, "request refused", "method", r.Method, "path", r.URL.Path,
		"status", p.Status, "code", p.Code, "request_id", p.RequestID, "remote", callerOf(r).Addr, "error", err)
	re.late.wait(r, &p)
	discardBody(w, r)
	p.write(w)
}

// refusalEvents are the audit events of error codes. Other errors say nothing about
// access.
var refusalEvents = map[string]audit.Event{
	protocol.CodeUnauthorized: audit.TokenRefused,
	protocol.CodeForbidden:    audit.RightRefused,
	protocol.CodeRateLimited:  audit.LimitReached,
	codeMisdirected:           audit.HostRefused,
}

// auditRefusal records a request that was refused because of its caller or its
// rate. It leaves out the query, which may contain a token.
func (re *responder) auditRefusal(r *http.Request, err error, p *problem) {
	event := refusalEvents[p.Code]
	given := ""
	switch {
	case errors.Is(err, errOrigin):
		event, given = audit.OriginRefused, r.Header.Get("Origin")
	case errors.Is(err, errUnknownHost):
		given = callerOf(r).Host
	case errors.Is(err, errNoAPIKey):
		event = audit.KeyRefused
	case errors.Is(err, errHandshakeRate), errors.Is(err, errTooManyOfUser), errors.Is(err, errNoMemory), errors.Is(err, errNoCapacity) && !re.isClosing():
		event = audit.LimitReached
	}
	if event == "" {
		return
	}
	c := callerOf(r)
	user := c.user
	if c.key != "" {
		user = publisher(r)
	}
	re.audit.Record(&audit.Line{
		Event: event, Actor: user, From: c.Addr.String(), Subject: r.Method + " " + r.URL.Path, Given: given, Reason: p.Detail, RequestID: c.id,
	})
}
