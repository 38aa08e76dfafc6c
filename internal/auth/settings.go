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

// Config is what a verifier needs. Logger is required. Without any key
// everybody is anonymous.
type Config struct {
	// JWTSecrets sign HS256 tokens. Several are valid at once, so that one can
	// be replaced without a gap. Each has 32 bytes at least.
	JWTSecrets []string
	// KeyFile holds public keys in PEM: RSA, EC on P-256, Ed25519.
	KeyFile string
	// JWKSURL is where an issuer shows its public keys. It must be https, or
	// http to this machine, unless JWKSAllowHTTP vouches for the way there.
	JWKSURL       string
	JWKSAllowHTTP bool
	// JWKSRefresh is how often the keys are fetched, 5 min by default. While
	// that fails, those fetched last are used for JWKSMaxStale, 24 h by default.
	JWKSRefresh  time.Duration
	JWKSMaxStale time.Duration
	// Issuer is what the claim iss must be, and Audience one of what aud must
	// hold. Empty ones are not asked for.
	Issuer   string
	Audience []string
	// Leeway is by how much the clocks of issuers may differ from ours, at most
	// maxLeeway.
	Leeway time.Duration
	// Anonymous says who comes in without a token: auto or "" (everybody when
	// no key is configured, else nobody), on, off, or patterns as ParsePermissions
	// takes them, for the rooms that are open to all.
	Anonymous string
	// HTTPClient fetches the JWKS; nil stands for one of this package's own.
	// Redirects are not followed, whatever it says.
	HTTPClient *http.Client
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

// allRooms is what anonymous users may do where no key says who anybody is.
const allRooms = "*:rw"

func (c *Config) defaults() {
	if c.JWKSRefresh <= 0 {
		c.JWKSRefresh = defaultRefresh
	}
	if c.JWKSMaxStale <= 0 {
		c.JWKSMaxStale = defaultStale
	}
}

// hasKeys says whether tokens can be checked.
func (c *Config) hasKeys() bool {
	return len(c.JWTSecrets) > 0 || c.KeyFile != "" || c.JWKSURL != ""
}

// check names every setting that can't be right, and what to do about it.
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

// checkJWKSURL refuses what would let others say which keys are right. Its
// errors continue a sentence.
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

// anonymous returns what those without a token may do, and whether they come in.
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
