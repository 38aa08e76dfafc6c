package stack

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// tokenLife is how long a token that this command signs is valid.
const tokenLife = 15 * time.Minute

// probeRooms maps the rooms that probes use to their rights there.
var probeRooms = map[string]string{"deploy-*": "rw", "verify-*": "rw"}

// Token returns a credential for probes: the file's, or one signed with the
// stack's own secret, or "" if the stack has no secret.
func (s *Stack) Token(now time.Time) (string, error) {
	if s.TokenFile != "" {
		text, err := os.ReadFile(s.TokenFile)
		if err != nil {
			return "", fmt.Errorf("read a token: %w", err)
		}
		fields := strings.Fields(string(text))
		if len(fields) == 0 {
			return "", fmt.Errorf("%s has no token", s.TokenFile)
		}
		return fields[0], nil
	}
	if s.Dir == "" {
		return "", nil // only an address is known
	}
	path := filepath.Join(s.Dir, "secrets", "app_jwt_secret")
	text, err := os.ReadFile(path)
	if err != nil {
		if os.IsNotExist(err) {
			return "", nil
		}
		return "", fmt.Errorf("sign a token for probes: %w; --token-file names one instead", err)
	}
	secret, _, _ := strings.Cut(strings.TrimSpace(string(text)), ",")
	claims := jwt.MapClaims{"sub": "switchyard-deploy", "exp": now.Add(tokenLife).Unix(), "rooms": probeRooms}
	if iss := s.Env["AUTH_ISSUER"]; iss != "" {
		claims["iss"] = iss
	}
	if aud, _, _ := strings.Cut(s.Env["AUTH_AUDIENCE"], ","); aud != "" {
		claims["aud"] = aud
	}
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString([]byte(secret))
	if err != nil {
		return "", fmt.Errorf("sign a token for probes: %w", err)
	}
	return token, nil
}
