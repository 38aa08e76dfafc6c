package http

import (
	"net/http"

	"switchyard/internal/ingress"
)

// A cors lets the pages of ALLOWED_ORIGINS read the answers of a route that takes
// users' tokens (Fetch Standard, CORS protocol). The other calls are for backends.
type cors struct{ origins ingress.Origins }

// expose lets a page of an allowed origin read the answer, whatever it is.
func (c *cors) expose(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Add("Vary", "Origin")
		if page := r.Header.Get("Origin"); page != "" && c.origins.Allow(r, &callerOf(r).Sender) {
			h.Set("Access-Control-Allow-Origin", page)
			h.Set("Access-Control-Expose-Headers", "Retry-After, X-Request-Id")
		}
		next.ServeHTTP(w, r)
	})
}

// preflight answers what a browser asks before such a page sends its token.
func (c *cors) preflight(w http.ResponseWriter, r *http.Request) error {
	if from := &callerOf(r).Sender; !c.origins.Allow(r, from) {
		return &detailedError{errOrigin, ingress.Compared(r, from)}
	}
	h := w.Header()
	h.Set("Access-Control-Allow-Methods", http.MethodGet)
	h.Set("Access-Control-Allow-Headers", "Authorization")
	h.Set("Access-Control-Max-Age", "600") // seconds
	w.WriteHeader(http.StatusNoContent)
	return nil
}
