package http

import (
	"errors"
	"net/http"

	"switchyard/internal/protocol"
)

// refusalEvents are the audit events of error codes. Other errors say nothing about
// access.
var refusalEvents = map[string]string{
	protocol.CodeUnauthorized: auditToken,
	protocol.CodeForbidden:    auditRight,
	protocol.CodeRateLimited:  auditLimit,
	codeMisdirected:           auditHost,
}

// auditRefusal records a request that was refused because of its caller or its
// rate. It leaves out the query, which may contain a token.
func (s *Server) auditRefusal(r *http.Request, err error, p *problem) {
	event := refusalEvents[p.Code]
	given := ""
	switch {
	case errors.Is(err, errOrigin):
		event, given = auditOrigin, r.Header.Get("Origin")
	case errors.Is(err, errUnknownHost):
		given = callerOf(r).host
	case errors.Is(err, errNoAPIKey):
		event = auditKey
	case errors.Is(err, errHandshakeRate), errors.Is(err, errNoCapacity) && !s.drain.IsClosing():
		event = auditLimit
	}
	if event == "" {
		return
	}
	c := callerOf(r)
	user := c.user
	if c.key != "" {
		user = publisher(r)
	}
	s.audit.record(&auditLine{
		Event: event, Actor: user, From: c.addr.String(), Subject: r.Method + " " + r.URL.Path, Given: given, Reason: p.Detail, RequestID: c.id,
	})
}

// auditRejection records a connection that is closed right after its upgrade.
func (s *Server) auditRejection(sock *socket, user, why string) {
	event := auditLimit
	switch sock.admission.closeCode {
	case protocol.CloseUnauthorized:
		event = auditToken
	case protocol.CloseRemoved:
		event = auditRight
	}
	if why == "" {
		why = sock.admission.result
	}
	s.audit.record(&auditLine{Event: event, Actor: user, From: sock.remote, Subject: "GET /ws", Reason: why, RequestID: sock.requestID})
}
