package auth

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"switchyard/internal/message"
)

func TestTokensOfEachKindOfKey(t *testing.T) {
	w := openVerifier(t, Config{JWTSecrets: []string{secret}, KeyFile: writeKeyFile(t, pemOf(rsaKey(), ecKey(), edKey()))})
	for _, key := range []any{secret, rsaKey(), ecKey(), edKey()} {
		identity := w.accepts(sign(key, nil))
		if identity.User != "ada" || !identity.May("orders.7", Publish) || !identity.May("news", Join) || identity.May("news", Publish) || identity.May("other", Join) {
			t.Errorf("%s: got %+v", algorithmOf(key), identity)
		}
	}
	if got := w.metric("auth_tokens_total", "ok"); got != 4 {
		t.Errorf("%v tokens counted as ok, want 4", got)
	}
	if !strings.Contains(w.logged.String(), "tokens are checked") || strings.Contains(w.logged.String(), secret) {
		t.Errorf("logged %s", w.logged)
	}
}

// The log warns if the service is open to everybody, and not if only a secret is
// configured.
func TestTheLogReportsAnonymousAccess(t *testing.T) {
	for _, says := range []struct {
		cfg  Config
		open bool
	}{
		{Config{}, true},
		{Config{JWTSecrets: []string{secret}}, false},
		{Config{JWTSecrets: []string{secret}, Anonymous: "off"}, false},
	} {
		logged := openVerifier(t, says.cfg).logged.String()
		if strings.Contains(logged, "no key is configured") != says.open || strings.Contains(logged, "tokens are checked") == says.open {
			t.Errorf("%+v: %s", says.cfg, logged)
		}
	}
}

// A secret is replaced in three starts: old; old and new; new. Tokens are valid as
// long as their secret is listed.
func TestASecretIsReplacedWithoutAGap(t *testing.T) {
	next := strings.Repeat("n", 40)
	before, during, after := openVerifier(t, Config{JWTSecrets: []string{secret}}), openVerifier(t, Config{JWTSecrets: []string{next, secret}}), openVerifier(t, Config{JWTSecrets: []string{next}})
	during.accepts(sign(secret, nil))
	during.accepts(sign(next, nil))
	before.refuses(sign(next, nil), ErrSignature)
	after.accepts(sign(next, nil))
	after.refuses(sign(secret, nil), ErrSignature)
}

func TestAKeyOfTheFileIsReplacedWithoutAGap(t *testing.T) {
	both := openVerifier(t, Config{KeyFile: writeKeyFile(t, pemOf(rsaOther(), rsaKey()))})
	both.accepts(sign(rsaKey(), nil))
	both.accepts(sign(rsaOther(), nil))
	// Keys of a file have no key IDs: they are tried whatever kid a token has.
	both.accepts(signWith(jsonObject{"kid": "2024-05"}, rsaKey(), nil))
	openVerifier(t, Config{KeyFile: writeKeyFile(t, pemOf(rsaOther()))}).refuses(sign(rsaKey(), nil), ErrSignature)
}

func TestATokenEndsWithItsLeeway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := openVerifier(t, Config{JWTSecrets: []string{secret}, Leeway: 10 * time.Second})
		start := time.Now()
		token := sign(secret, jsonObject{"exp": start.Add(time.Minute).Unix()})
		if got := w.accepts(token).Expires; !got.Equal(start.Add(70 * time.Second)) {
			t.Errorf("expires %v after the start, want 70 s", got.Sub(start))
		}
		time.Sleep(70*time.Second - time.Nanosecond)
		w.accepts(token)
		time.Sleep(time.Nanosecond)
		w.refuses(token, ErrExpired)
		if got := w.metric("auth_tokens_total", "expired"); got != 1 {
			t.Errorf("%v counted as expired", got)
		}
	})
}

func TestATokenBeginsWithItsLeeway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := openVerifier(t, Config{JWTSecrets: []string{secret}, Leeway: 10 * time.Second})
		token := sign(secret, jsonObject{"nbf": time.Now().Add(time.Minute).Unix(), "exp": time.Now().Add(time.Hour).Unix()})
		time.Sleep(50*time.Second - time.Nanosecond)
		if err := w.refuses(token, ErrNotYet); !strings.Contains(err.Error(), "its nbf lies 10s ahead, more than AUTH_LEEWAY=10s") {
			t.Errorf("%v does not say how far nbf lies ahead", err)
		}
		time.Sleep(time.Nanosecond)
		w.accepts(token)
	})
}

// Each token of an issuer whose clock is ahead is issued in the future, and valid: iat
// restricts nothing.
func TestATokenOfAnIssuerWhoseClockIsAheadIsValid(t *testing.T) {
	w := openVerifier(t, Config{JWTSecrets: []string{secret}})
	for _, ahead := range []time.Duration{20 * time.Second, time.Hour} {
		w.accepts(sign(secret, jsonObject{"iat": time.Now().Add(ahead).Unix(), "exp": time.Now().Add(10 * time.Minute).Unix()}))
	}
}

func TestNoLeewayMeansNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := openVerifier(t, Config{JWTSecrets: []string{secret}})
		token := sign(secret, jsonObject{"exp": time.Now().Add(time.Second).Unix()})
		w.accepts(token)
		time.Sleep(time.Second)
		w.refuses(token, ErrExpired)
	})
}

func TestIssuerAndAudience(t *testing.T) {
	w := openVerifier(t, Config{JWTSecrets: []string{secret}, Issuer: "https://id.example", Audience: []string{"chat", "chat-next"}})
	tests := []struct {
		name     string
		iss, aud any
		want     error
	}{
		{"both right", "https://id.example", "chat", nil},
		{"the other audience", "https://id.example", "chat-next", nil},
		{"one of several audiences", "https://id.example", []string{"mail", "chat"}, nil},
		{"another issuer", "https://evil.example", "chat", ErrIssuer},
		{"an issuer that begins the same", "https://id.example.evil", "chat", ErrIssuer},
		{"an issuer with a slash more", "https://id.example/", "chat", ErrIssuer},
		{"in other letters", "HTTPS://ID.EXAMPLE", "chat", ErrIssuer},
		{"no issuer", nil, "chat", ErrIssuer},
		{"an empty issuer", "", "chat", ErrIssuer},
		{"a list of issuers", []string{"https://id.example"}, "chat", ErrMalformed},
		{"another audience", "https://id.example", "mail", ErrAudience},
		{"other audiences", "https://id.example", []string{"mail", "cha", "chats"}, ErrAudience},
		{"no audience", "https://id.example", nil, ErrAudience},
		{"an empty list", "https://id.example", []string{}, ErrAudience},
		{"an empty audience", "https://id.example", "", ErrAudience},
		{"an audience that is a number", "https://id.example", 7, ErrMalformed},
		{"a list with a number", "https://id.example", []any{"chat", 7}, ErrMalformed},
		{"an audience that is an object", "https://id.example", jsonObject{"chat": true}, ErrMalformed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w.t = t
			token := sign(secret, jsonObject{"iss": tt.iss, "aud": tt.aud})
			if tt.want == nil {
				w.accepts(token)
			} else {
				w.refuses(token, tt.want)
			}
		})
	}
	// Without the settings these claims are not checked, except for their types.
	openVerifier(t, Config{JWTSecrets: []string{secret}}).accepts(sign(secret, jsonObject{"iss": "any", "aud": []string{"any"}}))
}

func TestATokenWithoutRoomsGrantsNone(t *testing.T) {
	identity := openVerifier(t, Config{JWTSecrets: []string{secret}}).accepts(sign(secret, jsonObject{"rooms": nil}))
	for _, action := range []Action{Join, Read, Publish, Signal} {
		if identity.May("news", action) {
			t.Errorf("may %v", action)
		}
	}
}

func TestTheUserIsTheSubjectClaim(t *testing.T) {
	w := openVerifier(t, Config{JWTSecrets: []string{secret}})
	for _, user := range []string{"7", "ada@example.com", "auth0|507f1f77", "Ødegård 🚂", strings.Repeat("u", message.MaxUserLength), "api", "apia:x", " "} {
		if got := w.accepts(sign(secret, jsonObject{"sub": user})).User; got != user {
			t.Errorf("user %q became %q", user, got)
		}
	}
}

func TestWithoutAnyKeyTokensAreRefusedAndSayWhy(t *testing.T) {
	w := openVerifier(t, Config{})
	if err := w.refuses(sign(secret, nil), ErrAlgorithm); !strings.Contains(err.Error(), "none is configured") {
		t.Errorf("got %v", err)
	}
	if identity, open := w.Anonymous(); !open || identity.User != "" || !identity.May("any", Publish) || !identity.Expires.IsZero() {
		t.Errorf("anonymous: %+v, %v", identity, open)
	}
	if !strings.Contains(w.logged.String(), "AUTH_JWT_SECRET") {
		t.Errorf("no warning: %s", w.logged)
	}
}

func TestEachCauseHasItsOwnName(t *testing.T) {
	var names []string
	for _, c := range causes {
		if got := Cause(c.err); got != c.name {
			t.Errorf("%v is %s, want %s", c.err, got, c.name)
		}
		names = append(names, c.name)
	}
	slices.Sort(names)
	if len(slices.Compact(names)) != 11 || Cause(nil) != "ok" || Cause(errors.New("?")) != "unavailable" || Cause(context.Canceled) != "unavailable" {
		t.Errorf("causes: %v", names)
	}
}

func TestAVerifierKeepsNoSecretText(t *testing.T) {
	w := openVerifier(t, Config{JWTSecrets: []string{secret}})
	if got := w.cfg.JWTSecrets; got != nil {
		t.Errorf("the settings still contain %q", got)
	}
}
