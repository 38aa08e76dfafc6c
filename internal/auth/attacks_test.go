package auth

import (
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"
	"time"
)

// openWithAllKeys returns a verifier with every kind of key, which leaves most room
// for mistakes.
func openWithAllKeys(t testing.TB) *testVerifier {
	return openVerifier(t, Config{
		JWTSecrets: []string{secret}, KeyFile: writeKeyFile(t, pemOf(rsaKey(), ecKey(), edKey())), Leeway: 10 * time.Second,
	})
}

// A refusedToken is a token that must be refused, with the reason.
type refusedToken struct {
	name  string
	token string
	want  error
}

func TestMalformedTokensAreRefused(t *testing.T) {
	good := sign(secret, nil)
	head, rest, _ := strings.Cut(good, ".")
	body, sig, _ := strings.Cut(rest, ".")
	last := len(sig) - 1
	refuseAll(t, []refusedToken{
		{"nothing", "", ErrMissing},
		{"a space", " ", ErrMalformed},
		{"dots alone", "..", ErrMalformed},
		{"one word", "token", ErrMalformed},
		{"the scheme is still there", "Bearer " + good, ErrMalformed},
		{"a space at the end", good + " ", ErrMalformed},
		{"a line break inside", good[:40] + "\n" + good[40:], ErrMalformed},
		{"a carriage return at the end", good + "\r", ErrMalformed},
		{"a NUL", good + "\x00", ErrMalformed},
		{"bytes that are not ASCII", good + "é", ErrMalformed},
		{"bytes that are not UTF-8", good + "\xff", ErrMalformed},
		{"a percent escape", strings.Replace(good, ".", "%2E", 1), ErrMalformed},
		{"two parts", head + "." + body, ErrMalformed},
		{"four parts", good + ".x", ErrMalformed},
		{"a dot at the end", good + ".", ErrMalformed},
		{"five parts: encrypted", good + ".x.y", ErrMalformed},
		{"padding", head + "=." + body + "." + sig, ErrMalformed},
		{"the other base64", strings.ReplaceAll(strings.ReplaceAll(good, "-", "+"), "_", "/") + "+", ErrMalformed},
		{"spare bits in the signature", good[:len(good)-1] + string(alphabet[strings.IndexByte(alphabet, sig[last])^1]), ErrMalformed},
		{"over 8 KiB", strings.Repeat("a", maxToken) + ".b.c", ErrMalformed},
		{"over 8 KiB, though signed", sign(secret, jsonObject{"x": strings.Repeat("x", maxToken)}), ErrMalformed},
		{"dots over dots", strings.Repeat(".", maxToken), ErrMalformed},
		{"JSON instead of a compact token", `{"payload":"","signature":""}`, ErrMalformed},
		{"no signature", head + "." + body + ".", ErrSignature},
		{"half a signature", head + "." + body + "." + sig[:20], ErrSignature},
		{"no payload", head + ".." + sig, ErrSignature},
		{"another payload", head + "." + segment(encode(validClaims(jsonObject{"sub": "root"}))) + "." + sig, ErrSignature},
		{"another header", segment(`{"alg":"HS256","typ":"JOT"}`) + "." + body + "." + sig, ErrSignature},
	})
}

func TestBadHeadersAreRefused(t *testing.T) {
	claims := encode(validClaims(nil))
	raw := func(header string) string { return signRaw(header, claims, secret) }
	refuseAll(t, []refusedToken{
		{"empty", raw(``), ErrMalformed},
		{"no JSON", raw(`alg=HS256`), ErrMalformed},
		{"a list", raw(`["HS256"]`), ErrMalformed},
		{"a text", raw(`"HS256"`), ErrMalformed},
		{"null", raw(`null`), ErrMalformed},
		{"two objects", raw(`{"alg":"HS256"}{"alg":"none"}`), ErrMalformed},
		{"a comma at the end", raw(`{"alg":"HS256",}`), ErrMalformed},
		{"not UTF-8", raw("{\"alg\":\"HS256\",\"x\":\"\xff\"}"), ErrMalformed},
		{"a byte order mark", raw("\ufeff" + `{"alg":"HS256"}`), ErrMalformed},
		{"no alg", raw(`{"typ":"JWT"}`), ErrMalformed},
		{"ALG in capitals", raw(`{"ALG":"HS256"}`), ErrMalformed},
		{"an empty alg", raw(`{"alg":""}`), ErrMalformed},
		{"alg null", raw(`{"alg":null}`), ErrMalformed},
		{"a list of algs", raw(`{"alg":["HS256"]}`), ErrMalformed},
		{"alg twice", raw(`{"alg":"none","alg":"HS256"}`), ErrMalformed},
		{"alg twice, once escaped", raw(`{"alg":"HS256","\u0061lg":"HS256"}`), ErrMalformed},
		{"kid a number", raw(`{"alg":"HS256","kid":7}`), ErrMalformed},
		{"kid an object", raw(`{"alg":"HS256","kid":{"$ne":1}}`), ErrMalformed},
		{"kid too long", raw(`{"alg":"HS256","kid":"` + strings.Repeat("k", maxKeyID+1) + `"}`), ErrMalformed},
		{"typ a number", raw(`{"alg":"HS256","typ":1}`), ErrMalformed},
		{"an extension that must be understood", raw(`{"alg":"HS256","crit":["exp"],"exp":1}`), ErrMalformed},
		{"an empty list of extensions", raw(`{"alg":"HS256","crit":[]}`), ErrMalformed},
		{"a payload that is not encoded", raw(`{"alg":"HS256","b64":false}`), ErrMalformed},
		{"compressed", raw(`{"alg":"HS256","zip":"DEF"}`), ErrMalformed},
		{"encrypted", raw(`{"alg":"dir","enc":"A128GCM"}`), ErrMalformed},
		{"nested", raw(`{"alg":"HS256","cty":"JWT"}`), ErrMalformed},
		{"nested deeply", raw(`{"alg":"HS256","x":` + strings.Repeat("[", 2900) + strings.Repeat("]", 2900) + `,"alg":1}`), ErrMalformed},
	})
}

// The key is public: a token that is signed with its bytes as a secret must be
// refused.
func TestAttacksWithTheAlgorithmAreRefused(t *testing.T) {
	claims := encode(validClaims(nil))
	none := func(alg string) string { return segment(`{"alg":"`+alg+`"}`) + "." + segment(claims) + "." }
	der := must(x509.MarshalPKIXPublicKey(rsaKey().Public()))
	asPEM := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	tricks := []refusedToken{
		{"none", none("none"), ErrAlgorithm},
		{"None", none("None"), ErrAlgorithm},
		{"nOnE", none("nOnE"), ErrAlgorithm},
		{"none, with a signature", none("none") + segment("x"), ErrAlgorithm},
		{"none, signed with the secret", signRaw(`{"alg":"none"}`, claims, secret), ErrAlgorithm},
		{"hs256 in small letters", signRaw(`{"alg":"hs256"}`, claims, secret), ErrAlgorithm},
		{"HS256 and a space", signRaw(`{"alg":"HS256 "}`, claims, secret), ErrAlgorithm},
		{"HS256 and a NUL", signRaw(`{"alg":"HS256\u0000"}`, claims, secret), ErrAlgorithm},
		{"HS384 by name", signRaw(`{"alg":"HS384"}`, claims, secret), ErrAlgorithm},
		{"HS512 by name", signRaw(`{"alg":"HS512"}`, claims, secret), ErrAlgorithm},
		{"PS256 by name", signRaw(`{"alg":"PS256"}`, claims, rsaKey()), ErrAlgorithm},
		{"RS512 by name", signRaw(`{"alg":"RS512"}`, claims, rsaKey()), ErrAlgorithm},
		{"RS1", signRaw(`{"alg":"RS1"}`, claims, rsaKey()), ErrAlgorithm},
		{"ES384", sign(ec384(), nil), ErrAlgorithm},
		{"ES256K", signRaw(`{"alg":"ES256K"}`, claims, ecKey()), ErrAlgorithm},
		{"an RSA signature named ES256", signRaw(`{"alg":"ES256"}`, claims, rsaKey()), ErrSignature},
		{"an RSA signature named HS256", signRaw(`{"alg":"HS256"}`, claims, rsaKey()), ErrSignature},
		{"an EC signature named RS256", signRaw(`{"alg":"RS256"}`, claims, ecKey()), ErrSignature},
		{"an EC signature named EdDSA", signRaw(`{"alg":"EdDSA"}`, claims, ecKey()), ErrSignature},
		{"an Ed25519 signature named ES256", signRaw(`{"alg":"ES256"}`, claims, edKey()), ErrSignature},
		{"the secret's signature named RS256", signRaw(`{"alg":"RS256"}`, claims, secret), ErrSignature},
		{"another RSA key", sign(rsaOther(), nil), ErrSignature},
		{"another secret", sign(strings.Repeat("x", 32), nil), ErrSignature},
		{"an empty secret", sign("", nil), ErrSignature},
		{"r and s of zero", segment(`{"alg":"ES256"}`) + "." + segment(claims) + "." + segment(strings.Repeat("\x00", 64)), ErrSignature},
		{"an EC signature in ASN.1", inASN1(claims), ErrSignature},
		{"a key that the token brings", ownKey(claims, jsonObject{"jwk": jwk(rsaOther(), nil)}), ErrSignature},
		{"a certificate that the token brings", ownKey(claims, jsonObject{"x5c": []string{"MIIB"}}), ErrSignature},
		{"a URL to fetch the key from", ownKey(claims, jsonObject{"jku": "https://evil.example/jwks"}), ErrSignature},
		{"a certificate to fetch", ownKey(claims, jsonObject{"x5u": "https://evil.example/x"}), ErrSignature},
		{"a kid that is a path", signWith(jsonObject{"kid": "../../../dev/null"}, "", nil), ErrSignature},
		{"a kid that is SQL", signWith(jsonObject{"kid": "' UNION SELECT 'x"}, strings.Repeat("x", 32), nil), ErrSignature},
	}
	for _, spelling := range []string{asPEM, strings.TrimSpace(asPEM), string(der), base64.StdEncoding.EncodeToString(der), string(rsaKey().N.Bytes())} {
		tricks = append(tricks, refusedToken{fmt.Sprintf("the public key as a secret, %d bytes", len(spelling)), sign(spelling, nil), ErrSignature})
	}
	refuseAll(t, tricks)

	// A verifier without a secret does not try HS256.
	public := openVerifier(t, Config{KeyFile: writeKeyFile(t, asPEM)})
	public.refuses(sign(asPEM, nil), ErrAlgorithm)
	public.refuses(sign(ecKey(), nil), ErrAlgorithm)
}

// ownKey returns a token that is signed with a stranger's key, and names that key
// in its header.
func ownKey(claims string, header jsonObject) string {
	return signRaw(encode(headerOf(header, rsaOther())), claims, rsaOther())
}

func inASN1(claims string) string {
	signed := segment(`{"alg":"ES256"}`) + "." + segment(claims)
	hash := sha256.Sum256([]byte(signed))
	return signed + "." + segment(string(must(ecdsa.SignASN1(rand.Reader, ecKey(), hash[:]))))
}

func TestBadClaimsAreRefused(t *testing.T) {
	raw := func(payload string) string { return signRaw(`{"alg":"HS256"}`, payload, secret) }
	with := func(change jsonObject) string { return sign(secret, change) }
	exp := func(number string) string { return raw(`{"sub":"ada","exp":` + number + `}`) }
	future := fmt.Sprint(time.Now().Add(time.Hour).Unix())
	refuseAll(t, []refusedToken{
		{"no payload", raw(``), ErrMalformed},
		{"no JSON", raw(`sub=ada`), ErrMalformed},
		{"a list", raw(`[{"sub":"ada","exp":` + future + `}]`), ErrMalformed},
		{"a token in a token", raw(`"` + sign(secret, nil) + `"`), ErrMalformed},
		{"two objects", raw(`{"sub":"ada","exp":` + future + `}{}`), ErrMalformed},
		{"not UTF-8", raw("{\"sub\":\"ada\xff\",\"exp\":" + future + "}"), ErrMalformed},
		{"sub twice", raw(`{"sub":"ada","sub":"root","exp":` + future + `}`), ErrMalformed},
		{"sub twice, once escaped", raw(`{"sub":"ada","su\u0062":"root","exp":` + future + `}`), ErrMalformed},
		{"exp twice", raw(`{"sub":"ada","exp":1,"exp":` + future + `}`), ErrMalformed},
		{"a claim nobody reads twice", raw(`{"sub":"ada","x":1,"x":2,"exp":` + future + `}`), ErrMalformed},
		{"SUB in capitals", raw(`{"SUB":"ada","exp":` + future + `}`), ErrUser},
		{"EXP in capitals", raw(`{"sub":"ada","EXP":` + future + `}`), ErrMalformed},
		{"no exp", with(jsonObject{"exp": nil}), ErrMalformed},
		{"exp null", exp(`null`), ErrMalformed},
		{"exp a text", exp(`"` + future + `"`), ErrMalformed},
		{"exp true", exp(`true`), ErrMalformed},
		{"exp a list", exp(`[` + future + `]`), ErrMalformed},
		{"exp negative", exp(`-1`), ErrMalformed},
		{"exp after the year 9999", exp(`253402300800`), ErrMalformed},
		{"exp over 63 bits", exp(`9223372036854775808`), ErrMalformed},
		{"exp over 64 bits", exp(`18446744073709551617`), ErrMalformed},
		{"exp 1e300", exp(`1e300`), ErrMalformed},
		{"exp 1e999", exp(`1e999`), ErrMalformed},
		{"exp with thousands of digits", exp(strings.Repeat("9", 5000)), ErrMalformed},
		{"exp with a long tail", exp(future + "." + strings.Repeat("0", 40)), ErrMalformed},
		{"exp in hex", exp(`0x7fffffff`), ErrMalformed},
		{"exp Infinity", exp(`Infinity`), ErrMalformed},
		{"exp in the past", with(jsonObject{"exp": time.Now().Add(-11 * time.Second).Unix()}), ErrExpired},
		{"exp 0", exp(`0`), ErrExpired},
		{"exp -0", exp(`-0`), ErrExpired},
		{"exp 1970 in small steps", exp(`1e-30`), ErrExpired},
		{"nbf ahead", with(jsonObject{"nbf": time.Now().Add(time.Minute).Unix()}), ErrNotYet},
		{"nbf a text", with(jsonObject{"nbf": "0"}), ErrMalformed},
		{"nbf null", raw(`{"sub":"ada","nbf":null,"exp":` + future + `}`), ErrMalformed},
		{"iat a text", with(jsonObject{"iat": "0"}), ErrMalformed},
		{"iat null", raw(`{"sub":"ada","iat":null,"exp":` + future + `}`), ErrMalformed},
		{"aud null", raw(`{"sub":"ada","aud":null,"exp":` + future + `}`), ErrMalformed},
		{"aud holds null", raw(`{"sub":"ada","aud":[null],"exp":` + future + `}`), ErrMalformed},
		{"no sub", with(jsonObject{"sub": nil}), ErrUser},
		{"sub null", raw(`{"sub":null,"exp":` + future + `}`), ErrUser},
		{"sub empty", with(jsonObject{"sub": ""}), ErrUser},
		{"sub a number", with(jsonObject{"sub": 7}), ErrUser},
		{"sub a list", with(jsonObject{"sub": []string{"ada"}}), ErrUser},
		{"sub too long", with(jsonObject{"sub": strings.Repeat("u", 129)}), ErrUser},
		{"sub with a line break", with(jsonObject{"sub": "ada\nlevel=ERROR"}), ErrUser},
		{"sub with a NUL", with(jsonObject{"sub": "ada\x00"}), ErrUser},
		{"sub with an escape", with(jsonObject{"sub": "\x1b[2Jada"}), ErrUser},
		{"sub with a C1 control", with(jsonObject{"sub": "ada\u0085"}), ErrUser},
		{"sub with half a surrogate", raw(`{"sub":"ada\ud800","exp":` + future + `}`), ErrUser},
		{"sub with the replacement character", with(jsonObject{"sub": "ada\ufffd"}), ErrUser},
		{"sub as a backend", with(jsonObject{"sub": "api:shop"}), ErrUser},
		{"sub as a backend, in capitals", with(jsonObject{"sub": "API:shop"}), ErrUser},
		{"sub as a nameless backend", with(jsonObject{"sub": "api:"}), ErrUser},
		{"rooms null", raw(`{"sub":"ada","rooms":null,"exp":` + future + `}`), ErrRooms},
		{"rooms a text", with(jsonObject{"rooms": "*:rw"}), ErrRooms},
		{"rooms a list", with(jsonObject{"rooms": []string{"*"}}), ErrRooms},
		{"rooms true", with(jsonObject{"rooms": true}), ErrRooms},
		{"a room twice", raw(`{"sub":"ada","rooms":{"a":"r","a":"rw"},"exp":` + future + `}`), ErrRooms},
		{"rights a number", with(jsonObject{"rooms": jsonObject{"a": 6}}), ErrRooms},
		{"rights empty", with(jsonObject{"rooms": jsonObject{"a": ""}}), ErrRooms},
		{"rights unknown", with(jsonObject{"rooms": jsonObject{"a": "rwx"}}), ErrRooms},
		{"rights in capitals", with(jsonObject{"rooms": jsonObject{"a": "RW"}}), ErrRooms},
		{"rights doubled", with(jsonObject{"rooms": jsonObject{"a": "rr"}}), ErrRooms},
		{"a room without a name", with(jsonObject{"rooms": jsonObject{"": "r"}}), ErrRooms},
		{"a room with a space", with(jsonObject{"rooms": jsonObject{"a b": "r"}}), ErrRooms},
		{"a room as a regular expression", with(jsonObject{"rooms": jsonObject{"(a+)+$": "r"}}), ErrRooms},
		{"a room's name too long", with(jsonObject{"rooms": jsonObject{strings.Repeat("a", 129): "r"}}), ErrRooms},
		{"too many wildcards", with(jsonObject{"rooms": jsonObject{strings.Repeat("a*", 9): "r"}}), ErrRooms},
		{"the service's own rooms", with(jsonObject{"rooms": jsonObject{"_canary.*": "rw"}}), ErrRooms},
		{"too many rooms", with(jsonObject{"rooms": manyRooms(257)}), ErrRooms},
	})
}

func manyRooms(n int) jsonObject {
	m := jsonObject{}
	for i := range n {
		m[fmt.Sprintf("room.%d", i)] = "r"
	}
	return m
}

// refuseAll tries each token on a verifier with every kind of key.
func refuseAll(t *testing.T, tricks []refusedToken) {
	t.Helper()
	w := openWithAllKeys(t)
	for _, tt := range tricks {
		t.Run(tt.name, func(t *testing.T) {
			w.t = t
			before := w.metric("auth_tokens_total", Cause(tt.want))
			w.refuses(tt.token, tt.want)
			if got := w.metric("auth_tokens_total", Cause(tt.want)); got != before+1 {
				t.Errorf("counted %v as %s, want 1", got-before, Cause(tt.want))
			}
		})
	}
}

// These tokens look like attacks and are allowed.
func TestUnusualTokensAreAccepted(t *testing.T) {
	w := openWithAllKeys(t)
	future := fmt.Sprint(time.Now().Add(time.Hour).Unix())
	raw := func(payload string) string { return signRaw(`{"alg":"HS256"}`, payload, secret) }
	for name, token := range map[string]string{
		"no typ":                     signWith(jsonObject{"typ": nil}, secret, nil),
		"another typ":                signWith(jsonObject{"typ": "at+jwt"}, secret, nil),
		"white space":                signRaw("\n{ \"alg\" : \"HS256\" }\t", " "+encode(validClaims(nil))+"\r\n", secret),
		"a kid on a secret":          signWith(jsonObject{"kid": "main"}, secret, nil),
		"the longest kid":            signWith(jsonObject{"kid": strings.Repeat("k", maxKeyID)}, secret, nil),
		"exp with a fraction":        raw(`{"sub":"ada","exp":` + future + `.75}`),
		"exp with an exponent":       raw(`{"sub":"ada","exp":2.5e11}`),
		"exp at the end of 9999":     raw(`{"sub":"ada","exp":253402300799}`),
		"exp 8 to 9 s ago":           sign(secret, jsonObject{"exp": time.Now().Add(-8 * time.Second).Unix()}),
		"iat ahead":                  sign(secret, jsonObject{"iat": time.Now().Add(time.Minute).Unix()}),
		"nbf and iat 0":              sign(secret, jsonObject{"nbf": 0, "iat": 0}),
		"other claims, deep":         raw(`{"sub":"ada","exp":` + future + `,"x":` + strings.Repeat(`{"y":`, 900) + `1` + strings.Repeat(`}`, 900) + `}`),
		"SUB beside sub":             raw(`{"sub":"ada","SUB":"root","exp":` + future + `}`),
		"names that are escaped":     raw(`{"s\u0075b":"\u0061da","exp":` + future + `}`),
		"as many rooms as may be":    sign(secret, jsonObject{"rooms": manyRooms(256)}),
		"no rooms in a list":         sign(secret, jsonObject{"rooms": jsonObject{}}),
		"almost 8 KiB":               sign(secret, jsonObject{"x": strings.Repeat("x", 5900)}),
		"keys in the header, unread": signWith(jsonObject{"jwk": jwk(rsaOther(), nil), "jku": "https://evil.example"}, secret, nil),
	} {
		t.Run(name, func(t *testing.T) {
			w.t = t
			if identity := w.accepts(token); identity.User != "ada" {
				t.Errorf("user %q", identity.User)
			}
		})
	}
}

// The signature is checked before any claim is read: the error says nothing about
// the claims of a stranger's token.
func TestClaimsAreNotReadBeforeTheSignatureIsChecked(t *testing.T) {
	w := openWithAllKeys(t)
	stranger := strings.Repeat("x", 32)
	for _, claims := range []string{`{`, `{"exp":0}`, `{"sub":"api:x","exp":1e300}`, `{"sub":"ada","sub":"ada"}`} {
		w.refuses(signRaw(`{"alg":"HS256"}`, claims, stranger), ErrSignature)
	}
}

// The kit signs with the library under test. These tokens are made with the
// standard library alone.
func TestATokenMadeByHand(t *testing.T) {
	signed := segment(`{"alg":"HS256"}`) + "." + segment(encode(validClaims(nil)))
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(signed))
	openWithAllKeys(t).accepts(signed + "." + segment(string(mac.Sum(nil))))

	signed = segment(`{"alg":"RS256"}`) + "." + segment(encode(validClaims(nil)))
	hash := sha256.Sum256([]byte(signed))
	sig := must(rsa.SignPKCS1v15(nil, rsaKey(), 5 /* crypto.SHA256 */, hash[:]))
	openWithAllKeys(t).accepts(signed + "." + segment(string(sig)))
}
