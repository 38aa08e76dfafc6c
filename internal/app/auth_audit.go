package app

import (
	"context"
	"fmt"
	"os"
	"syscall"

	"switchyard/internal/auth"
	"switchyard/internal/config"
	httpd "switchyard/internal/http"
)

// openAuth builds the verifier of tokens and reads its keys.
func (a *App) openAuth(ctx context.Context) error {
	c := a.opt.Config.Auth
	v, err := auth.New(ctx, auth.Config{
		JWTSecrets:    c.JWTSecrets.Reveal(),
		KeyFile:       c.KeyFile,
		JWKSURL:       c.JWKSURL,
		CertFile:      c.CertFile,
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
	a.lifecycle.onStop("auth", authStopTimeout, v.Close)
	return nil
}

// hasNoTokenKeys reports whether no key for tokens is configured, so that all
// clients are anonymous.
func hasNoTokenKeys(c config.Auth) bool {
	return len(c.JWTSecrets) == 0 && c.KeyFile == "" && c.JWKSURL == ""
}

// rates copies the rate limits from the settings.
func rates(c config.Limits) httpd.Rates {
	return httpd.Rates{
		Publish: c.Publish,
		Bytes:   c.Bytes,
		Join:    c.Join,
		History: c.History,
		API:     c.API,

		UserPublish: c.UserPublish, UserBytes: c.UserBytes,
		UserHistory: c.UserHistory, UserReadBytes: c.UserReadBytes,
	}
}

// openAudit opens the destination of the audit log. A new file is readable by its
// owner only; an existing one keeps its mode.
func (a *App) openAudit(context.Context) error {
	path := a.opt.Config.Log.Audit
	switch path {
	case "off":
		return nil
	case "stdout":
		a.audit = a.opt.Stdout
		return nil
	case "stderr":
		a.audit = a.opt.Stderr
		return nil
	}
	// Without O_NONBLOCK, opening a pipe without a reader would block the start.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return fmt.Errorf("AUDIT_LOG: %w; give a file that can be written, stdout, stderr or off", err)
	}
	a.audit = f
	a.lifecycle.onStop("audit log", auditStopTimeout, func(context.Context) error { return f.Close() })
	return nil
}
