package e2e

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"strings"
	"time"
)

// A tokenAttack uses a token in a handshake and over HTTP.
type tokenAttack struct {
	name  string
	token func(a *attacker) string
	want  string
}

// tokenRefused is the answer to a token that is not accepted.
const tokenRefused = "close 4001, 401 unauthorized"

// tokenAttacks use tokens in a handshake and to read history over HTTP.
func tokenAttacks() (all []attack) {
	for _, row := range append(forgedTokens(), unacceptableTokens()...) {
		all = append(all, attack{"a token: " + row.name, row.want, func(a *attacker) string { return a.tryToken(row.token(a)) }})
	}
	return append(all, tokenTransportAttacks()...)
}

// forgedTokens have a wrong signature, or headers that may mislead its check.
func forgedTokens() []tokenAttack {
	return []tokenAttack{
		{"it has no signature", func(a *attacker) string { return base64URL(`{"alg":"none"}`) + "." + a.payload(nil) + "." }, tokenRefused},
		{"it has no signature, and an algorithm in mixed case", func(a *attacker) string { return base64URL(`{"alg":"nOnE"}`) + "." + a.payload(nil) + "." }, tokenRefused},
		{"its signature is cut off", func(a *attacker) string { return cutLast(tokenOf(a.user, nil)) }, tokenRefused},
		{"its signature is another token's", func(a *attacker) string {
			good := tokenOf(a.user, nil)
			return cutLast(tokenOf("ada", nil)) + good[strings.LastIndexByte(good, '.')+1:]
		}, tokenRefused},
		{"its payload is another user's", func(a *attacker) string {
			parts := strings.Split(tokenOf(a.user, nil), ".")
			return parts[0] + "." + base64URL(mustJSON(claims("ada", nil))) + "." + parts[2]
		}, tokenRefused},
		{"it is signed with the public key as an HMAC secret", func(a *attacker) string {
			return signHS256(`{"alg":"HS256"}`, mustJSON(claims(a.user, nil)), a.publicKeys)
		}, tokenRefused},
		{"its algorithm is RS256 and it is signed with the secret", func(a *attacker) string {
			return signHS256(`{"alg":"RS256"}`, mustJSON(claims(a.user, nil)), signingSecret)
		}, tokenRefused},
		{"it is signed with an empty secret", func(a *attacker) string { return signHS256(`{"alg":"HS256"}`, mustJSON(claims(a.user, nil)), "") }, tokenRefused},
		{"its algorithm is HS512", func(a *attacker) string {
			return signHS256(`{"alg":"HS512"}`, mustJSON(claims(a.user, nil)), signingSecret)
		}, tokenRefused},
		{"its ECDSA signature is all zeros", func(a *attacker) string {
			return base64URL(`{"alg":"ES256"}`) + "." + a.payload(nil) + "." + base64URL(strings.Repeat("\x00", 64))
		}, tokenRefused},
		{"it contains the attacker's key that signed it", func(a *attacker) string {
			return a.signRS256(`{"alg":"RS256","jwk":{"kty":"RSA","n":"AQAB","e":"AQAB"}}`, nil, newRSAKey())
		}, tokenRefused},
		{"it names a URL of its key", func(a *attacker) string {
			return a.signRS256(`{"alg":"RS256","jku":"http://127.0.0.1:1/keys","x5u":"http://127.0.0.1:1/"}`, nil, newRSAKey())
		}, tokenRefused},
		{"its key id is a path", func(a *attacker) string {
			return signHS256(`{"alg":"HS256","kid":"../../../../dev/null"}`, mustJSON(claims(a.user, nil)), "\x00")
		}, tokenRefused},
		{"it has critical headers", func(a *attacker) string {
			return signHS256(`{"alg":"HS256","crit":["exp"]}`, mustJSON(claims(a.user, nil)), signingSecret)
		}, tokenRefused},
		{"its payload is not encoded", func(a *attacker) string {
			return signHS256(`{"alg":"HS256","b64":false}`, mustJSON(claims(a.user, nil)), signingSecret)
		}, tokenRefused},
		{"it has alg twice", func(a *attacker) string {
			return signHS256(`{"alg":"none","alg":"HS256"}`, mustJSON(claims(a.user, nil)), signingSecret)
		}, tokenRefused},
		{"it has sub twice", func(a *attacker) string {
			return signHS256(`{"alg":"HS256"}`, `{"sub":"ada",`+mustJSON(claims(a.user, nil))[1:], signingSecret)
		}, tokenRefused},
		{"it is encrypted", func(a *attacker) string { return tokenOf(a.user, nil) + ".AAAA.AAAA" }, tokenRefused},
	}
}

// unacceptableTokens have claims that the service does not accept. The last ones are
// valid.
func unacceptableTokens() []tokenAttack {
	return []tokenAttack{
		{"it has expired", func(a *attacker) string { return tokenOf(a.user, jsonObject{"exp": time.Now().Unix() - 1}) }, tokenRefused},
		{"it has no expiry", func(a *attacker) string { return tokenOf(a.user, jsonObject{"exp": nil}) }, tokenRefused},
		{"its expiry overflows", func(a *attacker) string { return tokenOf(a.user, jsonObject{"exp": 1e300}) }, tokenRefused},
		{"its expiry is a string", func(a *attacker) string { return tokenOf(a.user, jsonObject{"exp": "9999999999"}) }, tokenRefused},
		{"it is valid from tomorrow on", func(a *attacker) string { return tokenOf(a.user, jsonObject{"nbf": time.Now().Unix() + 86400}) }, tokenRefused},
		{"it has another issuer", func(a *attacker) string {
			return tokenOf(a.user, jsonObject{"iss": "https://id.example.com.evil.example"})
		}, tokenRefused},
		{"it is for another service", func(a *attacker) string { return tokenOf(a.user, jsonObject{"aud": []string{"billing", "Chat"}}) }, tokenRefused},
		{"it has no audience", func(a *attacker) string { return tokenOf(a.user, jsonObject{"aud": nil}) }, tokenRefused},
		{"its subject is empty", func(a *attacker) string { return tokenOf(a.user, jsonObject{"sub": ""}) }, tokenRefused},
		{"its subject is a number", func(a *attacker) string { return tokenOf(a.user, jsonObject{"sub": 7}) }, tokenRefused},
		{"its subject is that of an API key", func(*attacker) string { return tokenOf("api:shop", nil) }, tokenRefused},
		{"its subject has a line break", func(*attacker) string { return tokenOf("ada\n{\"audit\":\"v1\"}", nil) }, tokenRefused},
		{"its subject is half a surrogate pair", func(*attacker) string {
			return signHS256(`{"alg":"HS256"}`, strings.Replace(mustJSON(claims("XX", nil)), "XX", `\ud800`, 1), signingSecret)
		}, tokenRefused},
		{"it permits reserved rooms", func(a *attacker) string { return tokenOf(a.user, jsonObject{"rooms": jsonObject{"_*": "rw"}}) }, tokenRefused},
		{"it has an unknown right", func(a *attacker) string { return tokenOf(a.user, jsonObject{"rooms": jsonObject{"*": "admin"}}) }, tokenRefused},
		{"its patterns take long to match", func(a *attacker) string {
			return tokenOf(a.user, jsonObject{"rooms": jsonObject{strings.Repeat("*a", 9): "rw"}})
		}, tokenRefused},
		{"it is padded", func(a *attacker) string { return tokenOf(a.user, nil) + "==" }, tokenRefused},
		{"it is an API key", func(*attacker) string { return shopKey }, "close 4001, 200"},
		{"it is valid", func(a *attacker) string { return tokenOf(a.user, nil) }, "welcome, 200"},
		{"it is valid, and signed by the RSA key of the file", func(a *attacker) string { return a.signRS256(`{"alg":"RS256"}`, nil, a.rsa) }, "welcome, 200"},
		{"it is valid, and signed by the ECDSA key of the file", func(a *attacker) string { return a.signES256() }, "welcome, 200"},
	}
}

// tryToken uses a token in a handshake and over HTTP.
func (a *attacker) tryToken(token string) string {
	at := a.tryHandshake(upgradeRequest("Authorization: Bearer " + token))
	return at + ", " + a.roundTrip(request("GET /v1/rooms/news/messages", "", "Authorization: Bearer "+token))
}

func (a *attacker) payload(change jsonObject) string {
	return base64URL(mustJSON(claims(a.user, change)))
}

func cutLast(token string) string { return token[:strings.LastIndexByte(token, '.')+1] }

func newRSAKey() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
}

func (a *attacker) signRS256(header string, change jsonObject, key *rsa.PrivateKey) string {
	text := base64URL(header) + "." + a.payload(change)
	sum := sha256.Sum256([]byte(text))
	signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	if err != nil {
		panic(err)
	}
	return text + "." + base64URL(string(signature))
}

func (a *attacker) signES256() string {
	text := base64URL(`{"alg":"ES256"}`) + "." + a.payload(nil)
	sum := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, a.ec, sum[:])
	if err != nil {
		panic(err)
	}
	var both [64]byte
	r.FillBytes(both[:32])
	s.FillBytes(both[32:])
	return text + "." + base64URL(string(both[:]))
}

// tokenTransportAttacks send tokens in wrong ways or at wrong times.
func tokenTransportAttacks() []attack {
	bearer := func(token string) string { return "Authorization: Bearer " + token }
	frame := func(token string) string { return fmt.Sprintf(`{"type":"auth","ref":"x","token":%q}`, token) }
	tryWith := func(lines func(a *attacker) []string) func(a *attacker) string {
		return func(a *attacker) string { return a.tryHandshake(upgradeRequest(lines(a)...)) }
	}
	return []attack{
		{"two tokens come, one in a header and one in a subprotocol", "400 invalid", tryWith(func(a *attacker) []string {
			return []string{bearer(tokenOf(a.user, nil)), "Sec-WebSocket-Protocol: switchyard.v1, bearer." + tokenOf("ada", nil)}
		})},
		{"two tokens come in two headers", "400 invalid", tryWith(func(a *attacker) []string {
			return []string{bearer(tokenOf(a.user, nil)), bearer(tokenOf("ada", nil))}
		})},
		{"a token comes empty", "400 invalid", tryWith(func(*attacker) []string { return []string{"Sec-WebSocket-Protocol: bearer."} })},
		{"a token is longer than allowed", "400 invalid", tryWith(func(*attacker) []string { return []string{bearer(strings.Repeat("a", 8193))} })},
		{"a token comes in the query, which is off", "close 4001", func(a *attacker) string {
			return a.tryHandshake(strings.Replace(upgradeRequest(), "/ws", "/ws?access_token="+tokenOf(a.user, nil), 1))
		}},
		{"a socket sends no token", "close 4001", tryWith(func(*attacker) []string { return nil })},
		{"a frame is sent before any token", "error unauthorized", func(a *attacker) string {
			w, _ := a.open(upgradeRequest())
			w.send(`{"type":"join","ref":"x","room":"news"}`)
			return w.answer()
		}},
		{"tokens are guessed in one frame after the other", "error unauthorized, close 4001", func(a *attacker) string {
			w, _ := a.open(upgradeRequest())
			w.send(frame("guess"), frame("guess"), frame("guess"))
			return w.answer() + ", " + w.answer()
		}},
		{"a connection gets another user's token", "error forbidden, still works", func(a *attacker) string {
			w := a.connectAsOwnUser()
			w.send(frame(tokenOf("ada", nil)))
			return w.answer() + ", " + w.stillWorks()
		}},
		{"a connection gets an expired token", "error unauthorized, still works", func(a *attacker) string {
			w := a.connectAsOwnUser()
			w.send(frame(tokenOf(a.user, jsonObject{"exp": 1})))
			return w.answer() + ", " + w.stillWorks()
		}},
		{"a connection stays open when its token expires", "close 4001", func(a *attacker) string {
			w := a.connectWithToken(tokenOf(a.user, jsonObject{"exp": time.Now().Unix() + 5}))
			_, end := w.readUntil(func(*receivedFrame) bool { return false })
			return end
		}},
		{"a connection gets a token with fewer rights", "joined, error forbidden, authenticated, error invalid", func(a *attacker) string {
			w := a.connectAsOwnUser()
			w.send(`{"type":"join","ref":"x","room":"news"}`)
			joined := w.answer()
			w.send(frame(tokenOf(a.user, jsonObject{"rooms": jsonObject{"own.*": "r"}})))
			revoked, fresh := w.answer(), w.answer()
			w.send(`{"type":"leave","ref":"x","room":"news"}`) // the new token ended the membership
			return strings.Join([]string{joined, revoked, fresh, w.answer()}, ", ")
		}},
		{"a token comes in two headers of a request", "401 unauthorized", func(a *attacker) string {
			return a.roundTrip(request("GET /v1/rooms/news/messages", "", bearer(tokenOf(a.user, nil)), bearer(tokenOf(a.user, nil))))
		}},
	}
}
