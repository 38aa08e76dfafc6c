package stack

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// A token for probes is signed with the first secret, for the first audience, and
// valid for tokenLife. A file of tokens is used as it is, and a stack may have neither.
func TestTheTokenForProbes(t *testing.T) {
	s := &Stack{Dir: t.TempDir(), Env: map[string]string{"AUTH_ISSUER": "us", "AUTH_AUDIENCE": "chat,other"}}
	now := time.Now()
	if token, err := s.Token(now); token != "" || err != nil {
		t.Errorf("without a secret: %q, %v", token, err)
	}
	write := func(path, text string) string {
		path = filepath.Join(s.Dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("secrets/app_jwt_secret", "a-secret-of-32-bytes-for-the-test,an-older-one\n")
	token, err := s.Token(now)
	if err != nil {
		t.Fatal(err)
	}
	var claims struct {
		jwt.RegisteredClaims
		Rooms map[string]string
	}
	_, err = jwt.ParseWithClaims(token, &claims, func(*jwt.Token) (any, error) { return []byte("a-secret-of-32-bytes-for-the-test"), nil },
		jwt.WithValidMethods([]string{"HS256"}), jwt.WithAudience("chat"), jwt.WithIssuer("us"))
	if err != nil || claims.Subject != "switchyard-deploy" || claims.ExpiresAt.Unix() != now.Add(tokenLife).Unix() || len(claims.Audience) != 1 ||
		claims.Rooms["deploy-*"] != "rw" || claims.Rooms["verify-*"] != "rw" {
		t.Errorf("%+v, %v", claims, err)
	}
	s.TokenFile = write("token", " of-the-operator\nanother\n")
	if token, err := s.Token(now); token != "of-the-operator" || err != nil {
		t.Errorf("%q, %v", token, err)
	}
}
