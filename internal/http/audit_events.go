package http

import (
	"errors"
	"net/http"

	"switchyard/internal/audit"
	"switchyard/internal/protocol"
)

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
func (s *Server) auditRefusal(r *http.Request, err error, p *problem) {
	event := refusalEvents[p.Code]
	given := ""
	switch {
	case errors.Is(err, errOrigin):
		event, given = audit.OriginRefused, r.Header.Get("Origin")
	case errors.Is(err, errUnknownHost):
		given = callerOf(r).Host
	case errors.Is(err, errNoAPIKey):
		event = audit.KeyRefused
	case errors.Is(err, errHandshakeRate), errors.Is(err, errNoCapacity) && !s.isClosing():
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
	s.audit.Record(&audit.Line{
		Event: event, Actor: user, From: c.Addr.String(), Subject: r.Method + " " + r.URL.Path, Given: given, Reason: p.Detail, RequestID: c.id,
	})
}

// auditRejection records a connection that is closed right after its upgrade.
func (s *Server) auditRejection(sock *socket, user, why string) {
	event := audit.LimitReached
	switch sock.admission.closeCode {
	case protocol.CloseUnauthorized:
		event = audit.TokenRefused
	case protocol.CloseRemoved:
		event = audit.RightRefused
	}
	if why == "" {
		why = sock.admission.result
	}
	s.audit.Record(&audit.Line{Event: event, Actor: user, From: sock.remote, Subject: "GET /ws", Reason: why, RequestID: sock.requestID})
}
