package e2e

import (
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"nhooyr.io/websocket"

	"switchyard/internal/testkit"
)

// An operator sets a name that does not exist. The log says which setting was likely
// meant; with STRICT_SETTINGS nothing starts, and nothing is migrated.
func TestASettingWithAWrongNameIsWarnedOf(t *testing.T) {
	t.Parallel()
	s := testkit.StartServer(t, map[string]string{"RETENTION_DAYS": "30", "REDIS_URI": "redis://127.0.0.1:1/0"})
	for _, says := range []string{"RETENTION_DAYS is no setting and has no effect: did you mean RETENTION_AGE?", "REDIS_URI is no setting and has no effect: did you mean REDIS_URL?"} {
		if strings.Count(s.Output(), says) != 1 {
			t.Errorf("the log does not say once %q:\n%.2000s", says, s.Output())
		}
	}
	file := filepath.Join(t.TempDir(), "chat.db")
	for _, args := range [][]string{nil, {"migrate"}} {
		code, out := run(t, []string{
			"STRICT_SETTINGS=on", "RETENTION_DAYS=30", "DATABASE_URL=sqlite:" + file, "LISTEN_ADDR=127.0.0.1:0", "ADMIN_ADDR=127.0.0.1:0",
		}, args...)
		if code != 1 || !strings.Contains(out, "did you mean RETENTION_AGE?") || !strings.Contains(out, "STRICT_SETTINGS") {
			t.Errorf("%v: exit %d:\n%s", args, code, out)
		}
	}
	if found, err := filepath.Glob(file + "*"); err != nil || len(found) > 0 {
		t.Errorf("a refused start made %v, %v", found, err)
	}
}

// A service whose env file was read with its quotes and line ends works as if they were
// not there: tokens, keys, the database and the origins.
func TestValuesThatAnEnvFileLeftInQuotes(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "chat.db")
	s := testkit.StartServer(t, map[string]string{
		"AUTH_JWT_SECRET": `"` + signingSecret + `"`, "API_KEYS": "'shop:" + apiKey + "'\r", "DATABASE_URL": `"sqlite:` + file + "\"\r",
		"ALLOWED_ORIGINS": `"*"`, "AUTH_ANONYMOUS": "false", "AUDIT_LOG": "no",
	})
	token := signHS256(`{"alg":"HS256"}`, mustJSON(claims("ada", nil)), signingSecret)
	dial := func(origin, token string) int {
		ws, res, err := websocket.Dial(t.Context(), s.SocketURL(), &websocket.DialOptions{
			HTTPHeader: http.Header{"Origin": {origin}, "Authorization": {"Bearer " + token}},
		})
		if res == nil {
			t.Fatal(err)
		}
		if err == nil {
			defer ws.CloseNow()
		}
		return res.StatusCode
	}
	if status := dial("https://anywhere.example", token); status != http.StatusSwitchingProtocols {
		t.Errorf("a page of any origin, with a token: %d", status)
	}
	if status := dial("null", token); status != http.StatusForbidden {
		t.Errorf("a sandboxed page, which * does not include: %d", status)
	}
	if res, answer := post(t, s, "/v1/rooms/a/messages", `{"data":1}`); res.StatusCode != http.StatusCreated {
		t.Errorf("a server call: %d %s", res.StatusCode, answer)
	}
	if found, err := filepath.Glob(file); err != nil || len(found) != 1 {
		t.Errorf("%s does not have the messages: %v", file, err)
	}
	for _, says := range []string{"AUTH_JWT_SECRET is in quotes", "API_KEYS is in quotes", "the pages of every origin may connect"} {
		if strings.Count(s.Output(), says) != 1 {
			t.Errorf("the log does not say once %q:\n%.2000s", says, s.Output())
		}
	}
	if strings.Contains(s.Output(), signingSecret) || strings.Contains(s.Output(), apiKey) {
		t.Error("the log has a secret")
	}
}

// wordOf71 does not match digits within a time or an id of the log.
var wordOf71 = regexp.MustCompile(`\b71\b`)

// A password with a character that must be escaped in a URL keeps the service from
// starting. The parts of the password are not shown, not even as a host's name;
// internal/config has more such URLs.
func TestAStartNeverShowsAPassword(t *testing.T) {
	t.Parallel()
	file := "DATABASE_URL=sqlite:" + filepath.Join(t.TempDir(), "chat.db")
	for _, value := range []string{
		"DATABASE_URL=postgres://u:Zx@y12345@127.0.0.1/d", "DATABASE_URL=postgres://u:71/y12345@127.0.0.1/d", "DATABASE_URL=postgres://u:y12345%@127.0.0.1/d",
		"REDIS_URL=redis://:Zx@y12345@127.0.0.1", "REDIS_URL=redis://:y12345%@127.0.0.1", "REDIS_URL=redis+sentinel://:71/y12345@127.0.0.1/m",
		"AUTH_JWKS_URL=https://u:Zx@y12345@127.0.0.1/k", "AUTH_JWKS_URL=https://u:y12345@127.0.0.1/k",
	} {
		code, out := run(t, []string{file, "LISTEN_ADDR=127.0.0.1:0", "ADMIN_ADDR=127.0.0.1:0", value})
		name, _, _ := strings.Cut(value, "=")
		if code != 1 || !strings.Contains(out, name) || strings.Contains(out, "y12345") || strings.Contains(out, "Zx") || wordOf71.MatchString(out) {
			t.Errorf("%s: exit %d:\n%s", value, code, out)
		}
	}
}

// The example of the documentation is no secret.
func TestTheDocumentedSecretsAreRefused(t *testing.T) {
	t.Parallel()
	for _, value := range []string{"API_KEYS=shop:a-long-random-secret", "API_KEYS=a-long-random-secret", "AUTH_JWT_SECRET=qZ2v6m0Qx8b1H5yTgqJm9o3WcKdVfR7s"} {
		code, out := run(t, []string{value, "LISTEN_ADDR=127.0.0.1:0", "ADMIN_ADDR=127.0.0.1:0"})
		name, _, _ := strings.Cut(value, "=")
		if code != 1 || !strings.Contains(out, name+"=[hidden]") || !strings.Contains(out, "everybody knows it") {
			t.Errorf("%s: exit %d:\n%s", value, code, out)
		}
	}
}
