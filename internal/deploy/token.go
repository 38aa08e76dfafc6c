package deploy

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// tokenLife is how long a token of this command's own is good.
const tokenLife = 15 * time.Minute

// probeRooms are the rooms that probes use, and what they may do there.
var probeRooms = map[string]string{"deploy-*": "rw", "verify-*": "rw"}

// token is a credential for probes: the file's, or one signed with the stack's
// own secret, or none where everybody may come in.
func (s *Stack) token(now time.Time) (string, error) {
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
		return "", nil // an address alone is known
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
	claims := map[string]any{"sub": "switchyard-deploy", "exp": now.Add(tokenLife).Unix(), "rooms": probeRooms}
	if iss := s.Env["AUTH_ISSUER"]; iss != "" {
		claims["iss"] = iss
	}
	if aud, _, _ := strings.Cut(s.Env["AUTH_AUDIENCE"], ","); aud != "" {
		claims["aud"] = aud
	}
	body, err := json.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("sign a token for probes: %w", err)
	}
	signed := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256"}`)) + "." + base64.RawURLEncoding.EncodeToString(body)
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(signed))
	return signed + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil)), nil
}
