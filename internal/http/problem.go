package http

import (
	"encoding/json"
	"errors"
	"net/http"

	"switchyard/internal/protocol"
)

// A problem is an error as callers of HTTP get it (RFC 9457).
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
	// Code is the wire's error code, for programs.
	Code string `json:"code"`
	// RequestID is what the log lines of this request bear.
	RequestID string `json:"request_id,omitempty"`
}

var (
	errNotFound = errors.New("no such route")
	errMethod   = errors.New("no such method on this route")
)

// statuses is the one table from wire codes to HTTP.
var statuses = map[string]int{
	protocol.CodeMalformed:    http.StatusBadRequest,
	protocol.CodeInvalid:      http.StatusBadRequest,
	protocol.CodeTooLarge:     http.StatusRequestEntityTooLarge,
	protocol.CodeConflict:     http.StatusConflict,
	protocol.CodeUnauthorized: http.StatusUnauthorized,
	protocol.CodeForbidden:    http.StatusForbidden,
	protocol.CodeRateLimited:  http.StatusTooManyRequests,
	protocol.CodeUnavailable:  http.StatusServiceUnavailable,
	protocol.CodeInternal:     http.StatusInternalServerError,
}

func problemFor(err error) problem {
	switch {
	case errors.Is(err, errNotFound):
		return newProblem(http.StatusNotFound, "not_found", err.Error())
	case errors.Is(err, errMethod):
		return newProblem(http.StatusMethodNotAllowed, "method_not_allowed", err.Error())
	}
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		err = &protocol.Error{Code: protocol.CodeTooLarge, Message: "the body is over MAX_FRAME"}
	}
	e := protocol.ErrorFor(err)
	return newProblem(statuses[e.Code], e.Code, e.Message)
}

func newProblem(status int, code, detail string) problem {
	return problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Code: code, Detail: detail}
}

func (p problem) write(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/problem+json")
	writeBody(w, p.Status, p)
}

// writeJSON answers with a JSON value.
func writeJSON(w http.ResponseWriter, status int, v any) error {
	w.Header().Set("Content-Type", "application/json")
	writeBody(w, status, v)
	return nil
}

func writeBody(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the caller is gone: nobody to tell
}
