package auth

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// check returns nil if one of the keys made the token's signature. If none did, it
// waits for one fetch and tries again, even if the keys with the token's kid are known:
// some issuers give a new key the kid of the old one.
func (j *jwks) check(ctx context.Context, t *token, method jwt.SigningMethod) error {
	err := j.tryKeys(ctx, t, method)
	if err == nil || errors.Is(err, ErrMalformed) {
		return err
	}
	fetched, failure := j.awaitFetch(ctx)
	if fetched {
		err = j.tryKeys(ctx, t, method)
	}
	switch {
	case !errors.Is(err, errNoKey):
		return err
	case failure != nil:
		return failure
	case j.isFailing():
		return fmt.Errorf("%w: the JWKS can't be fetched: %w", ErrUnavailable, err)
	}
	return fmt.Errorf("%w: no key of the JWKS fits", ErrSignature)
}

// tryKeys checks the signature with the keys in memory: with those of the token's kid,
// or with the only one of its algorithm if it has none. Keys of different kinds may share
// a kid (RFC 7517 §4.5). Where several keys could fit a token must name one (OpenID Connect
// Core 1.0 §10.1), so that a forged one does not cost a check by each of them.
func (j *jwks) tryKeys(ctx context.Context, t *token, method jwt.SigningMethod) error {
	err := errNoKey
	if j.isStale() {
		return err
	}
	all, _ := j.keys.KeyReadAll(ctx) // in memory: can't fail
	var fitting []any
	for i := range all {
		switch k := all[i].Marshal(); {
		case t.keyID != "" && k.KID != t.keyID:
		case string(k.ALG) == t.algorithm:
			fitting = append(fitting, all[i].Key())
		case t.keyID != "":
			err = fmt.Errorf("%w: the key of this kid is for another", ErrAlgorithm)
		}
	}
	if t.keyID == "" && len(fitting) > 1 {
		return fmt.Errorf("%w: it has no kid, and the JWKS has %d keys for %s", ErrMalformed, len(fitting), t.algorithm)
	}
	for _, k := range fitting {
		if method.Verify(t.signed, t.signature, k) == nil {
			return nil
		}
		if err = ErrSignature; t.keyID == "" {
			err = fmt.Errorf("%w: %w", errNoKey, ErrSignature) // the issuer may have a new key
		}
	}
	return err
}

// awaitFetch waits for the fetch that is running or about to run, and reports
// whether there was one. It does not wait if the last fetch ended less than
// minFetchInterval ago.
func (j *jwks) awaitFetch(ctx context.Context) (bool, error) {
	// Both values are read under one lock. Otherwise a fetch could end between the
	// two reads, and fetchDone would belong to a fetch that nobody starts.
	j.mu.Lock()
	recent, fetchDone := j.fetchedRecentlyLocked(), j.fetchDone
	j.mu.Unlock()
	if recent {
		return false, nil
	}
	select {
	case j.wake <- struct{}{}:
	default: // a fetch is requested already
	}
	select {
	case <-fetchDone:
		return true, nil
	case <-ctx.Done():
		return false, fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
	case <-j.done:
		return false, fmt.Errorf("%w: shutting down", ErrUnavailable)
	}
}

// fetchedRecently reports whether the last fetch ended less than minFetchInterval
// ago.
func (j *jwks) fetchedRecently() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.fetchedRecentlyLocked()
}

// fetchedRecentlyLocked is fetchedRecently. Caller holds mu.
func (j *jwks) fetchedRecentlyLocked() bool { return time.Since(j.lastAttempt) < minFetchInterval }

// isFailing reports whether the last fetch returned no keys.
func (j *jwks) isFailing() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.failures > 0
}

// isStale reports whether the keys are older than AUTH_JWKS_MAX_STALE or were never
// fetched.
func (j *jwks) isStale() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.lastSuccess.IsZero() || time.Since(j.lastSuccess) > j.maxStale
}
