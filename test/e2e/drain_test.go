package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"nhooyr.io/websocket"

	"switchyard/internal/testkit"
)

// An operator drains a node with its own program, finds it empty and running, and
// undrains it.
func TestAnOperatorDrainsANodeAndTakesItBack(t *testing.T) {
	t.Parallel()
	s := testkit.StartServer(t, map[string]string{"DRAIN_WINDOW": "1s", "DRAIN_TIMEOUT": "1s"})
	ws, _, err := websocket.Dial(t.Context(), s.SocketURL(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	closed := make(chan websocket.StatusCode, 1)
	go func() {
		for {
			if _, _, err := ws.Read(t.Context()); err != nil {
				closed <- websocket.CloseStatus(err)
				return
			}
		}
	}()
	env := []string{"ADMIN_ADDR=" + s.Admin}
	code, out := run(t, env, "drain", "-reason", "maintenance")
	if code != 0 || !strings.Contains(out, "drained: 0 clients") {
		t.Errorf("drain: exit %d:\n%s", code, out)
	}
	if got := <-closed; got != websocket.StatusServiceRestart {
		t.Errorf("the client, without another node to move to, was closed with %d", got)
	}
	if status, body := readiness(t, s); status != http.StatusServiceUnavailable || !strings.Contains(body, `"phase":"drained"`) {
		t.Errorf("drained, and /readyz says %d %s", status, body)
	}
	if code, out := run(t, env, "undrain"); code != 0 || !strings.Contains(out, "serving") {
		t.Errorf("undrain: exit %d: %s", code, out)
	}
	if status, body := readiness(t, s); status != http.StatusOK {
		t.Errorf("undrained, and /readyz says %d %s", status, body)
	}
	if code, out := run(t, env, "look", "heap"); code != 0 || !strings.Contains(out, "\n# runtime.MemStats\n") { // at the end: run returns the last lines
		t.Errorf("look heap: exit %d: %.100s", code, out)
	}
	if code, out := run(t, env, "look"); code != 0 || strings.TrimSpace(out) != "[]" && !strings.Contains(out, `"room"`) {
		t.Errorf("look: exit %d: %.100s", code, out)
	}
	for name, bad := range map[string]struct{ env, args []string }{
		"an unknown page":           {env, []string{"look", "secrets"}},
		"an unknown scope":          {env, []string{"drain", "-scope", "world"}},
		"a deployment without name": {env, []string{"drain", "-scope", "deployment"}},
		"an unknown flag":           {env, []string{"drain", "-fast"}},
		"a word too many":           {env, []string{"undrain", "now"}},
		"no server on the port":     {[]string{fmt.Sprintf("ADMIN_ADDR=127.0.0.1:%d", testkit.FreePort())}, []string{"drain"}},
	} {
		if code, out := run(t, bad.env, bad.args...); code != 1 || strings.Count(strings.TrimSpace(out), "\n") > 0 {
			t.Errorf("%s: exit %d:\n%s", name, code, out)
		}
	}
}
