package sharedstate

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"strings"

	"switchyard/internal/message"
)

// idBytes is the length of the hash that names a session: 160 bits, which are 32
// letters.
const idBytes = 20

var lowerBase32 = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// newSecret returns a new session's secret: its id, a dot, and 130 random bits.
// The id is a hash of the random part, so the secret cannot be computed from the
// id, which other users and readers of Redis see.
func newSecret() (secret string, id message.SessionID) {
	rest := rand.Text()
	id = idOf(rest)
	return string(id) + "." + rest, id
}

// readSecret returns the id of the session that a secret belongs to, and false if
// it is not a valid secret.
func readSecret(secret string) (message.SessionID, bool) {
	name, rest, ok := strings.Cut(secret, ".")
	if !ok || rest == "" || len(secret) > maxSecret {
		return "", false
	}
	id := idOf(rest)
	return id, string(id) == name
}

// maxSecret bounds a secret, in bytes; those of newSecret are shorter.
const maxSecret = 128

// idOf returns the id that belongs to the random part of a secret.
func idOf(rest string) message.SessionID {
	sum := sha256.Sum256([]byte(rest))
	return message.SessionID(lowerBase32.EncodeToString(sum[:idBytes]))
}
