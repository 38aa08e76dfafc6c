package auth

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Bounds on a token, in bytes.
const (
	maxToken = 8 << 10
	maxKeyID = 256
)

// A token is a parsed JWS in compact form. None of it is verified yet.
type token struct {
	algorithm string
	keyID     string // "" when it names no key
	signed    string // header and payload, as the issuer signed them
	payload   []byte
	signature []byte
}

// alphabet is that of base64url without padding. It is checked first, because Go's
// decoder would skip line breaks.
const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

// base64url refuses unused bits in the last character, so that each signature has
// only one spelling.
var base64url = base64.RawURLEncoding.Strict()

// parseToken parses a token and its header. It reads no claim: claims mean nothing
// before the signature is verified.
func parseToken(s string) (token, error) {
	switch {
	case s == "":
		return token{}, ErrMissing
	case len(s) > maxToken:
		return token{}, fmt.Errorf("%w: it has over %d bytes", ErrMalformed, maxToken)
	case strings.Trim(s, alphabet+".") != "":
		return token{}, fmt.Errorf("%w: it must be of A-Z a-z 0-9 - _ and dots", ErrMalformed)
	case strings.Count(s, ".") == 4:
		return token{}, fmt.Errorf("%w: encrypted tokens are not taken", ErrMalformed)
	case strings.Count(s, ".") != 2:
		return token{}, fmt.Errorf("%w: it must have three parts", ErrMalformed)
	}
	dot := strings.LastIndexByte(s, '.')
	t := token{signed: s[:dot]}
	header, payload, _ := strings.Cut(t.signed, ".")
	head, err1 := base64url.DecodeString(header)
	body, err2 := base64url.DecodeString(payload)
	signature, err3 := base64url.DecodeString(s[dot+1:])
	if err1 != nil || err2 != nil || err3 != nil {
		return token{}, fmt.Errorf("%w: its parts must be base64url without padding", ErrMalformed)
	}
	t.payload, t.signature = body, signature
	if err := t.readHeader(head); err != nil {
		return token{}, fmt.Errorf("%w: its header %w", ErrMalformed, err)
	}
	return t, nil
}

// readHeader reads alg and kid. It ignores keys that a header contains (jwk, x5c)
// or points to (jku, x5u): a key is trusted because it is configured, never because
// a token names it. It refuses parameters that would change how the rest is read.
func (t *token) readHeader(header []byte) error {
	err := visitObject(header, func(name string, value json.RawMessage) error {
		ok := true
		switch name {
		case "alg":
			t.algorithm, ok = unquote(value)
		case "kid":
			if t.keyID, ok = unquote(value); len(t.keyID) > maxKeyID {
				return fmt.Errorf("has a kid of over %d bytes", maxKeyID)
			}
		case "typ":
			_, ok = unquote(value)
		case "crit", "b64":
			return fmt.Errorf("has %s: extensions are not understood", name)
		case "enc", "zip", "cty":
			return fmt.Errorf("has %s: encrypted, compressed and nested tokens are not taken", name)
		}
		if !ok {
			return fmt.Errorf("has a %s that is no text", name)
		}
		return nil
	})
	if err == nil && t.algorithm == "" {
		err = errors.New("has no alg")
	}
	return err
}
