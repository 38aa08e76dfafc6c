package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// redacted is printed instead of a secret.
const redacted = "[hidden]"

// A Secret is text that is not printed in log lines, errors and dumps. Only Reveal
// returns it.
type Secret string

// Reveal returns the text itself.
func (s Secret) Reveal() string { return string(s) }

// String implements fmt.Stringer. It returns redacted, or nothing for an empty
// secret.
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
		return nil, fmt.Errorf("encode a hidden secret: %w", err)
	}
	return b, nil
}

// Reread returns a function that reads a setting from its file again, and checks it, as
// Load has done: passwords are replaced while the service runs. It returns nil if the
// setting is not read from a file, or from a pipe, which has its text only once.
func Reread(name string) func() (string, error) {
	path, _, _ := clean(name+fileSuffix, os.Getenv(name+fileSuffix))
	if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
		return nil
	}
	return func() (string, error) {
		var cfg Config
		for s := range settings(&cfg) {
			if s.name() == name {
				err := s.read()
				return s.value.String(), err
			}
		}
		return "", fmt.Errorf("%s is no setting", name)
	}
}

// documentedSecrets are the examples of this documentation and of jwt.io, where many
// try their first token: the whole world knows them.
var documentedSecrets = []string{
	exampleKey, exampleJWTSecret,
	"a-string-secret-at-least-256-bits-long",
	"your-256-bit-secret", "your-384-bit-secret", "your-512-bit-secret",
}

// The examples of API_KEYS and AUTH_JWT_SECRET.
const (
	exampleKey       = "a-long-random-secret"
	exampleJWTSecret = "qZ2v6m0Qx8b1H5yTgqJm9o3WcKdVfR7s"
)

// isDocumented reports whether everybody knows a secret.
func isDocumented(secret string) bool {
	return slices.ContainsFunc(documentedSecrets, func(d string) bool { return strings.EqualFold(d, secret) })
}

// Keys are API keys by name.
type Keys map[string]Secret

// minKeyBytes is the shortest length of a key, in bytes. Shorter ones could be
// guessed.
const minKeyBytes = 16

// nameEqualsKey matches a key with its name in front in the notation of a shell. An =
// at the end of a key belongs to base64.
var nameEqualsKey = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}=+[^=]`)

// Decode implements envconfig.Decoder.
func (k *Keys) Decode(value string) error {
	keys, names := Keys{}, map[string]string{}
	for i, item := range split(value) {
		name, key, named := strings.Cut(item, ":")
		if !named {
			name, key = fmt.Sprintf("key%d", i+1), item
		}
		switch {
		case !named && nameEqualsKey.MatchString(item):
			return fmt.Errorf("key %d has a = in it; write name:key, or the key behind a name and a colon if the = belongs to it", i+1)
		case strings.ContainsFunc(key, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }):
			return fmt.Errorf("key %d has white space or a control character in it; separate keys by commas", i+1)
		case isDocumented(key):
			return fmt.Errorf("key %d is in the documentation, so everybody knows it; make one with openssl rand -hex 24", i+1)
		case len(key) < minKeyBytes:
			return fmt.Errorf("key %d has %d bytes; it must have at least %d", i+1, len(key), minKeyBytes)
		case !isName(name):
			return fmt.Errorf("the name of key %d must be 1 to 64 of A-Z a-z 0-9 . _ -", i+1)
		case keys[name] != "":
			return fmt.Errorf("two keys are named %s", name)
		case names[key] != "":
			// The publisher of a message is the key's name, and ids are unique for each
			// publisher: one key with two names would be ambiguous.
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

// isName reports whether s can be the name of a key.
func isName(s string) bool {
	const allowed = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"
	return s != "" && len(s) <= 64 && strings.Trim(s, allowed) == ""
}

// Secrets are the secrets that tokens are signed with.
type Secrets []Secret

// minSecretBytes is the shortest length of a secret, in bytes: RFC 7518 requires
// the length of the hash.
const minSecretBytes = 32

// Decode implements envconfig.Decoder. It refuses an empty list, since a service
// without secrets accepts everyone.
func (s *Secrets) Decode(value string) error {
	var secrets Secrets
	seen := map[string]int{}
	for i, item := range split(value) {
		switch {
		case len(item) < minSecretBytes:
			return fmt.Errorf("secret %d has %d bytes; it must have at least %d: make one with openssl rand -base64 48", i+1, len(item), minSecretBytes)
		case isDocumented(item):
			return fmt.Errorf("secret %d is in the documentation, so everybody knows it; make one with openssl rand -base64 48", i+1)
		case strings.ContainsFunc(item, unicode.IsControl):
			return fmt.Errorf("secret %d has a line break or another control character; separate secrets by commas", i+1)
		case seen[item] != 0:
			return fmt.Errorf("secrets %d and %d are the same", seen[item], i+1)
		}
		seen[item] = i + 1
		secrets = append(secrets, Secret(item))
	}
	if len(secrets) == 0 {
		return errors.New("the list has no secret")
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

// Names are a list that must not be empty when it is set.
type Names []string

// Decode implements envconfig.Decoder.
func (n *Names) Decode(value string) error {
	names := Names(split(value))
	if len(names) == 0 {
		return errors.New("the list has no name")
	}
	for _, name := range names {
		switch {
		case len(name) > 512:
			return fmt.Errorf("a name has %d bytes; it must have at most 512", len(name))
		case name == "*":
			return errors.New("* is no name; leave the setting empty to accept any")
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
