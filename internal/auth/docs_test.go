package auth

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"switchyard/internal/testkit"
)

func readFile(t *testing.T, path string) string {
	t.Helper()
	return string(testkit.ReadFile(t, path))
}

// The Go code of docs/security.md is in this test, and makes a token that is
// accepted.
func TestTheSecurityDocsTokenIsAccepted(t *testing.T) {
	SECRET := secret
	// The document's code begins here.
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{
		"sub":   "ada",
		"exp":   time.Now().Add(10 * time.Minute).Unix(),
		"rooms": map[string]string{"orders.*": "rw", "news": "r"},
	}).SignedString([]byte(SECRET))
	// The document's code ends here.
	if err != nil {
		t.Fatal(err)
	}
	if identity := openVerifier(t, Config{JWTSecrets: []string{SECRET}}).accepts(token); identity.User != "ada" || !identity.May("orders.8", Publish) {
		t.Errorf("got %+v", identity)
	}
	_, shown, _ := strings.Cut(readFile(t, "../../docs/security.md"), "```go\n")
	shown, _, _ = strings.Cut(shown, "```")
	for line := range strings.Lines(shown) {
		if !strings.Contains(readFile(t, "docs_test.go"), "\t"+line) {
			t.Errorf("the document's line is not tested: %s", line)
		}
	}
	if strings.Count(shown, "\n") != 5 {
		t.Errorf("the document's Go has changed: %s", shown)
	}
}

// The document's Python code puts a space after each colon and comma.
func TestATokenWithSpacesInItsJSON(t *testing.T) {
	payload := strings.NewReplacer(`":`, `": `, `,"`, `, "`).Replace(encode(validClaims(nil)))
	openVerifier(t, Config{JWTSecrets: []string{secret}}).accepts(signRaw(`{"alg":"HS256"}`, payload, secret))
}

func TestTheSecurityDocIsComplete(t *testing.T) {
	document, settings := readFile(t, "../../docs/security.md"), readFile(t, "../../docs/configuration.md")
	for _, c := range causes {
		if !strings.Contains(document, "`"+c.name+"`") {
			t.Errorf("the document does not explain %s", c.name)
		}
	}
	named := regexp.MustCompile(`AUTH_[A-Z_]+`)
	for _, name := range named.FindAllString(document, -1) {
		if !strings.Contains(settings, "`"+name+"`") {
			t.Errorf("there is no setting %s", name)
		}
	}
	if !strings.Contains(document, "{\"orders.*\": \"rw\", \"user:7:*\": \"r\", \"news\": \"r\"}") {
		t.Fatal("the document's example has changed")
	}
	for room, want := range map[string]bool{"orders.8": true, "orders.8.items": true, "orders": false} {
		if may(t, "orders.*:rw,user:7:*:r,news:r", room, Publish) != want {
			t.Errorf("%s is not as the document says", room)
		}
	}
}
