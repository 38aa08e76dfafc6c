package http

import (
	"errors"
	"net/http"

	"switchyard/internal/protocol"
)

// refusals are the events of what clients are refused by code; other errors
// are no matter of who may do what.
var refusals = map[string]string{
	protocol.CodeUnauthorized: auditToken,
	protocol.CodeForbidden:    auditRight,
	protocol.CodeRateLimited:  auditLimit,
	codeMisdirected:           auditHost,
}

// auditRefusal notes a request that was refused for who asks, or how often. The
// query is left out: it may hold a token.
func (s *Server) auditRefusal(r *http.Request, err error, p *problem) {
	event := refusals[p.Code]
	given := ""
	switch {
	case errors.Is(err, errOrigin):
		event, given = auditOrigin, r.Header.Get("Origin")
	case errors.Is(err, errHost):
		given = callerOf(r).host
	case errors.Is(err, errKey):
		event = auditKey
	case errors.Is(err, errTooFast), errors.Is(err, errNoPlace) && !s.closes():
		event = auditLimit
	}
	if event == "" {
		return
	}
	c := callerOf(r)
	who := c.user
	if c.key != "" {
		who = publisher(r)
	}
	s.audit.note(&auditLine{
		Event: event, Who: who, From: c.addr.String(), What: r.Method + " " + r.URL.Path, Given: given, Why: p.Detail, RequestID: c.id,
	})
}

// auditTurnedAway notes a connection that is told by a close code why it can't
// stay.
func (s *Server) auditTurnedAway(k *socket, user, why string) {
	event := auditLimit
	switch k.place.told {
	case protocol.CloseToken:
		event = auditToken
	case protocol.CloseRemoved:
		event = auditRight
	}
	if why == "" {
		why = k.place.result
	}
	s.audit.note(&auditLine{Event: event, Who: user, From: k.remote, What: "GET /ws", Why: why, RequestID: k.id})
}
