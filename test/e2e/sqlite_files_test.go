package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"switchyard/internal/testkit"
)

// An operator renames the SQLite file of a running service, and does what the log
// then says: every message that was acked is there.
func TestARenamedSQLiteFileLosesNothing(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log.db")
	s := testkit.StartServer(t, map[string]string{"DATABASE_URL": "sqlite:" + path, "API_KEYS": apiKey})
	publish := func(id int) int {
		res, _ := post(t, s, "/v1/rooms/lobby/messages", fmt.Sprintf(`{"id":"m%d","data":%d}`, id, id))
		return res.StatusCode
	}
	acked := 0
	for ; acked < 20; acked++ {
		if status := publish(acked); status != http.StatusCreated && status != http.StatusOK {
			t.Fatalf("publish: %d", status)
		}
	}
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "the service to notice", func() bool {
		if publish(acked) == http.StatusServiceUnavailable {
			return true
		}
		acked++ // acked until then
		return false
	})
	if status, body := readiness(t, s); status != http.StatusServiceUnavailable || !strings.Contains(body, `"log":"down"`) {
		t.Errorf("/readyz: %d %s", status, body)
	}
	if got := strings.Count(s.Output(), `"level":"ERROR"`); got != 1 {
		t.Errorf("%d errors in the log:\n%s", got, s.Output())
	}
	if err := s.Stop(); err != nil {
		t.Errorf("exit: %v", err)
	}
	saved, err := filepath.Glob(path + ".saved-*")
	if err != nil || len(saved) != 1 || !strings.Contains(s.Output(), saved[0]) {
		t.Fatalf("saved copies: %q, %v, and the log:\n%s", saved, err, s.Output())
	}
	code, out := run(t, []string{"DATABASE_URL=sqlite:" + path, "LISTEN_ADDR=127.0.0.1:0", "ADMIN_ADDR=127.0.0.1:0"})
	if code != 1 || !strings.Contains(out, saved[0]) {
		t.Errorf("a start without the copy: exit code %d, %s", code, out)
	}
	if err := os.Rename(saved[0], path); err != nil {
		t.Fatal(err)
	}
	s.Restart()
	_, page := testkit.Call(t, http.MethodGet, s.URL()+"/v1/rooms/lobby/messages?limit=1", apiKey, "")
	if !strings.Contains(page, fmt.Sprintf(`"head":%d,`, acked)) || !strings.Contains(page, fmt.Sprintf(`"id":"m%d"`, acked-1)) {
		t.Errorf("%d were acked, and the room ends with %s", acked, page)
	}
}
