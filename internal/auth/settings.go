package auth

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Config is what a verifier needs. Logger is required. Without any key every client
// is anonymous.
type Config struct {
	// JWTSecrets verify HS256 tokens. Several are valid at the same time, so that
	// one can be replaced without a gap. Each has at least 32 bytes.
	JWTSecrets []string
	// KeyFile holds public keys in PEM: RSA, EC on P-256, Ed25519.
	KeyFile string
	// JWKSURL is the address of an issuer's public keys. It must be https, or http
	// to this machine, unless JWKSAllowHTTP says that the network is trusted.
	JWKSURL       string
	JWKSAllowHTTP bool
	// JWKSRefresh is the time between two fetches of the keys, 5 min by default.
	// While fetches fail, the last keys are used for JWKSMaxStale, 24 h by default.
	JWKSRefresh  time.Duration
	JWKSMaxStale time.Duration
	// Issuer is the required value of the claim iss. Audience lists the values of
	// which the claim aud must contain one. Empty settings are not checked.
	Issuer   string
	Audience []string
	// Leeway is the tolerated difference between the clocks of the issuer and this
	// node, at most maxLeeway.
	Leeway time.Duration
	// Anonymous says which clients may connect without a token: auto or "" (all if
	// no key is configured, else none), on, off, or patterns for ParsePermissions
	// that name the rooms open to all.
	Anonymous string
	// HTTPClient fetches the JWKS. Nil means a client of this package. Redirects
	// are never followed.
	HTTPClient *http.Client
	// CertFile holds certificates (PEM) of authorities for JWKSURL, beside those of
	// the system. It is read again for each fetch. Empty: the system's only.
	CertFile   string
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Bounds on settings.
const (
	maxLeeway      = 2 * time.Minute
	maxName        = 512 // of issuer and audience, in bytes
	defaultRefresh = 5 * time.Minute
	defaultStale   = 24 * time.Hour
)

// allRooms is what anonymous users may do where no key is configured.
const allRooms = "*:rw"

func (c *Config) defaults() {
	if c.JWKSRefresh <= 0 {
		c.JWKSRefresh = defaultRefresh
	}
	if c.JWKSMaxStale <= 0 {
		c.JWKSMaxStale = defaultStale
	}
}

// hasKeys reports whether any key is configured.
func (c *Config) hasKeys() bool {
	return len(c.JWTSecrets) > 0 || c.KeyFile != "" || c.JWKSURL != ""
}

// check returns an error that names every invalid setting and its remedy.
func (c *Config) check() error {
	var mistakes []error
	wrong := func(bad bool, format string, args ...any) {
		if bad {
			mistakes = append(mistakes, fmt.Errorf(format, args...))
		}
	}
	wrong(c.Leeway < 0 || c.Leeway > maxLeeway, "AUTH_LEEWAY=%s must be from 0s to %s", c.Leeway, maxLeeway)
	wrong(c.JWKSMaxStale < c.JWKSRefresh, "AUTH_JWKS_MAX_STALE=%s must be at least AUTH_JWKS_REFRESH=%s, or keys end before they are fetched again", c.JWKSMaxStale, c.JWKSRefresh)
	wrong(c.Issuer != "" && !c.hasKeys(), "AUTH_ISSUER is set, and no key that tokens could be checked with: set AUTH_JWT_SECRET, AUTH_KEY_FILE or AUTH_JWKS_URL")
	wrong(len(c.Audience) > 0 && !c.hasKeys(), "AUTH_AUDIENCE is set, and no key that tokens could be checked with: set AUTH_JWT_SECRET, AUTH_KEY_FILE or AUTH_JWKS_URL")
	wrong(len(c.Issuer) > maxName, "AUTH_ISSUER has %d bytes, over %d", len(c.Issuer), maxName)
	for _, a := range c.Audience {
		wrong(a == "" || len(a) > maxName, "AUTH_AUDIENCE: each must be 1 to %d bytes long", maxName)
	}
	if c.JWKSURL != "" {
		if err := checkJWKSURL(c.JWKSURL, c.JWKSAllowHTTP); err != nil {
			mistakes = append(mistakes, fmt.Errorf("AUTH_JWKS_URL %w", err))
		}
	}
	return errors.Join(mistakes...)
}

// checkJWKSURL refuses an address that would let others supply keys. Its errors
// continue a sentence that begins with the setting.
func checkJWKSURL(text string, allowHTTP bool) error {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return errors.New("can't be read; for example https://id.example.com/.well-known/jwks.json")
	case u.Scheme != "https" && u.Scheme != "http", u.Hostname() == "":
		return errors.New("must be https://host/path")
	case u.User != nil:
		return errors.New("has a user or a password: a key set is public, leave them out")
	case u.Fragment != "":
		return errors.New("has a #: leave it out")
	case u.Scheme == "http" && !allowHTTP && !isLoopback(u.Hostname()):
		return errors.New("is http: whoever stands in between could put in keys of their own. Use https, or say AUTH_JWKS_ALLOW_HTTP=true where the network is trusted")
	}
	return nil
}

func isLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

// anonymous returns the permissions of clients without a token, and whether such
// clients may connect.
func (c *Config) anonymous() (Permissions, bool, error) {
	patterns := c.Anonymous
	switch {
	case patterns == "off" && !c.hasKeys():
		return Permissions{}, false, errors.New("AUTH_ANONYMOUS=off, and no key that tokens could be checked with: nobody could connect. Set AUTH_JWT_SECRET, AUTH_KEY_FILE or AUTH_JWKS_URL")
	case patterns == "on" && c.hasKeys():
		return Permissions{}, false, errors.New("AUTH_ANONYMOUS=on, and tokens are checked: name what is open to all, for example AUTH_ANONYMOUS=public.*:r, or *:rw for everything")
	case patterns == "off", (patterns == "" || patterns == "auto") && c.hasKeys():
		return Permissions{}, false, nil
	case patterns == "", patterns == "auto", patterns == "on":
		patterns = allRooms
	}
	rooms, err := ParsePermissions(patterns)
	if err != nil {
		return Permissions{}, false, fmt.Errorf("AUTH_ANONYMOUS: must be auto, on, off or patterns such as public.*:r,lobby:rw; %w", err)
	}
	return rooms, true, nil
}
