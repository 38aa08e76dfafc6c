// Package auth turns a credential into an Identity, and says what it may do.
//
// The libraries do the cryptography (golang-jwt) and choose keys of a JWKS
// (keyfunc, jwkset). What is read, in which order, and what is trusted is
// decided here, since a token comes from a stranger: bounds first; the
// algorithm from the key, never from the token; the signature before any
// claim; and no claim or header read in two ways (see object).
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

// A Verifier checks tokens. It may be used from many goroutines.
type Verifier struct {
	// secrets and public count the keys, to be told.
	secretCount, publicKeyCount int

	// Static after New.
	cfg              Config
	log              *slog.Logger
	metrics          *metrics
	keys             []key           // secrets and keys of the file
	accepted         map[string]bool // algorithms for which there may be a key
	jwks             *jwks           // nil without AUTH_JWKS_URL
	anonymous        Permissions
	anonymousAllowed bool // to anonymous users
}

// New returns a verifier, or an error that names each setting that can't be
// right. It fetches the JWKS within some seconds, or goes on without: tokens
// are then answered with ErrUnavailable until the keys have come.
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
	v.cfg.JWTSecrets = nil // no dump of a verifier shows them as text
	return v, nil
}

// LogConfig tells operators, in the log, how open their service is. It is called
// once, when the service is about to serve: one that can't start has one thing
// to say.
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

// Close ends the refreshing of keys. Tokens may still be checked.
func (v *Verifier) Close(ctx context.Context) error {
	if v.jwks == nil {
		return nil
	}
	return v.jwks.close(ctx)
}

// Anonymous returns who comes without a token, and whether they may come.
func (v *Verifier) Anonymous() (Identity, bool) {
	return Identity{Permissions: v.anonymous}, v.anonymousAllowed
}

// Verify returns who a token speaks for. It waits only where the key may be
// one that the JWKS has since the last fetch: for one fetch, or until ctx ends.
// Each error has a Cause; ErrUnavailable says that nothing is known.
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

// checkSignature tries the keys that are for the token's algorithm: our own
// first, which cost no fetch. Those have no names, so that its kid is left aside.
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

// algorithms lists what is accepted, for people.
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
