package http

import (
	"context"
	"net/http"

	"switchyard/internal/ingress"
)

// A caller is what this service knows about the sender of a request. It is
// determined once, by withCallerInfo, and stored in the request's context.
type caller struct {
	// id is the request id in answers and log lines.
	id string
	ingress.Sender
	// key is the name of the API key of the request, user the user of its token; ""
	// for none.
	key, user string
	// reader is the name by which its reads are counted; "" for an API key.
	reader string
}

// readerKey returns the key by which the caller takes turns with others.
func (c *caller) readerKey() any {
	if c.reader == "" {
		return "k:" + c.key
	}
	return c.reader
}

type callerKey struct{}

func withCaller(r *http.Request, c *caller) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), callerKey{}, c))
}

// callerOf returns the caller of a request that passed withCallerInfo.
func callerOf(r *http.Request) *caller {
	c, _ := r.Context().Value(callerKey{}).(*caller)
	return c
}
