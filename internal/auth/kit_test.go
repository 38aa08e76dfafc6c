package auth

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/prometheus/client_golang/prometheus"

	"switchyard/internal/testkit"
	"switchyard/internal/testkit/metrictest"
)

// The keys of the tests, made once a run. Where possible they are always the same,
// so that the processes of a fuzz test accept each other's tokens.
var (
	secret   = strings.Repeat("s3cret--", 4) // 32 bytes, the minimum
	rsaKey   = sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 2048)) })
	rsaOther = sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 2048)) })
	ecKey    = sync.OnceValue(func() *ecdsa.PrivateKey { return must(ecdsa.ParseRawPrivateKey(elliptic.P256(), []byte(secret))) })
	ec384    = sync.OnceValue(func() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)) })
	edKey    = sync.OnceValue(func() ed25519.PrivateKey { return ed25519.NewKeyFromSeed([]byte(secret)) })
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// A jsonObject is a JSON object for headers and claims.
type jsonObject = map[string]any

// validClaims returns the claims of a valid token with changes; nil removes a
// claim.
func validClaims(change jsonObject) jsonObject {
	c := jsonObject{
		"sub": "ada", "exp": time.Now().Add(time.Hour).Unix(), "rooms": jsonObject{"orders.*": "rw", "news": "r"},
	}
	maps.Copy(c, change)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	return c
}

// sign returns a token with validClaims.
func sign(key any, change jsonObject) string { return signWith(nil, key, change) }

// signWith is sign with changes of the header.
func signWith(header jsonObject, key any, change jsonObject) string {
	return signRaw(encode(headerOf(header, key)), encode(validClaims(change)), key)
}

func headerOf(change jsonObject, key any) jsonObject {
	h := jsonObject{"alg": algorithmOf(key), "typ": "JWT"}
	maps.Copy(h, change)
	maps.DeleteFunc(h, func(_ string, v any) bool { return v == nil })
	return h
}

// signRaw signs texts as they are, by the method of the key, whatever the header
// says.
func signRaw(header, payload string, key any) string {
	signed := segment(header) + "." + segment(payload)
	return signed + "." + segment(string(signature(signed, key)))
}

func signature(signed string, key any) []byte {
	if s, ok := key.(string); ok {
		key = []byte(s)
	}
	return must(signingMethods[algorithmOf(key)].Sign(signed, key))
}

var signingMethods = map[string]jwt.SigningMethod{
	hs256: jwt.SigningMethodHS256, rs256: jwt.SigningMethodRS256, es256: jwt.SigningMethodES256,
	"ES384": jwt.SigningMethodES384, eddsa: jwt.SigningMethodEdDSA,
}

func algorithmOf(key any) string {
	switch k := key.(type) {
	case *rsa.PrivateKey:
		return rs256
	case *ecdsa.PrivateKey:
		if k.Curve == elliptic.P384() {
			return "ES384"
		}
		return es256
	case ed25519.PrivateKey:
		return eddsa
	}
	return hs256
}

func segment(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }

func encode(v any) string { return string(must(json.Marshal(v))) }

// pemOf returns the public keys in PEM, one after the other.
func pemOf(keys ...crypto.Signer) string {
	var b strings.Builder
	for _, k := range keys {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: must(x509.MarshalPKIXPublicKey(k.Public()))}))
	}
	return b.String()
}

func writeKeyFile(t testing.TB, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keys.pem")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A testVerifier is a verifier with its metrics and logs.
type testVerifier struct {
	*Verifier
	t        testing.TB
	registry *prometheus.Registry
	logged   *testkit.Logs
}

// openVerifier returns a verifier that is closed with the test.
func openVerifier(t testing.TB, cfg Config) *testVerifier {
	t.Helper()
	w := &testVerifier{t: t, registry: prometheus.NewRegistry(), logged: new(testkit.Logs)}
	cfg.Registerer, cfg.Logger = w.registry, w.logged.Logger()
	v, err := New(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	v.LogConfig()
	w.Verifier = v
	t.Cleanup(func() {
		if err := v.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return w
}

// accepts fails the test unless the token is valid.
func (w *testVerifier) accepts(token string) Identity {
	w.t.Helper()
	identity, err := w.Verify(context.Background(), token)
	if err != nil {
		w.t.Fatalf("refused: %v", err)
	}
	return identity
}

// refuses fails the test unless the token is refused for this reason, with an error
// that does not quote it.
func (w *testVerifier) refuses(token string, want error) error {
	w.t.Helper()
	identity, err := w.Verify(context.Background(), token)
	if err == nil {
		w.t.Fatalf("accepted as %+v, want %v", identity, want)
	}
	if Cause(err) != Cause(want) {
		w.t.Errorf("refused with %v (%s), want %v", err, Cause(err), want)
	}
	if identity.User != "" || identity.Permissions.grants != nil {
		w.t.Errorf("an identity comes with the error: %+v", identity)
	}
	for part := range strings.SplitSeq(token, ".") {
		if len(part) > 7 && strings.Contains(err.Error(), part) {
			w.t.Errorf("the error shows the token: %v", err)
		}
	}
	return err
}

// metric is metrictest.Sum of the verifier.
func (w *testVerifier) metric(name, label string) float64 {
	w.t.Helper()
	return metrictest.Sum(w.t, w.registry, name, label)
}

// jwk returns the JWK of a key, with changes.
func jwk(key any, change jsonObject) jsonObject {
	b64 := func(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
	var m jsonObject
	switch k := key.(type) {
	case *rsa.PrivateKey:
		m = jsonObject{"kty": "RSA", "n": b64(k.N.Bytes()), "e": "AQAB"}
	case *ecdsa.PrivateKey:
		size := (k.Curve.Params().BitSize + 7) / 8
		point := must(k.PublicKey.Bytes())[1:]
		m = jsonObject{"kty": "EC", "crv": k.Curve.Params().Name, "x": b64(point[:size]), "y": b64(point[size:])}
	case ed25519.PrivateKey:
		m = jsonObject{"kty": "OKP", "crv": "Ed25519", "x": b64(k.Public().(ed25519.PublicKey))}
	case []byte:
		m = jsonObject{"kty": "oct", "k": b64(k)}
	default:
		panic(fmt.Sprintf("%T", key))
	}
	maps.Copy(m, change)
	return m
}

func jwkSet(keys ...jsonObject) string {
	return encode(jsonObject{"keys": append([]jsonObject{}, keys...)})
}
