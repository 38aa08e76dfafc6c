package e2e

import (
	"encoding/json"
	"net/http"
	"os"
	"strings"
	"testing"

	"nhooyr.io/websocket"

	"switchyard/internal/testkit"
)

// The password of the database is replaced, in the server and in the file that has the
// URL. The node goes on without a restart.
func TestARotatedDatabasePasswordNeedsNoRestart(t *testing.T) {
	t.Parallel()
	pg := testkit.StartPostgres(t)
	pg.RequirePasswords()
	pg.Exec("CREATE ROLE app LOGIN PASSWORD 'first'", "GRANT CREATE ON SCHEMA public TO app")
	file := t.TempDir() + "/database-url"
	write := func(password string) {
		url := strings.Replace(pg.URL(), "postgres@", "app:"+password+"@", 1)
		if err := os.WriteFile(file, []byte(url+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("first")
	s := testkit.StartServer(t, map[string]string{"DATABASE_URL_FILE": file, "API_KEYS": "shop:" + apiKey})
	publish := func() bool {
		res, _ := post(t, s, "/v1/rooms/room/messages", `{"data":1}`)
		return res.StatusCode == http.StatusCreated
	}
	if !publish() {
		t.Fatal("the first publish failed")
	}
	pg.Exec("ALTER ROLE app PASSWORD 'second'")
	write("second")
	pg.Exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'switchyard'")
	testkit.Eventually(t, "the node publishes by the second password", publish)
}

// Settings have the effect that users and operators can see.
func TestSettingsTakeEffect(t *testing.T) {
	t.Parallel()
	const key = "a-key-that-lies-in-a-file"
	file := t.TempDir() + "/keys"
	if err := os.WriteFile(file, []byte("shop:"+key+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := testkit.StartServer(t, map[string]string{
		"COLOR": "green", "DEPLOYMENT": "2026-11-23-1", "HEARTBEAT": "3s", "MAX_FRAME": "2048", "ID_WINDOW": "2m", "MAX_CONNECTIONS": "2",
		"ALLOWED_ORIGINS": "https://app.example.com", "API_KEYS_FILE": file, "LOG_FORMAT": "text", "LOG_LEVEL": "debug",
	})
	first := dialRaw(t, s)
	welcome := first.readUntil("welcome")
	for field, want := range map[string]any{
		"color": "green", "deployment": "2026-11-23-1", "heartbeat_ms": json.Number("3000"), "max_frame": json.Number("2048"), "id_window_ms": json.Number("120000"),
	} {
		if welcome[field] != want {
			t.Errorf("welcome: %s is %v, want %v", field, welcome[field], want)
		}
	}
	fromPage := func(origin string) (*websocket.Conn, int) {
		ws, res, err := websocket.Dial(t.Context(), s.SocketURL(), &websocket.DialOptions{HTTPHeader: http.Header{"Origin": {origin}}})
		if err != nil && res == nil {
			t.Fatal(err)
		}
		return ws, res.StatusCode
	}
	if _, status := fromPage("https://evil.example.com"); status != http.StatusForbidden {
		t.Errorf("a page of another origin: %d", status)
	}
	listed, status := fromPage("https://app.example.com")
	if status != http.StatusSwitchingProtocols {
		t.Fatalf("a page of the listed origin: %d", status)
	}
	defer listed.CloseNow()
	third := dialRaw(t, s)
	for {
		_, _, err := third.ws.Read(t.Context())
		if err == nil {
			continue
		}
		if got := websocket.CloseStatus(err); got != 4103 {
			t.Errorf("the third of two connections: %v", err)
		}
		break
	}
	if res, _ := testkit.Call(t, http.MethodPost, s.URL()+"/v1/rooms/a/messages", key, `{"data":1}`); res.StatusCode != http.StatusCreated {
		t.Errorf("with the key of the file: %d", res.StatusCode)
	}
	if out := s.Output(); !strings.Contains(out, "level=DEBUG") || !strings.Contains(out, "level=INFO msg=serving") || strings.Contains(out, key) {
		t.Errorf("log lines are not text, lack debug lines, or contain the key:\n%.2000s", out)
	}
}
