package http

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// bearer returns the bearer credential of a request. It returns "" for none, and
// for several, because it can't know which one a proxy on the way has checked.
func bearer(r *http.Request) string {
	lines := r.Header.Values("Authorization")
	if len(lines) != 1 {
		return ""
	}
	scheme, given, _ := strings.Cut(lines[0], " ")
	if !strings.EqualFold(scheme, "bearer") {
		return ""
	}
	return strings.TrimSpace(given)
}

// maxBatchBody bounds the body of a batch, in bytes. Each message in it has the
// bound of a single one.
const maxBatchBody = 1 << 20

// readBody reads a request's JSON. It ignores Content-Type, because many callers do
// not set it: curl -d says that the body is a form.
func readBody(w http.ResponseWriter, r *http.Request, limit int) ([]byte, error) {
	if coding := r.Header.Get("Content-Encoding"); coding != "" && !strings.EqualFold(coding, "identity") {
		return nil, errEncoding
	}
	if r.ContentLength > int64(limit) && r.Header.Get("Expect") != "" {
		// The client waits for 100 Continue, so it gets the refusal before it sends
		// the body. Other bodies are read: see discardBody.
		return nil, &http.MaxBytesError{Limit: int64(limit)}
	}
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, int64(limit)))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, fmt.Errorf("reading the body: %w", err)
	case err != nil:
		// The body was cut, or slower than requestTimeout.
		return nil, &protocol.Error{Code: protocol.CodeMalformed, Message: "the body did not come whole"}
	}
	return b, nil
}

// maxDiscard bounds what is read of a body that is not used, as net/http does, and
// discardTimeout how long that takes: the answer waits for it.
const (
	maxDiscard     = 256 << 10
	discardTimeout = time.Second
)

// discardBody reads the rest of the body of a request that is refused. A connection that
// is closed with unread bytes is reset, so a client that still writes would lose the
// answer. net/http reads the rest only if the client wants to keep the connection.
func discardBody(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Expect") != "" { // a read would ask the client for the body
		return
	}
	if http.NewResponseController(w).SetReadDeadline(time.Now().Add(discardTimeout)) == nil {
		_, _ = io.CopyN(io.Discard, r.Body, maxDiscard)
	}
}

// pathParam returns a parameter of the path, decoded once. The router matches the
// raw path only if net/http kept it in RawPath. Otherwise the parameter is decoded
// already: a second decoding would turn %2541 into A, not %41.
func pathParam(r *http.Request, name string) (string, error) {
	value := chi.URLParam(r, name)
	if r.URL.RawPath == "" {
		return value, nil
	}
	return url.PathUnescape(value)
}

func roomOf(r *http.Request) (message.Room, error) {
	name, err := pathParam(r, "room")
	if err != nil {
		return "", &message.InvalidError{Field: "room", Reason: "has a broken percent escape"}
	}
	room, err := message.ParseRoom(name)
	if err != nil {
		return "", err
	}
	if room.Reserved() {
		return "", protocol.ErrReserved
	}
	return room, nil
}

// idempotencyKey is the header that many HTTP APIs, and libraries for their clients,
// use for what is an id here.
const idempotencyKey = "Idempotency-Key"

// publishID returns the id of a publish: that of the body, or that of the header. If
// both are given they must be equal. The header's value may be in double quotes, as
// draft-ietf-httpapi-idempotency-key-header has it.
func publishID(r *http.Request, inBody string) (string, error) {
	lines := r.Header.Values(idempotencyKey)
	if len(lines) == 0 {
		return inBody, nil
	}
	id := lines[0]
	if n := len(id); n >= 2 && id[0] == '"' && id[n-1] == '"' {
		id = id[1 : n-1]
	}
	err := message.CheckID(id)
	var invalid *message.InvalidError
	switch {
	case len(lines) > 1:
		return "", &message.InvalidError{Field: idempotencyKey, Reason: "can't be given twice"}
	case errors.As(err, &invalid):
		return "", &message.InvalidError{Field: idempotencyKey, Reason: invalid.Reason}
	case inBody != "" && inBody != id:
		return "", &message.InvalidError{Field: idempotencyKey, Reason: "must be equal to the id of the body"}
	}
	return id, nil
}

// queryOne returns an optional query parameter. It refuses a malformed query and a
// repeated name: ignoring them would answer a different question.
func queryOne(r *http.Request, name string) (value string, given bool, err error) {
	if strings.Count(r.URL.RawQuery, "&") >= protocol.MaxQueryNames {
		return "", false, &message.InvalidError{Field: "query", Reason: "must have at most 32 names"}
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return "", false, &message.InvalidError{Field: "query", Reason: "must be name=value, joined by &, with whole percent escapes"}
	}
	switch values := query[name]; len(values) {
	case 0:
		return "", false, nil
	case 1:
		return values[0], true, nil
	}
	return "", false, &message.InvalidError{Field: name, Reason: "can't be given twice"}
}

// queryInt returns an optional query parameter that is an integer within bounds.
func queryInt(r *http.Request, name string, low, high int64) (int64, bool, error) {
	value, given, err := queryOne(r, name)
	if err != nil || !given {
		return 0, false, err
	}
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil || n < low || n > high {
		return 0, false, &message.InvalidError{Field: name, Reason: fmt.Sprintf("must be a whole number from %d to %d", low, high)}
	}
	return n, true, nil
}
