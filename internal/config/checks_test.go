package config

import (
	"strings"
	"testing"
)

// A password with a character that has a meaning in URLs is cut there, and the rest of
// it would be shown as a host, a port or a path. Such a URL is refused, and no part of
// the password is shown: hun, ter and 2468 below.
func TestAPasswordThatIsNotEscapedIsNeverShown(t *testing.T) {
	for _, value := range []string{
		"S://u:hun@ter@127.0.0.1/d", "S://u:hun@ter@2468@h/d", "S://u:2468/ter@h/d", "S://u:2468?ter@h/d", "S://u:2468#ter@h/d", "S://u:hun/ter@h/d",
		"S://u:hun?ter@h/d", "S://u:hun#ter@h/d", "S://u:2468?x=ter@h/d", "S://u:hun ter@h@i/d", "S://u:hun%ter@h/d", "S://u:hun[ter@h/d", "S://:hun@ter@h",
		"u:hunter@h/d", "x://u:hunter@h/d", "//u:hunter@h/d", "S//u:hunter@h/d", "S:u:hun@ter@h/d", "S://u:hun\nter@h/d", "http//u:hunter@h", `"S://u:hun@ter@h/d`,
	} {
		for name, schemes := range map[string][]string{
			"DATABASE_URL": {"postgres", "postgresql"}, "REDIS_URL": {"redis", "rediss", "redis+sentinel", "redis+cluster"}, "AUTH_JWKS_URL": {"https", "http"},
			"ALLOWED_ORIGINS": {"https"}, "ALLOWED_HOSTS": {"https"}, "TRUSTED_PROXIES": {"http"}, "LISTEN_ADDR": {"http"}, "ADMIN_ADDR": {"http"}, "COLOR": {"https"},
		} {
			for _, scheme := range schemes {
				value := strings.ReplaceAll(value, "S", scheme)
				_, err := read(t, name, value)
				if err == nil && name != "DATABASE_URL" && !strings.Contains(value, "@ter@") {
					continue // the package that uses it refuses it: see test/e2e
				}
				if err == nil {
					t.Errorf("%s=%q is accepted", name, value)
				} else if text := err.Error(); strings.Contains(text, "hun") || strings.Contains(text, "ter@") || strings.Contains(text, "2468") {
					t.Errorf("%s=%q: the error shows a part of the password: %v", name, value, err)
				}
			}
		}
	}
	for name, value := range map[string]string{"DATABASE_URL": "postgres://u:Zx@y12345@127.0.0.1/d", "REDIS_URL": "redis://:Zx@y12345@h", "AUTH_JWKS_URL": "https://u:Zx@y12345@h/k"} {
		if _, err := read(t, name, value); err == nil || !strings.Contains(err.Error(), "escape @ as %40") {
			t.Errorf("%s: %v does not say how to escape it", name, err)
		}
	}
}

// An @ where it belongs, or escaped, is no mistake.
func TestURLsWithAnAtSignInItsPlace(t *testing.T) {
	for name, values := range map[string][]string{
		"DATABASE_URL": {
			"postgres://u:Zx%40y12345@127.0.0.1/d", "postgres://u@h/d", "postgres://u:p@h1:5432,h2:5432/d", "postgres://h/d?user=a@b&password=c@d", "postgres:///d?host=/run/pg",
			"postgres://u:p@h/d?application_name=x@y", "sqlite:/srv/a@b/x.db", "sqlite:/srv/u:p@h@i.db", "postgres://u:p@[::1]:5432/d?sslmode=disable",
		},
		"REDIS_URL":     {"redis://:p%40ss@h:6379/0", "redis://u:p@h", "redis+sentinel://a:1,b:2/main?sentinel_password=p@q", "redis+cluster://:p@a,b"},
		"AUTH_JWKS_URL": {"https://id.example.com/@app/jwks.json", "https://id.example.com/jwks?user=a", "http://127.0.0.1:80/jwks"},
	} {
		for _, value := range values {
			if _, err := read(t, name, value); err != nil {
				t.Errorf("%s: %v", value, err)
			}
		}
	}
}
