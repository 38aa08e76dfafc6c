package auth

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Bounds on what a token may make us read, in bytes.
const (
	maxToken = 8 << 10
	maxKeyID = 256
)

// A token is a JWS in its compact form, taken apart. Nothing of it is proven.
type token struct {
	algorithm string
	keyID     string // "" when it names no key
	signed    string // header and payload, as they were signed
	payload   []byte
	signature []byte
}

// alphabet is base64url without padding. Go's decoder would skip line breaks.
const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

// base64url refuses spare bits in the last character: one signature has one
// spelling.
var base64url = base64.RawURLEncoding.Strict()

// parseToken takes a token apart and reads its header, no claim yet: those
// mean nothing before the signature is checked.
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

// readHeader takes alg and kid. Keys that a header brings along (jwk, x5c) or
// points to (jku, x5u) are not looked at: a key is trusted for where it was
// configured, never for what a token says. What changes how the rest is to be
// read is refused.
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
