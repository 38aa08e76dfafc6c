package auth

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func TestInvalidSettingsAreNamed(t *testing.T) {
	long := strings.Repeat("l", 40)
	tests := []struct {
		name string
		cfg  Config
		says []string
	}{
		{"a short secret", Config{JWTSecrets: []string{long, "short"}}, []string{"AUTH_JWT_SECRET", "secret 2 has 5 bytes", "32", "openssl rand"}},
		{"31 bytes", Config{JWTSecrets: []string{secret[1:]}}, []string{"AUTH_JWT_SECRET", "31 bytes"}},
		{"an empty secret", Config{JWTSecrets: []string{""}}, []string{"AUTH_JWT_SECRET", "0 bytes"}},
		{"a public key as a secret", Config{JWTSecrets: []string{pemOf(rsaKey())}}, []string{"AUTH_JWT_SECRET", "PEM", "AUTH_KEY_FILE"}},
		{"too many secrets", Config{JWTSecrets: make([]string, 17)}, []string{"AUTH_JWT_SECRET", "17 secrets, over 16"}},
		{"no such file", Config{KeyFile: "/no/such/file"}, []string{"AUTH_KEY_FILE=/no/such/file", "no such file"}},
		{"a directory", Config{KeyFile: t.TempDir()}, []string{"AUTH_KEY_FILE", "can't be used"}},
		{"a URL without a scheme", Config{JWKSURL: "id.example/jwks"}, []string{"AUTH_JWKS_URL", "https://host/path"}},
		{"a file's URL", Config{JWKSURL: "file:///etc/passwd"}, []string{"AUTH_JWKS_URL", "https://host/path"}},
		{"a URL without a host", Config{JWKSURL: "https:///jwks"}, []string{"AUTH_JWKS_URL", "https://host/path"}},
		{"no URL", Config{JWKSURL: "https://id.example/%zz"}, []string{"AUTH_JWKS_URL", "can't be read"}},
		{"a URL with a password", Config{JWKSURL: "https://u:hush@id.example/jwks"}, []string{"AUTH_JWKS_URL", "password"}},
		{"a URL with a #", Config{JWKSURL: "https://id.example/jwks#x"}, []string{"AUTH_JWKS_URL", "#"}},
		{"plain http", Config{JWKSURL: "http://id.example/jwks"}, []string{"AUTH_JWKS_URL is http", "AUTH_JWKS_ALLOW_HTTP=true"}},
		{"plain http to what is only named like this machine", Config{JWKSURL: "http://localhost.example/jwks"}, []string{"AUTH_JWKS_URL is http"}},
		{"plain http to an address that only begins like this machine", Config{JWKSURL: "http://127.0.0.1.example/"}, []string{"AUTH_JWKS_URL is http"}},
		{"keys that end before they are fetched", Config{JWTSecrets: []string{long}, JWKSRefresh: time.Hour, JWKSMaxStale: time.Minute}, []string{"AUTH_JWKS_MAX_STALE=1m0s", "AUTH_JWKS_REFRESH=1h0m0s"}},
		{"a negative leeway", Config{Leeway: -1}, []string{"AUTH_LEEWAY", "from 0s to 2m0s"}},
		{"too long a leeway", Config{Leeway: 2*time.Minute + 1}, []string{"AUTH_LEEWAY", "from 0s to 2m0s"}},
		{"an issuer and no key", Config{Issuer: "me"}, []string{"AUTH_ISSUER", "AUTH_JWT_SECRET"}},
		{"an audience and no key", Config{Audience: []string{"me"}}, []string{"AUTH_AUDIENCE", "AUTH_JWKS_URL"}},
		{"an endless issuer", Config{JWTSecrets: []string{long}, Issuer: strings.Repeat("i", 513)}, []string{"AUTH_ISSUER has 513 bytes, over 512"}},
		{"an empty audience", Config{JWTSecrets: []string{long}, Audience: []string{"a", ""}}, []string{"AUTH_AUDIENCE", "1 to 512"}},
		{"no client may connect", Config{Anonymous: "off"}, []string{"AUTH_ANONYMOUS=off", "AUTH_JWT_SECRET"}},
		{"anonymous clients beside tokens", Config{JWTSecrets: []string{long}, Anonymous: "on"}, []string{"AUTH_ANONYMOUS=on", "public.*:r"}},
		{"patterns without rights", Config{Anonymous: "lobby"}, []string{"AUTH_ANONYMOUS", "lobby:rw"}},
		{"neither on nor off", Config{Anonymous: "true"}, []string{"AUTH_ANONYMOUS", "auto, on, off or patterns"}},
		{"a pattern that can't be", Config{Anonymous: "a/b:r"}, []string{"AUTH_ANONYMOUS", "pattern 1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.cfg.Logger, tt.cfg.Registerer = slog.New(slog.DiscardHandler), prometheus.NewRegistry()
			_, err := New(context.Background(), tt.cfg)
			if err == nil {
				t.Fatal("accepted")
			}
			for _, says := range tt.says {
				if !strings.Contains(err.Error(), says) {
					t.Errorf("%v: does not say %q", err, says)
				}
			}
			if strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "hush") || strings.Contains(err.Error(), long) {
				t.Errorf("more than one line, or a secret: %v", err)
			}
		})
	}
}

func TestAllMistakesAreReportedAtOnce(t *testing.T) {
	_, err := New(context.Background(), Config{
		JWTSecrets: []string{"x"}, KeyFile: "/no", JWKSURL: "ftp://x", Leeway: time.Hour, Anonymous: "on",
		Logger: slog.New(slog.DiscardHandler),
	})
	if err == nil || strings.Count(err.Error(), "\n") != 4 {
		t.Errorf("want 5 mistakes, got %v", err)
	}
}

func TestValidJWKSURLs(t *testing.T) {
	for url, allowHTTP := range map[string]bool{
		"https://id.example/.well-known/jwks.json": false, "https://id.example:8443/jwks?p=b2c": false,
		"http://localhost:8000/jwks": false, "http://127.0.0.1/jwks": false, "http://127.8.9.1:80/": false, "http://[::1]:8000/jwks": false,
		"http://web:8000/jwks": true,
	} {
		if err := checkJWKSURL(url, allowHTTP); err != nil {
			t.Errorf("%s: %v", url, err)
		}
	}
}

func TestAnonymousAccess(t *testing.T) {
	keys := []string{secret}
	tests := []struct {
		name, anonymous string
		secrets         []string
		open            bool
		reads, writes   bool // in the room public.a
		others          bool // may read another room
	}{
		{"nothing is configured", "", nil, true, true, true, true},
		{"auto without a key", "auto", nil, true, true, true, true},
		{"on without a key", "on", nil, true, true, true, true},
		{"patterns without a key", "public.*:r", nil, true, true, false, false},
		{"a key is configured", "", keys, false, false, false, false},
		{"auto with a key", "auto", keys, false, false, false, false},
		{"off with a key", "off", keys, false, false, false, false},
		{"patterns beside tokens", "public.*:r", keys, true, true, false, false},
		{"patterns to write, beside tokens", "public.*:w", keys, true, false, true, false},
		{"all rooms by a pattern", "*:rw", keys, true, true, true, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			identity, isOpen := openVerifier(t, Config{JWTSecrets: tt.secrets, Anonymous: tt.anonymous}).Anonymous()
			if isOpen != tt.open || identity.User != "" || identity.May("public.a", Read) != tt.reads ||
				identity.May("public.a", Publish) != tt.writes || identity.May("secret", Join) != tt.others || identity.May("_canary", Join) {
				t.Errorf("open %v, %+v", isOpen, identity)
			}
		})
	}
}

// Two verifiers in one process have a registry each, or none.
func TestMetricsAreThereFromTheStart(t *testing.T) {
	w := openVerifier(t, Config{JWTSecrets: []string{secret}})
	for _, result := range []string{"ok", "missing", "malformed", "signature", "algorithm", "expired", "not_yet", "issuer", "audience", "user", "rooms", "unavailable"} {
		if got := w.metric("auth_tokens_total", result); got != 0 {
			t.Errorf("%s: %v", result, got)
		}
	}
	families, err := w.registry.Gather()
	if err != nil || len(families) != 1 {
		t.Errorf("%d metrics without a JWKS, want 1 (%v)", len(families), err)
	}
	if _, err := New(context.Background(), Config{Logger: slog.New(slog.DiscardHandler)}); err != nil {
		t.Error(err)
	}
}
