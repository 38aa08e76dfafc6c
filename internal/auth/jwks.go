package auth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/MicahParks/keyfunc/v3"
)

const (
	// fetchTimeout bounds one fetch, from the name's lookup to the last byte.
	fetchTimeout = 5 * time.Second
	// minFetchInterval is the least time from one fetch to the next that a token may
	// ask for: a stranger who makes up names of keys causes no more than that.
	minFetchInterval = 10 * time.Second
	// After a failure the next fetch comes after minRetry, and twice as late
	// after each further one, up to maxRetry.
	minRetry = time.Second
	maxRetry = 30 * time.Second
)

// What the keys are good for: as much as is logged.
const (
	stateFresh    = "fresh"
	stateStale    = "old" // not fetched lately, and used all the same
	stateUnusable = "out" // none, or too old
)

// errNoKey says: none of the keys is the token's. Another fetch may bring it.
var errNoKey = errors.New("no key of the JWKS is the token's")

// A jwks is an issuer's public keys, fetched again and again by one goroutine.
// The libraries' own refresh is not used: it would take a body of any size,
// drop a whole set for one odd key, wait an hour after a failed start, and have
// each token with an unknown kid fetch by itself.
type jwks struct {
	// Static after openJWKS.
	url       string
	client    *http.Client
	refresh   time.Duration
	maxStale  time.Duration
	log       *slog.Logger
	metrics   *metrics
	keys      *jwkset.MemoryJWKSet // has a lock of its own
	selectKey keyfunc.Keyfunc      // picks from keys by kid, and holds alg to the key's
	wake      chan struct{}        // a token asks for a fetch; never closed
	stop      context.CancelFunc
	done      chan struct{} // closed when refreshLoop has ended

	// Owned by whoever fetches: openJWKS, then refreshLoop.
	skipped string // what was left out of the last set, as logged
	state   string // of the keys, as logged

	mu sync.Mutex
	// Protects following.
	lastAttempt time.Time     // when the last fetch ended
	lastSuccess time.Time     // when the last good one did; zero before the first
	failures    int           // in a row
	fetchDone   chan struct{} // closed when the fetch under way, or else the next one, has ended
}

// openJWKS fetches the keys once, and then has them fetched until close.
func openJWKS(ctx context.Context, cfg *Config, log *slog.Logger, m *metrics) *jwks {
	j := &jwks{
		url: cfg.JWKSURL, client: jwksClient(cfg.HTTPClient), refresh: cfg.JWKSRefresh, maxStale: cfg.JWKSMaxStale,
		log: log, metrics: m, keys: jwkset.NewMemoryStorage(),
		wake: make(chan struct{}, 1), done: make(chan struct{}), fetchDone: make(chan struct{}),
	}
	var err error
	if j.selectKey, err = keyfunc.New(keyfunc.Options{Storage: j.keys}); err != nil {
		panic(err) // only without a storage
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
		return fmt.Errorf("a fetch of the JWKS that does not end: %w", ctx.Err())
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
			if j.fetchedRecently() { // asked for while the last fetch was under way
				continue
			}
		}
		j.fetch(ctx)
		timer.Reset(j.nextDelay())
	}
}

// fetch replaces the keys, or keeps them when that fails.
func (j *jwks) fetch(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	set, skipped, err := j.download(ctx)
	result := refreshFailed
	if err == nil {
		// The set is what the issuer says now: a key that is gone is revoked,
		// and a set without any revokes all.
		_ = j.keys.KeyReplaceAll(ctx, set) // memory: can't fail
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
	if !errors.Is(err, context.Canceled) { // else the service is stopping
		j.logStateChange(result, err)
	}
	j.recordFetch(result)
}

// recordFetch keeps how a fetch ended, and frees those who wait for it.
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

// logStateChange logs what a fetch changed for tokens: an outage is a line when it
// begins, one when the keys are too old, and one when it ends.
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
		j.log.Warn("the JWKS can't be fetched: the keys that came last stay in use", "url", j.url, "error", err, "for", j.maxStale.String())
	case stateFresh:
		if j.state != "" {
			j.log.Info("the JWKS is fetched again", "url", j.url)
		}
	}
	j.state = state
}

// nextDelay is how long to wait before the next fetch. It is spread, so that nodes
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
