package auth

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/MicahParks/jwkset"
)

const (
	// fetchTimeout bounds one fetch, from the lookup of the name to the last byte.
	fetchTimeout = 5 * time.Second
	// minFetchInterval is the least time between two fetches that tokens cause. It
	// bounds the fetches that an attacker causes with invented key IDs.
	minFetchInterval = 10 * time.Second
	// After a failure the next fetch comes after minRetry. The delay doubles with
	// each further failure, up to maxRetry.
	minRetry = time.Second
	maxRetry = 30 * time.Second
)

// The states of the keys. A change of state is logged.
const (
	stateFresh    = "fresh"
	stateStale    = "stale"    // the last fetch failed, and the keys before it are still used
	stateUnusable = "unusable" // there are no keys, or they are too old
)

// errNoKey means that none of the keys made the token's signature. Another fetch
// may return the right key.
var errNoKey = errors.New("no key of the JWKS matches the token's signature")

// A jwks holds an issuer's public keys, which one goroutine fetches periodically.
// It does not use the refresh of the libraries, which would accept a body of any
// size, drop a whole set for one bad key, wait an hour after a failed start, and
// start a fetch for each token with an unknown kid. It is safe for concurrent use.
type jwks struct {
	// Static after openJWKS.
	url      string
	given    *http.Client // nil: a client of this package
	certFile string
	refresh  time.Duration
	maxStale time.Duration
	log      *slog.Logger
	metrics  *metrics
	keys     *jwkset.MemoryJWKSet // has its own lock
	wake     chan struct{}        // a value requests a fetch; never closed
	stop     context.CancelFunc
	done     chan struct{} // closed when refreshLoop has ended

	// Owned by the caller of fetch: openJWKS, then refreshLoop.
	skipped string         // keys that were left out of the last set, as last logged
	roots   *x509.CertPool // of certFile when it could be used last; nil before, or without a file
	noRoots bool           // certFile can't be used now, which is logged
	state   string         // as last logged

	// mu protects the fields below.
	mu          sync.Mutex
	lastAttempt time.Time     // when the last fetch ended
	lastSuccess time.Time     // when the last successful fetch ended; zero before the first
	failures    int           // in a row
	fetchDone   chan struct{} // closed and replaced when a fetch ends
}

// openJWKS fetches the keys once, and starts the goroutine that refreshes them
// until close.
func openJWKS(ctx context.Context, cfg *Config, log *slog.Logger, m *metrics) *jwks {
	j := &jwks{
		url: cfg.JWKSURL, given: cfg.HTTPClient, certFile: cfg.CertFile, refresh: cfg.JWKSRefresh, maxStale: cfg.JWKSMaxStale,
		log: log, metrics: m, keys: jwkset.NewMemoryStorage(),
		wake: make(chan struct{}, 1), done: make(chan struct{}), fetchDone: make(chan struct{}),
	}
	j.fetch(ctx)
	// The loop outlives the call that started it.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	j.stop = stop
	go j.refreshLoop(background)
	return j
}

func (j *jwks) close(ctx context.Context) error {
	j.stop()
	select {
	case <-j.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for a JWKS fetch to end: %w", ctx.Err())
	}
}

func (j *jwks) refreshLoop(ctx context.Context) {
	defer close(j.done)
	timer := time.NewTimer(j.nextDelay())
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-j.wake:
			if j.fetchedRecently() { // the request came while the last fetch was running
				continue
			}
		}
		j.fetch(ctx)
		timer.Reset(j.nextDelay())
	}
}

// fetch replaces the keys. It keeps the old ones when the fetch fails.
func (j *jwks) fetch(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	set, skipped, err := j.download(ctx)
	result := refreshFailed
	if err == nil {
		// The new set is authoritative: a key that is missing from it is revoked,
		// and a set without keys revokes all.
		_ = j.keys.KeyReplaceAll(ctx, set) // in memory: can't fail
		if result = refreshOK; len(set) == 0 {
			result, err = refreshEmpty, errors.New("it holds no key that tokens could be checked with")
		}
	}
	j.metrics.recordRefresh(result)
	if skipped != "" && skipped != j.skipped {
		j.log.Warn("keys of the JWKS are left out", "url", j.url, "why", skipped)
	}
	if result != refreshFailed {
		j.skipped = skipped
	}
	if !errors.Is(err, context.Canceled) { // canceled means that the service is stopping
		j.logStateChange(result, err)
	}
	j.recordFetch(result)
}

// recordFetch records how a fetch ended, and wakes the verifications that wait for it.
func (j *jwks) recordFetch(result string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lastAttempt = time.Now()
	j.failures++
	if result == refreshOK {
		j.failures = 0
	}
	if result != refreshFailed {
		j.lastSuccess = j.lastAttempt
	}
	close(j.fetchDone)
	j.fetchDone = make(chan struct{})
}

// logStateChange logs a change of state. An outage writes one line when it begins,
// one when the keys become too old, and one when it ends.
func (j *jwks) logStateChange(result string, err error) {
	state := stateFresh
	if result == refreshEmpty || result == refreshFailed && j.isStale() {
		state = stateUnusable
	} else if result == refreshFailed {
		state = stateStale
	}
	if state == j.state {
		return
	}
	switch state {
	case stateUnusable:
		j.log.Error("no key of the JWKS can be used: tokens that need one are answered with unavailable", "url", j.url, "error", err)
	case stateStale:
		j.log.Warn("the JWKS can't be fetched: the last fetched keys stay in use", "url", j.url, "error", err, "max_stale", j.maxStale.String())
	case stateFresh:
		if j.state != "" {
			j.log.Info("the JWKS can be fetched again", "url", j.url)
		}
	}
	j.state = state
}

// nextDelay returns the delay before the next fetch. It has jitter, so that nodes
// that started together do not fetch together.
func (j *jwks) nextDelay() time.Duration {
	j.mu.Lock()
	defer j.mu.Unlock()
	pause := j.refresh
	if j.failures > 0 {
		pause = min(pause, maxRetry, minRetry<<min(j.failures-1, 10))
	}
	return pause - pause/10 + rand.N(pause/5)
}
