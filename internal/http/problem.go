package http

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// A problem is the body of an HTTP error (RFC 9457).
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
	// Code is the wire's error code, or one that only HTTP has. Programs read it.
	Code string `json:"code"`
	// Index is the position of the refused message in a batch, from 0.
	Index *int `json:"index,omitempty"`
	// RequestID is also in the log lines of this request.
	RequestID string `json:"request_id"`

	retryAfter time.Duration // for the header; 0 for none
}

var (
	errNotFound = errors.New("no such route")
	errMethod   = errors.New("no such method on this route")
	errEncoding = errors.New("a body comes as plain JSON, without Content-Encoding")
	errOrigin   = &protocol.Error{Code: protocol.CodeForbidden, Message: "this origin may not connect; see ALLOWED_ORIGINS"}
)

// A detailedError is a known error that also says what was refused.
type detailedError struct {
	known  *protocol.Error
	detail string
}

func (e *detailedError) Error() string { return e.known.Error() + ": " + e.detail }

func (e *detailedError) Unwrap() []error {
	return []error{&protocol.Error{Code: e.known.Code, Message: e.known.Message + ": " + e.detail}, e.known}
}

// statuses maps wire codes to HTTP status codes.
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
	codeMisdirected:           http.StatusMisdirectedRequest,
	codeHandshake:             http.StatusBadRequest,
}

// The codes that only HTTP has.
const (
	codeNotFound    = "not_found"
	codeMethod      = "method_not_allowed"
	codeEncoding    = "unsupported_encoding"
	codeUpgrade     = "upgrade_required"
	codeHandshake   = "bad_handshake"
	codeMisdirected = "wrong_host"
	detailUpgrade   = "this is a WebSocket: connect with Connection: Upgrade and Upgrade: websocket"
	detailHandshake = "a handshake is a GET with Sec-WebSocket-Version 13 and one Sec-WebSocket-Key of 16 bytes (RFC 6455)"
)

// A handshakeError is the status with which the websocket library refused a
// handshake.
type handshakeError int

func (e handshakeError) Error() string { return detailHandshake }

func problemFor(err error) problem {
	var large *http.MaxBytesError
	var handshake handshakeError
	switch {
	case errors.Is(err, errNotFound):
		return newProblem(http.StatusNotFound, codeNotFound, err.Error())
	case errors.Is(err, errMethod):
		return newProblem(http.StatusMethodNotAllowed, codeMethod, err.Error())
	case errors.Is(err, errEncoding):
		return newProblem(http.StatusUnsupportedMediaType, codeEncoding, err.Error())
	case errors.As(err, &handshake) && handshake == http.StatusUpgradeRequired:
		return newProblem(int(handshake), codeUpgrade, detailUpgrade)
	case errors.As(err, &handshake):
		return newProblem(int(handshake), codeHandshake, detailHandshake)
	case errors.As(err, &large):
		err = &protocol.Error{Code: protocol.CodeTooLarge, Message: fmt.Sprintf("the body may have %d bytes: MAX_FRAME, 1 MiB for a batch", large.Limit)}
	}
	e := protocol.ErrorFor(err)
	p := newProblem(cmp.Or(statuses[e.Code], http.StatusInternalServerError), e.Code, e.Message)
	p.retryAfter = e.RetryAfter
	var batchErr *message.BatchError
	if errors.As(err, &batchErr) {
		p.Index = &batchErr.Index
	}
	return p
}

func newProblem(status int, code, detail string) problem {
	return problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Code: code, Detail: detail}
}

func (p problem) write(w http.ResponseWriter) {
	if p.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="switchyard"`)
	}
	if p.retryAfter > 0 {
		// In whole seconds (RFC 9110 §10.2.3), rounded up so that the client does
		// not retry too early.
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(p.retryAfter.Seconds()))))
	}
	w.Header().Set("Content-Type", "application/problem+json")
	writeBody(w, p.Status, p)
}

// writeJSON writes v as the answer.
func writeJSON(w http.ResponseWriter, status int, v any) error {
	w.Header().Set("Content-Type", "application/json")
	writeBody(w, status, v)
	return nil
}

func writeBody(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false) // the answer is not HTML, and people read it
	_ = e.Encode(v)        // an error means that the caller is gone
}
