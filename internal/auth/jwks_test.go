package auth

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// signWithKID signs with a key ID in the header.
func signWithKID(kid string, key any) string { return signWith(jsonObject{"kid": kid}, key, nil) }

func TestKeysOfAJWKS(t *testing.T) {
	i := newIssuer(jwk(rsaKey(), jsonObject{"kid": "r", "use": "sig", "alg": "RS256"}), jwk(ecKey(), jsonObject{"kid": "e", "key_ops": []string{"verify"}}), jwk(edKey(), jsonObject{"kid": "d"}))
	w := openVerifier(t, i.serve(t))
	for kid, key := range map[string]any{"r": rsaKey(), "e": ecKey(), "d": edKey()} {
		w.accepts(signWithKID(kid, key))
		w.accepts(sign(key, nil)) // without a kid, the only key of its algorithm
	}
	if i.fetches() != 1 || w.metric("auth_jwks_up", "") != 1 || w.metric("auth_jwks_refreshes_total", "ok") != 1 {
		t.Errorf("%d fetches, up %v", i.fetches(), w.metric("auth_jwks_up", ""))
	}
	if !strings.Contains(w.logged.String(), "AUTH_AUDIENCE") {
		t.Errorf("no warning that tokens for other services are accepted: %s", w.logged)
	}
}

func TestAttacksWithAJWKSAreRefused(t *testing.T) {
	w := openVerifier(t, newIssuer(jwk(rsaKey(), jsonObject{"kid": "r"}), jwk(ecKey(), jsonObject{"kid": "e", "alg": "ES256"}), jwk(edKey(), nil)).serve(t))
	claims := encode(validClaims(nil))
	for _, tt := range []refusedToken{
		{"the public key as a secret", signWithKID("r", pemOf(rsaKey())), ErrAlgorithm},
		{"none, of a key", segment(`{"alg":"none","kid":"r"}`) + "." + segment(claims) + ".", ErrAlgorithm},
		{"RSA's kid on an EC token", signWithKID("r", ecKey()), ErrAlgorithm},
		{"EC's kid on an RSA token", signWithKID("e", rsaKey()), ErrAlgorithm},
		{"the right kid, another key", signWithKID("r", rsaOther()), ErrSignature},
		{"no kid, another key", sign(rsaOther(), nil), ErrSignature},
		{"another kid, the right key", signWithKID("x", rsaKey()), ErrSignature},
		{"a kid of nothing", signWithKID("", rsaOther()), ErrSignature},
		{"a stronger hash by name", signRaw(`{"alg":"RS512","kid":"r"}`, claims, rsaKey()), ErrAlgorithm},
	} {
		t.Run(tt.name, func(t *testing.T) { w.t = t; w.refuses(tt.token, tt.want) })
	}
}

// A forged token without a kid would cost a check by each key.
func TestATokenMustNameItsKeyWhereSeveralFit(t *testing.T) {
	i := newIssuer(jwk(rsaKey(), jsonObject{"kid": "old"}), jwk(rsaOther(), jsonObject{"kid": "new"}), jwk(ecKey(), nil))
	w := openVerifier(t, i.serve(t))
	w.refuses(sign(rsaKey(), nil), ErrMalformed)
	w.refuses(signWithKID("", rsaOther()), ErrMalformed)
	if _, err := w.Verify(t.Context(), sign(rsaKey(), nil)); err == nil || !strings.HasSuffix(err.Error(), "it has no kid, and the JWKS has 2 keys for RS256") {
		t.Errorf("the error is %v", err)
	}
	w.accepts(signWithKID("old", rsaKey()))
	w.accepts(signWithKID("new", rsaOther()))
	w.accepts(sign(ecKey(), nil))
	if i.fetches() != 1 {
		t.Errorf("%d fetches, want the first alone", i.fetches())
	}
}

// The issuer shows the new key beside the old one, signs with it at once, and
// removes the old one later.
func TestAKeyOfAJWKSIsRotated(t *testing.T) {
	i := newIssuer(jwk(rsaKey(), jsonObject{"kid": "old"}))
	cfg := i.serve(t) // a real server, outside the bubble
	synctest.Test(t, func(t *testing.T) {
		w := openVerifier(t, cfg)
		old, next := signWithKID("old", rsaKey()), signWithKID("new", ecKey())
		w.accepts(old)
		i.shows(jwk(rsaKey(), jsonObject{"kid": "old"}), jwk(ecKey(), jsonObject{"kid": "new"}))
		w.refuses(next, ErrSignature) // the last fetch was a moment ago
		time.Sleep(minFetchInterval)
		w.accepts(next) // it requests a fetch and waits for it
		w.accepts(old)
		if i.fetches() != 2 {
			t.Errorf("%d fetches, want 2", i.fetches())
		}
		i.shows(jwk(ecKey(), jsonObject{"kid": "new"}))
		time.Sleep(defaultRefresh * 12 / 10)
		w.refuses(old, ErrSignature)
		w.accepts(signWithKID("new", ecKey()))
	})
}

// An issuer without key IDs can rotate its keys, too.
func TestAKeyWithoutAnIDIsRotated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(jwk(rsaKey(), nil))
		w := openVerifier(t, i.inMemory())
		i.shows(jwk(rsaOther(), nil))
		time.Sleep(minFetchInterval)
		w.accepts(sign(rsaOther(), nil))
		w.refuses(sign(rsaKey(), nil), ErrSignature)
	})
}

// Some issuers give a new key the kid of the old one, perhaps of another kind. A token of
// the new key is valid after one fetch, and does not wait for AUTH_JWKS_REFRESH.
func TestANewKeyUnderTheOldKIDIsAccepted(t *testing.T) {
	for name, next := range map[string]any{"of the same kind": rsaOther(), "of another kind": ecKey()} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i := newIssuer(jwk(rsaKey(), jsonObject{"kid": "1"}))
				w := openVerifier(t, i.inMemory())
				i.shows(jwk(next, jsonObject{"kid": "1"}))
				time.Sleep(minFetchInterval)
				w.accepts(signWithKID("1", next))
				if err := w.verifyError(t.Context(), signWithKID("1", rsaKey())); err == nil {
					t.Error("the old key is accepted, though the issuer shows it no more")
				}
				if i.fetches() != 2 {
					t.Errorf("%d fetches, want 2", i.fetches())
				}
			})
		})
	}
}

// Keys of different kinds may share a kid (RFC 7517 §4.5): each checks its own tokens.
func TestKeysOfDifferentKindsShareAKID(t *testing.T) {
	w := openVerifier(t, newIssuer(jwk(rsaKey(), jsonObject{"kid": "1"}), jwk(ecKey(), jsonObject{"kid": "1"}), jwk(rsaOther(), jsonObject{"kid": "1"})).serve(t))
	for _, key := range []any{rsaKey(), ecKey(), rsaOther()} {
		w.accepts(signWithKID("1", key))
	}
	w.refuses(signWithKID("1", edKey()), ErrAlgorithm)
}

// A forged token with a known kid is refused while the issuer is away, as at any time: to
// answer unavailable would let clients with a wrong token try for ever.
func TestAForgedTokenIsRefusedWhileTheIssuerIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(jwk(rsaKey(), jsonObject{"kid": "1"}))
		w := openVerifier(t, i.inMemory())
		i.hangs()
		time.Sleep(minFetchInterval)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := w.verifyError(ctx, signWithKID("1", rsaOther())); !errors.Is(err, ErrSignature) {
			t.Errorf("without an answer of the issuer: %v, want %v", err, ErrSignature)
		}
		time.Sleep(fetchTimeout)
		w.refuses(signWithKID("1", rsaOther()), ErrSignature)
		w.refuses(signWithKID("1", ecKey()), ErrAlgorithm)
	})
}

func TestForgedSignaturesCauseFewFetches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(jwk(rsaKey(), jsonObject{"kid": "r"}))
		w := openVerifier(t, i.inMemory())
		forged := signWithKID("r", rsaOther())
		for range 1000 {
			w.refuses(forged, ErrSignature)
			time.Sleep(60 * time.Millisecond)
		}
		if got := i.fetches(); got < 6 || got > 7 {
			t.Errorf("%d fetches in a minute, want one each 10 s", got)
		}
	})
}

func TestUnknownKeyIDsCauseFewFetches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(jwk(rsaKey(), jsonObject{"kid": "r"}))
		w := openVerifier(t, i.inMemory())
		for range 1000 {
			w.refuses(signWithKID(time.Now().String(), ecKey()), ErrSignature)
			time.Sleep(60 * time.Millisecond)
		}
		if got := i.fetches(); got < 6 || got > 7 {
			t.Errorf("%d fetches in a minute, want one each 10 s", got)
		}
		w.accepts(signWithKID("r", rsaKey()))
	})
}

// A token that an issuer can't have signed causes no fetch.
func TestASecretsTokenCausesNoFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(jwk(rsaKey(), jsonObject{"kid": "r"}))
		cfg := i.inMemory()
		cfg.JWTSecrets = []string{secret}
		w := openVerifier(t, cfg)
		time.Sleep(minFetchInterval)
		w.refuses(signWithKID("new", "another secret"), ErrSignature)
		if i.fetches() != 1 {
			t.Errorf("%d fetches", i.fetches())
		}
	})
}

func TestManyTokensWaitForOneFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(jwk(rsaKey(), jsonObject{"kid": "old"}))
		w := openVerifier(t, i.inMemory())
		time.Sleep(minFetchInterval)
		release := make(chan struct{})
		i.shows(jwk(ecKey(), jsonObject{"kid": "new"}))
		i.set(func() { i.release = release })
		var waiting sync.WaitGroup
		token := signWithKID("new", ecKey())
		for range 50 {
			waiting.Go(func() {
				if err := w.verifyError(t.Context(), token); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		close(release)
		waiting.Wait()
		if got := i.fetches(); got != 2 {
			t.Errorf("%d fetches, want one at the start and one for all", got)
		}
	})
}

func TestAnOutageOfTheIssuer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(jwk(rsaKey(), jsonObject{"kid": "r"}))
		cfg := i.inMemory()
		cfg.JWTSecrets, cfg.JWKSMaxStale = []string{secret}, time.Hour
		w := openVerifier(t, cfg)
		i.answers(http.StatusBadGateway, "away")
		time.Sleep(30 * time.Minute)
		w.accepts(signWith(jsonObject{"kid": "r"}, rsaKey(), jsonObject{"exp": time.Now().Add(9 * time.Hour).Unix()}))
		w.refuses(signWithKID("new", ecKey()), ErrUnavailable)                                      // it may be right: it can't be checked
		if err := w.refuses(sign(rsaOther(), nil), ErrUnavailable); !errors.Is(err, ErrSignature) { // it cost a check, which is counted
			t.Errorf("a token without a kid that no key has signed: %v", err)
		}
		if w.metric("auth_jwks_up", "") != 0 || w.metric("auth_jwks_refreshes_total", "failed") < 40 {
			t.Errorf("up %v, %v failed", w.metric("auth_jwks_up", ""), w.metric("auth_jwks_refreshes_total", "failed"))
		}
		if got := w.logged.Count("last fetched keys stay in use"); got != 1 || !strings.Contains(w.logged.String(), "it answered 502") {
			t.Errorf("%d lines about the outage, want 1:\n%s", got, w.logged)
		}

		time.Sleep(35 * time.Minute) // more than an hour after the last fetch
		w.refuses(signWithKID("r", rsaKey()), ErrUnavailable)
		w.refuses(sign(rsaKey(), nil), ErrUnavailable)
		w.accepts(sign(secret, nil)) // needs no issuer
		if got := w.logged.Count("answered with unavailable"); got != 1 {
			t.Errorf("%d lines about keys that are too old, want 1:\n%s", got, w.logged)
		}

		i.shows(jwk(rsaKey(), jsonObject{"kid": "r"}))
		time.Sleep(maxRetry * 11 / 10)
		w.accepts(signWithKID("r", rsaKey()))
		if w.metric("auth_jwks_up", "") != 1 || w.logged.Count("fetched again") != 1 {
			t.Errorf("up %v:\n%s", w.metric("auth_jwks_up", ""), w.logged)
		}
	})
}

func TestAStartWithoutTheIssuer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(jwk(rsaKey(), jsonObject{"kid": "r"}))
		i.answers(http.StatusServiceUnavailable, "")
		cfg := i.inMemory()
		cfg.JWTSecrets = []string{secret}
		w := openVerifier(t, cfg)
		w.refuses(signWithKID("r", rsaKey()), ErrUnavailable)
		w.refuses(sign(rsaKey(), nil), ErrUnavailable)
		w.accepts(sign(secret, nil))
		if got := w.metric("auth_tokens_total", "unavailable"); got != 2 {
			t.Errorf("%v counted as unavailable", got)
		}
		i.shows(jwk(rsaKey(), jsonObject{"kid": "r"}))
		time.Sleep(minRetry * 11 / 10)
		w.accepts(signWithKID("r", rsaKey()))
		if w.logged.Count("answered with unavailable") != 1 || w.logged.Count("fetched again") != 1 {
			t.Errorf("logged %s", w.logged)
		}
	})
}

func TestAnIssuerThatDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(jwk(rsaKey(), jsonObject{"kid": "r"}))
		w := openVerifier(t, i.inMemory())
		i.hangs()
		time.Sleep(minFetchInterval)
		start := time.Now()

		// The first caller gives up earlier than the fetch, which continues.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := w.verifyError(ctx, signWithKID("new", ecKey())); !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		w.accepts(signWithKID("r", rsaKey())) // a key in memory needs no fetch
		w.refuses(signWithKID("new", ecKey()), ErrUnavailable)
		if got := time.Since(start); got != fetchTimeout {
			t.Errorf("answered after %v, want %v", got, fetchTimeout)
		}
		w.refuses(signWithKID("new", ecKey()), ErrUnavailable)
		if got := time.Since(start); got != fetchTimeout {
			t.Errorf("the next token waited, too: %v", got)
		}
	})
}

// An issuer that shows no key has revoked all.
func TestAnEmptySetRevokesAllKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(jwk(rsaKey(), jsonObject{"kid": "r"}))
		w := openVerifier(t, i.inMemory())
		i.shows()
		time.Sleep(defaultRefresh * 11 / 10)
		w.refuses(signWithKID("r", rsaKey()), ErrUnavailable)
		w.refuses(sign(rsaKey(), nil), ErrUnavailable)
		if w.metric("auth_jwks_refreshes_total", "empty") == 0 || w.metric("auth_jwks_up", "") != 0 || w.logged.Count("no key that tokens could be checked with") != 1 {
			t.Errorf("logged %s", w.logged)
		}
		i.shows(jwk(rsaKey(), jsonObject{"kid": "r"}))
		time.Sleep(maxRetry * 11 / 10)
		w.accepts(signWithKID("r", rsaKey()))
	})
}

func TestCloseEndsAFetchUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(jwk(rsaKey(), jsonObject{"kid": "r"}))
		w := openVerifier(t, i.inMemory())
		i.hangs()
		time.Sleep(minFetchInterval)
		refused := make(chan error, 1)
		go func() { refused <- w.verifyError(context.Background(), signWithKID("new", ecKey())) }()
		synctest.Wait()
		start := time.Now()
		if err := w.Close(t.Context()); err != nil || time.Since(start) != 0 {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		if err := <-refused; !errors.Is(err, ErrUnavailable) {
			t.Errorf("the waiting Verify returned %v", err)
		}
		w.accepts(signWithKID("r", rsaKey()))                  // the keys are still in memory
		w.refuses(signWithKID("new", ecKey()), ErrUnavailable) // none will be fetched
		if w.logged.Count("can't be fetched") != 0 {
			t.Errorf("the stop is logged as an outage: %s", w.logged)
		}
	})
}

func TestFetchesAreJittered(t *testing.T) {
	j := &jwks{refresh: defaultRefresh}
	spread := map[time.Duration]bool{}
	for _, tt := range []struct {
		failures int
		want     time.Duration
	}{{0, defaultRefresh}, {1, time.Second}, {2, 2 * time.Second}, {5, 16 * time.Second}, {6, 30 * time.Second}, {1 << 30, 30 * time.Second}} {
		j.failures = tt.failures
		for range 50 {
			got := j.nextDelay()
			spread[got] = true
			if got < tt.want*9/10 || got > tt.want*11/10 {
				t.Errorf("%d failures: %v, want about %v", tt.failures, got, tt.want)
			}
		}
	}
	if len(spread) < 200 {
		t.Errorf("%d different pauses of 300", len(spread))
	}
}
