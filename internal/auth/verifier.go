// Package auth turns a credential into an Identity, and says what the identity may
// do.
//
// The libraries do the cryptography (golang-jwt) and read the keys of a JWKS
// (jwkset). This package decides what is read, in which order, and what is
// trusted, because a token comes from a stranger. Bounds come first. The key
// decides the algorithm, never the token. The signature is verified before any
// claim is read. No claim or header can be read in two ways (see visitObject).
package auth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"
)

// A Verifier verifies tokens. It is safe for concurrent use.
type Verifier struct {
	// The numbers of keys, for the log.
	secretCount, publicKeyCount int

	// Static after New.
	cfg              Config
	log              *slog.Logger
	metrics          *metrics
	keys             []key           // secrets, then keys of the file
	accepted         map[string]bool // algorithms for which there may be a key
	jwks             *jwks           // nil without AUTH_JWKS_URL
	anonymous        Permissions
	anonymousAllowed bool // whether clients without a token may connect
}

// New returns a verifier, or an error that names each invalid setting. It fetches
// the JWKS, which takes some seconds at most. If that fails, Verify returns
// ErrUnavailable until the keys have been fetched.
func New(ctx context.Context, cfg Config) (*Verifier, error) {
	cfg.defaults()
	v := &Verifier{cfg: cfg, log: cfg.Logger.With("component", "auth"), accepted: make(map[string]bool)}
	secrets, err1 := secretKeys(cfg.JWTSecrets)
	var public []key
	var err2, err3 error
	if cfg.KeyFile != "" {
		public, err2 = readKeyFile(cfg.KeyFile)
	}
	v.anonymous, v.anonymousAllowed, err3 = cfg.anonymous()
	if err := errors.Join(cfg.check(), err1, err2, err3); err != nil {
		return nil, err
	}
	v.keys = slices.Concat(secrets, public)
	for _, k := range v.keys {
		v.accepted[k.algorithm] = true
	}
	v.metrics = newMetrics(cfg.Registerer, cfg.JWKSURL != "")
	if cfg.JWKSURL != "" {
		v.accepted[rs256], v.accepted[es256], v.accepted[eddsa] = true, true, true
		v.jwks = openJWKS(ctx, &v.cfg, v.log, v.metrics)
	}
	v.secretCount, v.publicKeyCount = len(secrets), len(public)
	v.cfg.JWTSecrets = nil // so that no dump of a verifier shows them as text
	return v, nil
}

// LogConfig logs which keys are configured and whether anonymous clients may
// connect. Call it once, when the service is about to serve: a service that can't
// start should log only the reason.
func (v *Verifier) LogConfig() {
	if v.secretCount == 0 && v.publicKeyCount == 0 && v.jwks == nil { // not cfg: the secrets are no longer there
		v.log.Warn("no key is configured: whoever connects is anonymous and may use every room that AUTH_ANONYMOUS opens",
			"remedy", "set AUTH_JWT_SECRET, AUTH_KEY_FILE or AUTH_JWKS_URL")
		return
	}
	v.log.Info("tokens are checked", "secrets", v.secretCount, "public_keys", v.publicKeyCount, "jwks", v.jwks != nil, "anonymous", v.anonymousAllowed)
	if v.jwks != nil && len(v.cfg.Audience) == 0 {
		v.log.Warn("tokens that the issuer of the JWKS made for other services are accepted, too", "remedy", "set AUTH_AUDIENCE")
	}
}

// Close stops the refresh of keys. Verify may still be called.
func (v *Verifier) Close(ctx context.Context) error {
	if v.jwks == nil {
		return nil
	}
	return v.jwks.close(ctx)
}

// Anonymous returns the identity of clients without a token, and whether such
// clients may connect.
func (v *Verifier) Anonymous() (Identity, bool) {
	return Identity{Permissions: v.anonymous}, v.anonymousAllowed
}

// Verify returns the identity that a token proves. It blocks only if the key may be
// in a newer JWKS: for one fetch, or until ctx ends. Each error has a Cause.
// ErrUnavailable means that the token could not be checked.
func (v *Verifier) Verify(ctx context.Context, credential string) (Identity, error) {
	identity, err := v.verify(ctx, credential)
	v.metrics.tokens[Cause(err)].Inc()
	return identity, err
}

func (v *Verifier) verify(ctx context.Context, credential string) (Identity, error) {
	t, err := parseToken(credential)
	if err != nil {
		return Identity{}, err
	}
	if err := v.checkSignature(ctx, &t); err != nil {
		return Identity{}, err
	}
	c, err := parseClaims(t.payload)
	if err != nil {
		return Identity{}, err
	}
	if err := c.check(time.Now(), &v.cfg); err != nil {
		return Identity{}, err
	}
	identity, err := c.identity()
	if err != nil {
		return Identity{}, err
	}
	identity.Expires = c.expires.Add(v.cfg.Leeway)
	return identity, nil
}

// checkSignature tries the keys of the token's algorithm. It tries the configured
// keys first, since they cost no fetch. They have no key IDs, so the token's kid
// does not matter there.
func (v *Verifier) checkSignature(ctx context.Context, t *token) error {
	if !v.accepted[t.algorithm] {
		return fmt.Errorf("%w: the keys are for %s", ErrAlgorithm, v.algorithms())
	}
	method := methods[t.algorithm]
	for _, k := range v.keys {
		if k.algorithm == t.algorithm && method.Verify(t.signed, t.signature, k.material) == nil {
			return nil
		}
	}
	if v.jwks == nil || t.algorithm == hs256 {
		return ErrSignature
	}
	return v.jwks.check(ctx, t, method)
}

// algorithms lists the accepted algorithms, for an error text.
func (v *Verifier) algorithms() string {
	var names []string
	for name := range v.accepted {
		names = append(names, name)
	}
	if len(names) == 0 {
		return "nothing, since none is configured"
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}
