package auth

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/golang-jwt/jwt/v5"
)

// check returns nil if one of the keys made the token's signature. If none did, it
// waits for one fetch and tries again.
func (j *jwks) check(ctx context.Context, t *token, method jwt.SigningMethod) error {
	err := j.tryKeys(ctx, t, method)
	if !errors.Is(err, errNoKey) {
		return err
	}
	fetched, err := j.awaitFetch(ctx)
	if err != nil {
		return err
	}
	if fetched {
		if err := j.tryKeys(ctx, t, method); !errors.Is(err, errNoKey) {
			return err
		}
	}
	if j.isFailing() {
		return fmt.Errorf("%w: the JWKS can't be fetched", ErrUnavailable)
	}
	return fmt.Errorf("%w: no key of the JWKS fits", ErrSignature)
}

// tryKeys checks the signature with the keys in memory. A kid selects one of them;
// without it all are tried.
func (j *jwks) tryKeys(ctx context.Context, t *token, method jwt.SigningMethod) error {
	if j.isStale() {
		return errNoKey
	}
	header := map[string]any{"alg": t.algorithm}
	if t.keyID != "" {
		header[jwkset.HeaderKID] = t.keyID
	}
	found, err := j.selectKey.KeyfuncCtx(ctx)(&jwt.Token{Header: header, Method: method})
	switch {
	case errors.Is(err, jwkset.ErrKeyNotFound):
		return errNoKey
	case err != nil: // the only other reason: the token's alg is not the key's
		return fmt.Errorf("%w: the key of this kid is for another", ErrAlgorithm)
	}
	if all, ok := found.(jwt.VerificationKeySet); ok {
		for _, k := range all.Keys {
			if method.Verify(t.signed, t.signature, k) == nil {
				return nil
			}
		}
		return errNoKey
	}
	if method.Verify(t.signed, t.signature, found) != nil {
		return ErrSignature
	}
	return nil
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
