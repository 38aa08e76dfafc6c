package auth

import (
	"crypto/rsa"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"switchyard/internal/testkit"
)

// Each answer is an outage: the last keys stay in use.
func TestAnswersThatAreNoJWKS(t *testing.T) {
	for name, tt := range map[string]struct {
		status int
		body   string
		says   string
	}{
		"not found":              {404, "", "it answered 404"},
		"no content":             {204, "", "it answered 204"},
		"forbidden":              {403, jwkSet(), "it answered 403"},
		"a redirect":             {302, "", "it answered 302, a redirect"},
		"nothing":                {200, "", "no JSON object with a list keys"},
		"a page":                 {200, "<html>please log in</html>", "no JSON object with a list keys"},
		"null":                   {200, "null", "no JSON object with a list keys"},
		"a list":                 {200, "[]", "no JSON object with a list keys"},
		"another object":         {200, `{"error":"away"}`, "no JSON object with a list keys"},
		"keys null":              {200, `{"keys":null}`, "no JSON object with a list keys"},
		"keys an object":         {200, `{"keys":{}}`, "no JSON object with a list keys"},
		"half a set":             {200, jwkSet(jwk(rsaKey(), nil))[:50], "no JSON object with a list keys"},
		"a set and more":         {200, jwkSet() + jwkSet(), "no JSON object with a list keys"},
		"deeper than JSON may":   {200, `{"keys":` + strings.Repeat("[", 20000), "no JSON object with a list keys"},
		"a byte over the bound":  {200, jwkSet() + strings.Repeat(" ", maxJWKS), "over 262144 bytes"},
		"a giant without an end": {200, strings.Repeat("x", 8<<20), "over 262144 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			i := newIssuer(jwk(rsaKey(), jsonObject{"kid": "r"}))
			cfg := i.serve(t)
			synctest.Test(t, func(t *testing.T) {
				w := openVerifier(t, cfg)
				i.answers(tt.status, tt.body)
				time.Sleep(minFetchInterval)
				w.refuses(signWithKID("new", ecKey()), ErrUnavailable)
				w.accepts(signWithKID("r", rsaKey()))
				if !strings.Contains(w.logged.String(), tt.says) || w.metric("auth_jwks_refreshes_total", "failed") != 1 {
					t.Errorf("does not say %q: %s", tt.says, w.logged)
				}
			})
		})
	}
}

// Each key is in a set beside a good one, and it alone is left out.
func TestKeysThatAreSkipped(t *testing.T) {
	b64 := func(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
	one := strings.Repeat("A", 43)
	small := jwk(&rsa.PrivateKey{PublicKey: rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(3), 1022)}}, nil)
	for name, tt := range map[string]struct {
		key  jsonObject
		says string
	}{
		"a secret":                    {jwk([]byte(secret), nil), "a secret that is shown to everybody"},
		"a private RSA key":           {jwk(rsaOther(), jsonObject{"d": b64(rsaOther().D.Bytes())}), "a private key that is shown to everybody"},
		"a private EC key":            {jwk(ecKey(), jsonObject{"d": one}), "a private key that is shown to everybody"},
		"a private Ed25519 key":       {jwk(edKey(), jsonObject{"d": one}), "a private key that is shown to everybody"},
		"for encryption":              {jwk(rsaOther(), jsonObject{"use": "enc"}), "not for signatures"},
		"for a use of its own":        {jwk(rsaOther(), jsonObject{"use": "SIG"}), "not for signatures"},
		"to sign only":                {jwk(rsaOther(), jsonObject{"key_ops": []string{"sign"}}), "not for signatures"},
		"for RS512":                   {jwk(rsaOther(), jsonObject{"alg": "RS512"}), "algorithm other than RS256"},
		"for PS256":                   {jwk(rsaOther(), jsonObject{"alg": "PS256"}), "algorithm other than RS256"},
		"RSA for HS256":               {jwk(rsaOther(), jsonObject{"alg": "HS256"}), "algorithm other than RS256"},
		"EC for EdDSA":                {jwk(ecKey(), jsonObject{"alg": "EdDSA"}), "algorithm other than ES256"},
		"RSA for none":                {jwk(rsaOther(), jsonObject{"alg": "none"}), "algorithm other than RS256"},
		"a small RSA key":             {small, "RSA key of 1024 bits"},
		"an RSA key without n":        {jwk(rsaOther(), jsonObject{"n": ""}), "can't be read"},
		"an exponent of 1":            {jwk(rsaOther(), jsonObject{"e": "AQ"}), "can't be read"},
		"an even exponent":            {jwk(rsaOther(), jsonObject{"e": "BA"}), "exponent"},
		"an exponent over 64 bits":    {jwk(rsaOther(), jsonObject{"e": b64(append([]byte{1}, make([]byte, 8)...))}), "can't be read"},
		"n that is no base64":         {jwk(rsaOther(), jsonObject{"n": "!!"}), "can't be read"},
		"P-384":                       {jwk(ec384(), nil), "EC key on P-384"},
		"a point beside the curve":    {jwk(ecKey(), jsonObject{"y": one}), "can't be read"},
		"the point at infinity":       {jwk(ecKey(), jsonObject{"x": one, "y": one}), "can't be read"},
		"an unknown curve":            {jwk(ecKey(), jsonObject{"crv": "secp256k1"}), "can't be read"},
		"X25519, for exchanges":       {jwk(edKey(), jsonObject{"crv": "X25519"}), "neither RSA nor EC nor Ed25519"},
		"Ed25519 of 31 bytes":         {jwk(edKey(), jsonObject{"x": b64(make([]byte, 31))}), "can't be read"},
		"an unknown kind":             {jsonObject{"kty": "AKP"}, "can't be read"},
		"a key without a kind":        {jsonObject{"kid": "x"}, "can't be read"},
		"kty a number":                {jsonObject{"kty": 7}, "can't be read"},
		"a kid that is too long":      {jwk(ecKey(), jsonObject{"kid": strings.Repeat("k", 257)}), "kid of over 256 bytes"},
		"an unknown key_ops":          {jwk(ecKey(), jsonObject{"key_ops": []string{"verify", "dance"}}), "can't be read"},
		"the same kid as a good key":  {jwk(ecKey(), jsonObject{"kid": "good", "use": "enc"}), "not for signatures"},
		"a point that is far too big": {jwk(ecKey(), jsonObject{"x": strings.Repeat("B", 4000)}), "can't be read"},
	} {
		t.Run(name, func(t *testing.T) {
			w := openVerifier(t, newIssuer(tt.key, jwk(rsaKey(), jsonObject{"kid": "good"})).inMemory())
			w.accepts(signWithKID("good", rsaKey()))
			for _, key := range []any{rsaOther(), ecKey(), edKey()} {
				w.refuses(sign(key, nil), ErrSignature)
			}
			if got := w.logged.Count("left out"); got != 1 || !strings.Contains(w.logged.String(), tt.says) {
				t.Errorf("does not say %q once: %s", tt.says, w.logged)
			}
		})
	}
}

func TestSkippedKeysAreLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(jwk(rsaKey(), nil), jwk(ec384(), nil), jwk([]byte(secret), nil), jwk(ec384(), nil))
		w := openVerifier(t, i.inMemory())
		time.Sleep(time.Hour)
		if got := w.logged.Count("left out"); got != 1 || !strings.Contains(w.logged.String(), "2: is an EC key on P-384") {
			t.Errorf("%d lines:\n%s", got, w.logged)
		}
		i.shows(jwk(rsaKey(), nil), jwk(ec384(), nil))
		time.Sleep(time.Hour)
		if got := w.logged.Count("left out"); got != 2 {
			t.Errorf("%d lines after a change:\n%s", got, w.logged)
		}
	})
}

// Certificates in a set are ignored.
func TestCertificatesOfASetAreNotRead(t *testing.T) {
	openVerifier(t, newIssuer(jwk(ecKey(), jsonObject{
		"x5c": []string{"broken"}, "x5t": "AA", "x5t#S256": "AA", "x5u": "http://evil.example/",
	})).inMemory()).accepts(sign(ecKey(), nil))
}

func TestAJWKSWithTooManyKeys(t *testing.T) {
	var keys []jsonObject
	for n := range maxJWKSKeys + 5 {
		keys = append(keys, jwk(ecKey(), jsonObject{"kid": fmt.Sprint(n)}))
	}
	w := openVerifier(t, newIssuer(keys...).inMemory())
	w.accepts(signWithKID("63", ecKey()))
	w.refuses(signWithKID("64", ecKey()), ErrSignature)
	if !strings.Contains(w.logged.String(), "5: there are over 64") {
		t.Errorf("logged %s", w.logged)
	}
}

// The operator decides where keys come from, not the server that answers.
func TestRedirectsAreNotFollowed(t *testing.T) {
	var reached atomic.Bool
	evil := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Store(true) }))
	defer evil.Close()
	hop := httptest.NewServer(http.RedirectHandler(evil.URL, http.StatusFound))
	defer hop.Close()
	follower := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, CheckRedirect: func(*http.Request, []*http.Request) error { return nil }}
	for _, client := range []*http.Client{nil, follower} {
		w := openVerifier(t, Config{JWKSURL: hop.URL, HTTPClient: client})
		w.refuses(sign(rsaKey(), nil), ErrUnavailable)
		if reached.Load() || !strings.Contains(w.logged.String(), "set AUTH_JWKS_URL to where it leads") {
			t.Errorf("the redirect was followed, or is not in the log: %s", w.logged)
		}
	}
	if follower.CheckRedirect(nil, nil) != nil {
		t.Error("the caller's client was changed")
	}
}

func TestTheIssuersCertificateIsVerified(t *testing.T) {
	server := httptest.NewUnstartedServer(newIssuer(jwk(ecKey(), nil)))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	stranger := openVerifier(t, Config{JWKSURL: server.URL})
	stranger.refuses(sign(ecKey(), nil), ErrUnavailable)
	if !strings.Contains(stranger.logged.String(), "certificate") {
		t.Errorf("logged %s", stranger.logged)
	}
	openVerifier(t, Config{JWKSURL: server.URL, HTTPClient: server.Client()}).accepts(sign(ecKey(), nil))
}

// An answer that never ends is cut at the bound.
func TestAnEndlessAnswerIsCut(t *testing.T) {
	var written atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		chunk := []byte(strings.Repeat(" ", 64<<10))
		for {
			n, err := w.Write(chunk)
			written.Add(int64(n))
			if err != nil {
				return
			}
		}
	}))
	w := openVerifier(t, Config{JWKSURL: server.URL})
	w.refuses(sign(ecKey(), nil), ErrUnavailable)
	server.Close() // waits for the handler, which ends when its client is gone
	if !strings.Contains(w.logged.String(), "over 262144 bytes") {
		t.Errorf("%d bytes written: %s", written.Load(), w.logged)
	}
}

// Nothing listens, the peer hangs up, or it speaks another protocol: each is an
// outage, and the verifier starts.
func TestUnreachableIssuers(t *testing.T) {
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("220 smtp ready\r\n"))
			_ = c.Close()
		}
	}()
	free := must(net.Listen("tcp", "127.0.0.1:0"))
	_ = free.Close()
	for _, addr := range []string{l.Addr().String(), free.Addr().String(), "127.0.0.1:1"} {
		w := openVerifier(t, Config{JWKSURL: "http://" + addr + "/jwks"})
		w.refuses(signWithKID("r", rsaKey()), ErrUnavailable)
		if w.logged.Count("answered with unavailable") != 1 {
			t.Errorf("%s: %s", addr, w.logged)
		}
	}
}

// The authority of the issuer is renewed beneath a running service. A file that can't
// be used changes nothing.
func TestARenewedAuthorityOfTheIssuerIsTrusted(t *testing.T) {
	t.Parallel()
	issuer := newIssuer(jwk(ecKey(), nil))
	server := httptest.NewUnstartedServer(issuer)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	mount := testkit.NewMount(t, map[string][]byte{"ca.crt": authority[:len(authority)/2]})
	w := openVerifier(t, Config{JWKSURL: server.URL, CertFile: mount.Path("ca.crt")})
	w.refuses(sign(ecKey(), nil), ErrUnavailable)
	if got := w.logged.Count("SSL_CERT_FILE can't be used"); got != 1 {
		t.Errorf("%d lines about the file, want 1:\n%s", got, w.logged)
	}
	mount.Replace(map[string][]byte{"ca.crt": authority})
	testkit.Eventually(t, "the keys to be fetched with the renewed authority", func() bool {
		_, err := w.Verify(t.Context(), sign(ecKey(), nil))
		return err == nil
	})
}
