package auth

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"switchyard/internal/message"
)

// apiUserPrefix begins the names under which backends publish. No token may claim
// such a name.
const apiUserPrefix = "api:"

// maxDate is the end of the year 9999, in seconds since 1970. maxDateLength is the
// most characters that a date may have. A date beyond these is a mistake or an
// attack: its conversion to time overflows, with a result that depends on the
// processor.
const (
	maxDate       = 253402300799
	maxDateLength = 32
)

// claims are the claims that this service uses. A claim that the token does not
// have is the zero time or nil.
type claims struct {
	expires, notBefore time.Time
	issuer             string
	audience           []string
	subject, rooms     json.RawMessage
}

// parseClaims reads the payload of a token whose signature was verified.
func parseClaims(payload []byte) (c claims, err error) {
	err = visitObject(payload, func(name string, value json.RawMessage) error {
		ok := true
		switch name {
		case "exp":
			c.expires, ok = numericDate(value)
		case "nbf":
			c.notBefore, ok = numericDate(value)
		case "iat":
			// It must be a date, and restricts nothing: nbf is the claim for that (RFC 7519
			// §4.1.6). An issuer whose clock is ahead issues each token in the future.
			_, ok = numericDate(value)
		case "iss":
			c.issuer, ok = unquote(value)
		case "aud":
			c.audience, ok = stringOrList(value)
		case "sub":
			c.subject = value
		case "rooms":
			c.rooms = value
		}
		if !ok {
			return fmt.Errorf("has a claim %s of the wrong type or out of bounds", name)
		}
		return nil
	})
	switch {
	case err != nil:
		return claims{}, fmt.Errorf("%w: its payload %w", ErrMalformed, err)
	case c.expires.IsZero():
		return claims{}, fmt.Errorf("%w: it has no exp", ErrMalformed)
	}
	return c, nil
}

// numericDate reads a NumericDate (RFC 7519 §2), a number of seconds. It drops the
// fraction.
func numericDate(value json.RawMessage) (time.Time, bool) {
	if len(value) > maxDateLength {
		return time.Time{}, false
	}
	seconds, err := strconv.ParseFloat(string(value), 64)
	if err != nil || seconds < 0 || seconds > maxDate {
		return time.Time{}, false
	}
	return time.Unix(int64(seconds), 0), true
}

// stringOrList reads a string, or a list of strings.
func stringOrList(value json.RawMessage) ([]string, bool) {
	if one, ok := unquote(value); ok {
		return []string{one}, true
	}
	var items []json.RawMessage
	if err := json.Unmarshal(value, &items); err != nil || items == nil {
		return nil, false
	}
	list := make([]string, 0, len(items))
	for _, item := range items {
		s, ok := unquote(item)
		if !ok {
			return nil, false
		}
		list = append(list, s)
	}
	return list, true
}

// check compares the claims with the clock and the settings.
func (c *claims) check(now time.Time, cfg *Config) error {
	switch {
	case !now.Before(c.expires.Add(cfg.Leeway)):
		return ErrExpired
	case now.Before(c.notBefore.Add(-cfg.Leeway)):
		return fmt.Errorf("%w: its nbf lies %s ahead, more than AUTH_LEEWAY=%s", ErrNotYet, c.notBefore.Sub(now).Round(time.Second), cfg.Leeway)
	case cfg.Issuer != "" && c.issuer != cfg.Issuer:
		return ErrIssuer
	case len(cfg.Audience) > 0 && !slices.ContainsFunc(c.audience, func(a string) bool { return slices.Contains(cfg.Audience, a) }):
		return ErrAudience
	}
	return nil
}

// identity returns the user and the rooms that the token names. An error says what
// is wrong without quoting the token.
func (c *claims) identity() (Identity, error) {
	user, err := userOf(c.subject)
	if err != nil {
		return Identity{}, fmt.Errorf("%w: sub %w", ErrUser, err)
	}
	rooms, err := roomsOf(c.rooms)
	if err != nil {
		return Identity{}, fmt.Errorf("%w: %w", ErrRooms, err)
	}
	return Identity{User: user, Permissions: rooms}, nil
}

// userOf rejects names that would make two users look the same, or a user look like
// the service. A JSON decoder replaces half a surrogate by the replacement
// character, and an issuer's encoder does the same to other invalid text, so that
// different names would become equal.
func userOf(subject json.RawMessage) (string, error) {
	user, ok := unquote(subject)
	switch {
	case subject == nil:
		return "", errors.New("is not there")
	case !ok:
		return "", errors.New("must be a text")
	case user == "" || len(user) > message.MaxUserLength:
		return "", fmt.Errorf("must be 1 to %d bytes long", message.MaxUserLength)
	case strings.ContainsFunc(user, unicode.IsControl):
		return "", errors.New("has a control character")
	case strings.ContainsRune(user, utf8.RuneError):
		return "", errors.New("has the replacement character, or half a surrogate")
	case len(user) >= len(apiUserPrefix) && strings.EqualFold(user[:len(apiUserPrefix)], apiUserPrefix):
		return "", fmt.Errorf("begins with %s: that is how backends are named", apiUserPrefix)
	}
	return user, nil
}

// roomsOf reads {"pattern": "rights", ...}. A token without the claim has access to
// no room.
func roomsOf(value json.RawMessage) (Permissions, error) {
	if value == nil {
		return Permissions{}, nil
	}
	var grants []grant
	err := visitObject(value, func(pattern string, value json.RawMessage) error {
		letters, ok := unquote(value)
		if !ok {
			return fmt.Errorf("has rights that are no text, for pattern %d", len(grants)+1)
		}
		g, err := newGrant(pattern, letters)
		if err != nil {
			return fmt.Errorf("has pattern %d, which %w", len(grants)+1, err)
		}
		grants = append(grants, g)
		return nil
	})
	if err != nil {
		return Permissions{}, fmt.Errorf("the claim %w", err)
	}
	return newPermissions(grants)
}
