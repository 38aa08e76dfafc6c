package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"unicode"
)

// redacted is what is printed in a secret's place.
const redacted = "[hidden]"

// A Secret is text that no log line, error or dump shows. Reveal is the only
// way to it.
type Secret string

// Reveal returns the text itself.
func (s Secret) Reveal() string { return string(s) }

func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return redacted
}

// GoString implements fmt.GoStringer, for %#v.
func (s Secret) GoString() string { return s.String() }

// LogValue implements slog.LogValuer.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalJSON implements json.Marshaler.
func (s Secret) MarshalJSON() ([]byte, error) {
	b, err := json.Marshal(s.String())
	if err != nil {
		return nil, fmt.Errorf("hiding a secret: %w", err)
	}
	return b, nil
}

// Keys are API keys by name.
type Keys map[string]Secret

// minKeyBytes is the least length of a key, in bytes: what can't be guessed.
const minKeyBytes = 16

// Decode implements envconfig.Decoder.
func (k *Keys) Decode(value string) error {
	keys, names := Keys{}, map[string]string{}
	for i, item := range split(value) {
		name, key, named := strings.Cut(item, ":")
		if !named {
			name, key = fmt.Sprintf("key%d", i+1), item
		}
		switch {
		case len(key) < minKeyBytes:
			return fmt.Errorf("key %d has %d bytes; it must have at least %d", i+1, len(key), minKeyBytes)
		case !isName(name):
			return fmt.Errorf("the name of key %d must be 1 to 64 of A-Z a-z 0-9 . _ -", i+1)
		case keys[name] != "":
			return fmt.Errorf("two keys are named %s", name)
		case names[key] != "":
			// Whose a message is would be anybody's guess, and ids count by name.
			return fmt.Errorf("%s and %s are the same key", names[key], name)
		}
		keys[name], names[key] = Secret(key), name
	}
	*k = keys
	return nil
}

// Reveal returns the keys themselves.
func (k Keys) Reveal() map[string]string {
	revealed := make(map[string]string, len(k))
	for name, key := range k {
		revealed[name] = key.Reveal()
	}
	return revealed
}

func isName(s string) bool {
	const allowed = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"
	return s != "" && len(s) <= 64 && strings.Trim(s, allowed) == ""
}

// Secrets are those of tokens.
type Secrets []Secret

// minSecretBytes is the least length of one, in bytes: RFC 7518 wants as many as the
// hash has.
const minSecretBytes = 32

// Decode implements envconfig.Decoder. A list without an item is refused, since
// a service without secrets is open to all.
func (s *Secrets) Decode(value string) error {
	var secrets Secrets
	seen := map[string]int{}
	for i, item := range split(value) {
		switch {
		case len(item) < minSecretBytes:
			return fmt.Errorf("secret %d has %d bytes; it must have at least %d: make one with openssl rand -base64 48", i+1, len(item), minSecretBytes)
		case strings.ContainsFunc(item, unicode.IsControl):
			return fmt.Errorf("secret %d has a line break or another control character; separate secrets by commas", i+1)
		case seen[item] != 0:
			return fmt.Errorf("secrets %d and %d are the same", seen[item], i+1)
		}
		seen[item] = i + 1
		secrets = append(secrets, Secret(item))
	}
	if len(secrets) == 0 {
		return errors.New("there is no secret in it")
	}
	*s = secrets
	return nil
}

// Reveal returns the secrets themselves.
func (s Secrets) Reveal() []string {
	revealed := make([]string, len(s))
	for i, secret := range s {
		revealed[i] = secret.Reveal()
	}
	return revealed
}

// Names are a list that must not be empty once it is set.
type Names []string

// Decode implements envconfig.Decoder.
func (n *Names) Decode(value string) error {
	names := Names(split(value))
	if len(names) == 0 {
		return errors.New("there is no name in it")
	}
	for _, name := range names {
		if len(name) > 512 {
			return fmt.Errorf("a name has %d bytes; it must have at most 512", len(name))
		}
	}
	*n = names
	return nil
}

// split returns the items of a comma list, without the space around them.
func split(value string) []string {
	var items []string
	for item := range strings.SplitSeq(value, ",") {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items
}
