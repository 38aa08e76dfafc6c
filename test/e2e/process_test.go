package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"nhooyr.io/websocket"

	"switchyard/internal/client"
	"switchyard/internal/load"
	"switchyard/internal/testkit"
)

func TestServerRunsWithoutSettings(t *testing.T) {
	t.Parallel()
	s := testkit.StartServer(t, nil)
	h := load.NewHistory()
	c := newRoomClient(t, h, "early", "lobby", s)
	ctx := testkit.Within(t, testkit.Timeout)
	testkit.Eventually(t, "the page's URL in the log", func() bool {
		return strings.Contains(s.Output(), "Switchyard is at http://"+s.Addr+"/")
	})
	c.publishMany(ctx, t, h, 10)
	s.Restart() // killed first, without a warning
	c.publish(ctx, t, h, "after")
	testkit.Eventually(t, "the message after the restart", deliveredAtLeast(h, 11))
	newRoomClient(t, h, "late", "lobby", s) // receives the room from its start
	testkit.Eventually(t, "the history", deliveredAtLeast(h, 22))
	assertClean(t, h)
}

func TestSIGTERMClosesWithServiceRestartAndExitsCleanly(t *testing.T) {
	t.Parallel()
	s := testkit.StartServer(t, nil)
	var sockets []*websocket.Conn
	for range 20 {
		ws, _, err := websocket.Dial(t.Context(), s.SocketURL(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer ws.CloseNow()
		sockets = append(sockets, ws)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- s.Stop() }()
	for _, ws := range sockets {
		for {
			_, _, err := ws.Read(t.Context())
			if err == nil {
				continue
			}
			if got := websocket.CloseStatus(err); got != websocket.StatusServiceRestart {
				t.Errorf("closed with %d (%v), want 1012", got, err)
			}
			break
		}
	}
	if err := <-stopped; err != nil {
		t.Errorf("exit: %v\n%s", err, s.Output())
	}
	for _, step := range []string{"clients", "http", "hub", "broker", "log"} {
		if !strings.Contains(s.Output(), `"step":"`+step+`"`) {
			t.Errorf("no line for the step %s:\n%s", step, s.Output())
		}
	}
}

// A client that answers nothing does not turn the exit of a process into a failure.
// In the short form it hangs up when it is being closed; the long form waits for the
// bound of a close handshake, which TestAClientThatNeverAnswersDoesNotBlockShutdown
// has exactly.
func TestAProcessExitsCleanlyBesideASilentClient(t *testing.T) {
	t.Parallel()
	s := testkit.StartServer(t, map[string]string{"DRAIN_WINDOW": "1s", "DRAIN_TIMEOUT": "1s"})
	c, _ := handshake(t, s) // answers nothing from now on
	stopped := make(chan error, 1)
	go func() { stopped <- s.Stop() }()
	if !*longFaults {
		testkit.Eventually(t, "clients to be closed", func() bool { return strings.Contains(s.Output(), `"phase":"moving"`) })
		_ = c.Close()
	}
	if err := <-stopped; err != nil {
		t.Errorf("exit: %v\n%s", err, s.Output())
	}
}

func TestASecondSignalEndsAtOnce(t *testing.T) {
	t.Parallel()
	s := testkit.StartServer(t, map[string]string{"DRAIN_TIMEOUT": "60s"})
	handshake(t, s) // a client that does not move delays the stop
	s.Signal(syscall.SIGTERM)
	testkit.Eventually(t, "the stop to begin", func() bool { return strings.Contains(s.Output(), `"msg":"stopping"`) })
	if err := s.Stop(); err == nil { // sends the second signal
		t.Error("exit 0, as if the server had waited for its client")
	}
}

func TestStartupErrorsAreOneLine(t *testing.T) {
	t.Parallel()
	locked := "sqlite:" + t.TempDir() + "/a.db"
	first := testkit.StartServer(t, map[string]string{"DATABASE_URL": locked})
	unsafe := testkit.StartPostgres(t, "fsync=off")
	free := fmt.Sprintf("127.0.0.1:%d", testkit.FreePort())
	tests := []struct {
		name string
		env  []string
		args []string
		says []string
	}{
		{"unknown command", nil, []string{"dance"}, []string{"unknown command", "serve"}},
		{"two wrong settings", []string{"MAX_FRAME=12", "HEARTBEAT=soon"}, nil, []string{"MAX_FRAME", "HEARTBEAT"}},
		{"unknown database scheme", []string{"DATABASE_URL=mysql://x/y"}, nil, []string{"DATABASE_URL"}},
		{"no server at the address", []string{"DATABASE_URL=postgres://x:secret@127.0.0.1:1/y"}, nil, []string{"DATABASE_URL"}},
		{"fsync off", []string{"DATABASE_URL=" + unsafe.URL()}, nil, []string{"fsync"}},
		{"a second process on one file", []string{"DATABASE_URL=" + locked}, nil, []string{"DATABASE_URL"}},
		{"a broken Redis URL", []string{"REDIS_URL=http://x"}, nil, []string{"REDIS_URL"}},
		{"a port in use", []string{"LISTEN_ADDR=" + first.Addr}, nil, []string{"LISTEN_ADDR", first.Addr}},
		{"an audit log in no folder", []string{"AUDIT_LOG=/no/such/folder/audit.jsonl"}, nil, []string{"AUDIT_LOG"}},
		{"an audit log that is a folder", []string{"AUDIT_LOG=/"}, nil, []string{"AUDIT_LOG"}},
		{"no server to check", []string{"LISTEN_ADDR=" + free}, []string{"healthcheck"}, []string{"not healthy"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			env := append([]string{"LISTEN_ADDR=" + free, "ADMIN_ADDR=127.0.0.1:0"}, tt.env...)
			code, out := run(t, env, tt.args...)
			if code != 1 {
				t.Errorf("exit %d, want 1", code)
			}
			for _, says := range tt.says {
				if !strings.Contains(out, says) {
					t.Errorf("does not name %q:\n%s", says, out)
				}
			}
			if strings.Contains(out, "secret") || strings.Contains(out, "goroutine ") {
				t.Errorf("prints a secret, or is a crash:\n%s", out)
			}
		})
	}
	t.Cleanup(func() { // after the subtests, before the server is stopped
		if first.WaitReady(context.Background()) != nil {
			t.Error("the first process on the file is gone")
		}
	})
}

func TestCommands(t *testing.T) {
	t.Parallel()
	s := testkit.StartServer(t, nil)
	if code, out := run(t, []string{"LISTEN_ADDR=" + s.Addr}, "healthcheck"); code != 0 {
		t.Errorf("healthcheck: exit %d: %s", code, out)
	}
	if code, out := run(t, nil, "version"); code != 0 || strings.TrimSpace(out) == "" {
		t.Errorf("version: exit %d: %q", code, out)
	}
	pg := testkit.Postgres(t)
	for range 2 { // the second run does no harm
		if code, out := run(t, []string{"DATABASE_URL=" + pg.URL()}, "migrate"); code != 0 {
			t.Errorf("migrate: exit %d: %s", code, out)
		}
	}
	if got := pg.Query("SELECT count(*) FROM rooms"); strings.TrimSpace(got) != "0" {
		t.Errorf("after migrate, rooms has %q", got)
	}
}

func TestOneCallChangesTheLogLevel(t *testing.T) {
	t.Parallel()
	s := testkit.StartServer(t, nil)
	res, _ := testkit.Call(t, http.MethodPut, "http://"+s.Admin+"/log-level?level=debug", "", "")
	if res.StatusCode != http.StatusOK || !strings.Contains(testkit.Get(t, "http://"+s.Admin+"/log-level"), "DEBUG") {
		t.Errorf("status %d", res.StatusCode)
	}
}

// Two nodes on PostgreSQL alone, without a broker, serve one room: the commit
// feed carries the messages.
func TestTwoNodesWithoutRedis(t *testing.T) {
	t.Parallel()
	env := map[string]string{"DATABASE_URL": testkit.Postgres(t).URL()}
	h := load.NewHistory()
	publishFromEachNode(t, h, 50, testkit.StartServer(t, env), testkit.StartServer(t, env))
	assertClean(t, h)
}

// A client needs no library of ours: these are the bytes of the README's example.
func TestAnyClientCanJoinAndPublish(t *testing.T) {
	t.Parallel()
	s := testkit.StartServer(t, nil)
	ws, _, err := websocket.Dial(t.Context(), s.SocketURL(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	for _, frame := range []string{`{"type":"join","room":"lobby"}`, `{"type":"publish","room":"lobby","data":"hello"}`} {
		if err := ws.Write(t.Context(), websocket.MessageText, []byte(frame)); err != nil {
			t.Fatal(err)
		}
	}
	got := map[string]bool{}
	for !got["welcome"] || !got["joined"] || !got["ack"] || !got["message"] {
		_, p, err := ws.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var f struct{ Type string }
		if err := json.Unmarshal(p, &f); err != nil {
			t.Fatalf("%s: %v", p, err)
		}
		got[f.Type] = true
	}
}

func TestTheGoClientGetsHistory(t *testing.T) {
	t.Parallel()
	s := testkit.StartServer(t, nil)
	h := load.NewHistory()
	ctx := testkit.Within(t, testkit.Timeout)
	c := newRoomClient(t, h, "reader", "lobby", s)
	c.publishMany(ctx, t, h, 30)
	page, err := c.client.History(ctx, c.room, client.HistoryRange{Limit: 10})
	if err != nil {
		t.Fatal(err)
	}
	if len(page.Messages) != 10 || !page.More || page.Messages[9].Seq != 30 {
		t.Errorf("got %d messages, more %v", len(page.Messages), page.More)
	}
}
