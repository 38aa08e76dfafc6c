package sharedstate

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"strings"

	"switchyard/internal/message"
)

// idBytes is how much of the hash names a session: 160 bits, as 32 letters.
const idBytes = 20

var lowerBase32 = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// newSecret makes a session's secret: its name, a dot, and 130 random bits. The
// name is the hash of what follows the dot, so whoever knows the name, and
// whoever reads Redis, cannot make the secret of it.
func newSecret() (secret string, id message.SessionID) {
	rest := rand.Text()
	id = idOf(rest)
	return string(id) + "." + rest, id
}

// readSecret returns the session that a secret belongs to; false: none.
func readSecret(secret string) (message.SessionID, bool) {
	name, rest, ok := strings.Cut(secret, ".")
	if !ok || rest == "" || len(secret) > maxSecret {
		return "", false
	}
	id := idOf(rest)
	return id, string(id) == name
}

// maxSecret is more than a secret of ours has, in bytes.
const maxSecret = 128

func idOf(rest string) message.SessionID {
	sum := sha256.Sum256([]byte(rest))
	return message.SessionID(lowerBase32.EncodeToString(sum[:idBytes]))
}
