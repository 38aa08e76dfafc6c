package auth

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
)

// An issuer serves keys, and fails on demand.
type issuer struct {
	mu       sync.Mutex
	body     string
	status   int
	requests int
	// hang delays each answer until the client is gone.
	hang bool
	// release delays each answer until it is closed.
	release chan struct{}
}

func newIssuer(keys ...jsonObject) *issuer {
	return &issuer{body: jwkSet(keys...), status: http.StatusOK}
}

func (i *issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	i.requests++
	body, status, hang, release := i.body, i.status, i.hang, i.release
	i.mu.Unlock()
	if hang {
		<-r.Context().Done()
		return
	}
	if release != nil {
		<-release
	}
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body))
}

// RoundTrip answers without a network, for bubbles of synctest.
func (i *issuer) RoundTrip(r *http.Request) (*http.Response, error) {
	rec := httptest.NewRecorder()
	i.ServeHTTP(rec, r)
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	return rec.Result(), nil
}

func (i *issuer) set(change func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change()
}

func (i *issuer) shows(keys ...jsonObject) {
	i.set(func() { i.body, i.status, i.hang = jwkSet(keys...), http.StatusOK, false })
}
func (i *issuer) answers(status int, body string) {
	i.set(func() { i.body, i.status, i.hang = body, status, false })
}
func (i *issuer) hangs() { i.set(func() { i.hang = true }) }
func (i *issuer) fetches() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.requests
}

// inMemory returns the configuration for this issuer without a network.
func (i *issuer) inMemory() Config {
	return Config{JWKSURL: "https://id.example/jwks", HTTPClient: &http.Client{Transport: i}}
}

// serve makes the issuer listen until the test ends.
func (i *issuer) serve(t testing.TB) Config {
	server := httptest.NewServer(i)
	t.Cleanup(server.Close)
	return Config{JWKSURL: server.URL + "/jwks"}
}

// verifyError returns the error of Verify.
func (w *testVerifier) verifyError(ctx context.Context, token string) error {
	_, err := w.Verify(ctx, token)
	return err
}
