package auth

import (
	"context"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"switchyard/internal/message"
)

// Every token is answered with an identity that was signed, or with one known
// cause. The error contains nothing of the token.
func FuzzToken(f *testing.F) {
	w := openWithAllKeys(f)
	jwks := openVerifier(f, newIssuer(jwk(rsaKey(), jsonObject{"kid": "r"}), jwk(ecKey(), nil)).inMemory())
	signed, late := map[string]bool{}, jsonObject{"exp": int64(4000000000)}
	for _, key := range []any{secret, rsaKey(), ecKey(), edKey()} {
		for _, token := range []string{sign(key, late), signWith(jsonObject{"kid": "r"}, key, late), sign(key, jsonObject{"sub": nil, "exp": late["exp"]}), sign(key, jsonObject{"exp": 0})} {
			signed[token[:strings.LastIndexByte(token, '.')]] = true
			f.Add(token)
		}
	}
	for _, seed := range []string{
		"", ".", "..", "a.b.c", "....", rfcHS256, rfcRS256, rfcES256, rfcEdDSA,
		segment(`{"alg":"none"}`) + "." + segment(encode(validClaims(nil))) + ".",
		segment(`{"alg":"HS256","crit":["b64"],"b64":false}`) + ".e30.", segment(`{"alg":"HS256","alg":"none"}`) + ".e30.e30",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, token string) {
		for _, v := range []*testVerifier{w, jwks} {
			identity, err := v.Verify(context.Background(), token)
			if err == nil {
				// An EC signature has two spellings, so only the signed part is
				// compared.
				if !signed[token[:strings.LastIndexByte(token, '.')]] {
					t.Errorf("accepted without a signature of the test's keys: %+v", identity)
				}
				continue
			}
			known := 0
			for _, c := range causes {
				if errors.Is(err, c.err) {
					known++
				}
			}
			if known != 1 || errors.Is(err, ErrUnavailable) {
				t.Errorf("%d causes: %v", known, err)
			}
			if len(token) > 20 && strings.Contains(err.Error(), token[len(token)/2-8:len(token)/2+8]) {
				t.Errorf("the error shows the token: %v", err)
			}
		}
	})
}

// FuzzClaims tests what a trusted issuer may sign by mistake.
func FuzzClaims(f *testing.F) {
	w := openWithAllKeys(f)
	for _, seed := range []string{
		encode(validClaims(nil)), `{}`, `[]`, `{"sub":"ada","exp":1e300}`, `{"sub":"\ud800","exp":4000000000}`, `{"sub":"api:x","exp":4000000000}`,
		`{"sub":"a","exp":4000000000,"rooms":{"*":"rw","_x":"r"}}`, `{"sub":"a","exp":4e9,"aud":["a",1],"iss":null,"nbf":-1}`, `{"sub":"a","sub":"b"}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, claims string) {
		identity, err := w.Verify(context.Background(), signRaw(`{"alg":"HS256"}`, claims, secret))
		switch {
		case errors.Is(err, ErrSignature), errors.Is(err, ErrAlgorithm), errors.Is(err, ErrMissing), errors.Is(err, ErrUnavailable):
			t.Errorf("%v", err)
		case err == nil && (identity.User == "" || len(identity.User) > message.MaxUserLength || !utf8.ValidString(identity.User) ||
			strings.HasPrefix(identity.User, "api:") || strings.ContainsAny(identity.User, "\x00\n\r\x7f") || identity.Expires.Year() > 10000 || identity.May("_x", Join)):
			t.Errorf("got %+v", identity)
		}
	})
}

// Patterns are parsed or refused, and match as a simpler matcher says.
func FuzzPattern(f *testing.F) {
	f.Add("orders.*:rw", "orders.7")
	f.Add("a*b*c:r,a:w", "abc")
	f.Add("**:r", "x")
	f.Add("*a*a*a*a*a*a*a*b:r", strings.Repeat("a", 128))
	f.Add("_x:r, ,:w", "_x")
	f.Fuzz(func(t *testing.T, list, name string) {
		rooms, err := ParsePermissions(list)
		if err != nil {
			if rooms.grants != nil {
				t.Error("patterns are returned with an error")
			}
			return
		}
		identity := Identity{Permissions: rooms}
		room, err := message.ParseRoom(name)
		if err != nil {
			return
		}
		want := false
		for _, g := range rooms.grants {
			want = want || g.rights&rightRead != 0 && matchesByTable(g.pattern, name)
		}
		if got := identity.May(room, Join); got != (want && !room.Reserved()) {
			t.Errorf("%q on %q: %v, want %v", list, name, got, want)
		}
	})
}

// matchesByTable is matches with dynamic programming: fits[i] says that the pattern
// so far matches the first i bytes.
func matchesByTable(pattern, name string) bool {
	fits := make([]bool, len(name)+1)
	fits[0] = true
	for _, c := range []byte(pattern) {
		next := make([]bool, len(name)+1)
		for i := range next {
			if c == '*' {
				next[i] = fits[i] || i > 0 && next[i-1]
			} else {
				next[i] = i > 0 && fits[i-1] && name[i-1] == c
			}
		}
		fits = next
	}
	return fits[len(name)]
}

// Whatever an issuer answers, the parser does not fail and never returns a weak
// key.
func FuzzJWKS(f *testing.F) {
	f.Add(jwkSet(jwk(rsaKey(), jsonObject{"kid": "r"}), jwk(ecKey(), nil), jwk(edKey(), jsonObject{"use": "sig"})))
	f.Add(jwkSet(jwk(ec384(), nil), jwk([]byte(secret), nil)))
	f.Add(`{"keys":[` + rfcRS256JWK + `,` + rfcES256JWK + `,` + rfcEdDSAJWK + `]}`)
	f.Add(`{"keys":[null,1,"x",[],{"kty":"RSA","n":"AA","e":"/////////////w"},{"kty":"EC","crv":"P-256","x":"","y":"AA"}]}`)
	f.Fuzz(func(t *testing.T, body string) {
		keys, _, err := parseJWKS([]byte(body))
		if err != nil && keys != nil {
			t.Error("keys are returned with an error")
		}
		for _, k := range keys {
			if own, err := publicKey(k.Key()); err != nil || own.algorithm != k.Marshal().ALG.String() {
				t.Errorf("a key for %s: %v", k.Marshal().ALG, err)
			}
		}
	})
}

// A key file may contain anything.
func FuzzKeyFile(f *testing.F) {
	f.Add([]byte(pemOf(rsaKey(), ecKey(), edKey())))
	f.Add([]byte(pemOf(ec384())))
	f.Add([]byte("-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----"))
	f.Fuzz(func(t *testing.T, content []byte) {
		keys, err := parseKeys(content)
		if (err == nil) != (len(keys) > 0) || len(keys) > maxKeys {
			t.Errorf("%d keys, %v", len(keys), err)
		}
		for _, k := range keys {
			if again, err := publicKey(k.material); err != nil || again.algorithm != k.algorithm {
				t.Errorf("a key for %s: %v", k.algorithm, err)
			}
		}
	})
}
