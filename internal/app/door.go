package app

import (
	"context"
	"fmt"

	"switchyard/internal/auth"
	"switchyard/internal/config"
	httpd "switchyard/internal/http"
)

// openAuth reads the keys that tokens are checked with.
func (a *App) openAuth(ctx context.Context) error {
	c := a.opt.Config.Auth
	v, err := auth.New(ctx, auth.Config{
		JWTSecrets:    c.JWTSecrets.Reveal(),
		KeyFile:       c.KeyFile,
		JWKSURL:       c.JWKSURL,
		JWKSAllowHTTP: c.JWKSAllowHTTP,
		JWKSRefresh:   c.JWKSRefresh,
		JWKSMaxStale:  c.JWKSMaxStale,
		Issuer:        c.Issuer,
		Audience:      c.Audience,
		Leeway:        c.Leeway,
		Anonymous:     c.Anonymous,
		Logger:        a.opt.Logger,
		Registerer:    a.registry,
	})
	if err != nil {
		return fmt.Errorf("reading the keys of tokens: %w", err)
	}
	a.verifier = v
	a.lifecycle.onStop("auth", authStop, v.Close)
	return nil
}

// isOpen says whether there is no key, so that nobody has a name.
func isOpen(c config.Auth) bool {
	return len(c.JWTSecrets) == 0 && c.KeyFile == "" && c.JWKSURL == ""
}

// rates copies the settings to what counts by them.
func rates(c config.Limits) httpd.Rates {
	return httpd.Rates{
		Publish: c.Publish,
		Bytes:   c.Bytes,
		Join:    c.Join,
		History: c.History,
		API:     c.API,
	}
}
