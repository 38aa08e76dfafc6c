package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"nhooyr.io/websocket"

	"switchyard/internal/client"
	"switchyard/internal/load"
	"switchyard/internal/testkit"
)

// run starts the program to its end and returns its exit code and what it
// printed.
func run(t *testing.T, env []string, args ...string) (int, string) {
	t.Helper()
	p, err := testkit.Start(testkit.Program{Path: testkit.BuildServer(t), Args: args, Env: env})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err = p.Wait(ctx)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, p.Output()
	case errors.As(err, &exit):
		return exit.ExitCode(), p.Output()
	}
	t.Fatalf("%v: %v\n%s", args, err, p.Output())
	return 0, ""
}

func TestServerRunsWithoutSettings(t *testing.T) {
	s := testkit.StartServer(t, nil)
	h := load.NewHistory()
	g := newRoomClient(t, h, 0, []string{s.SocketURL()})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	waitFor(ctx, t, "the page's URL", func() bool {
		return strings.Contains(s.Output(), "Switchyard is at http://"+s.Addr+"/")
	})
	g.publishMany(ctx, t, h, 10)
	s.Kill() // no warning
	s.Restart()
	g.publish(ctx, t, h, "after")
	waitFor(ctx, t, "the message after the restart", deliveredAtLeast(h, 11))
	newRoomClient(t, h, roomCount, []string{s.SocketURL()}) // who comes later finds all of it
	waitFor(ctx, t, "the history", deliveredAtLeast(h, 22))
	assertClean(t, h)
}

func TestSIGTERMClosesWithServiceRestartAndExitsCleanly(t *testing.T) {
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

func TestAClientThatNeverAnswersDoesNotBlockShutdown(t *testing.T) {
	t.Parallel()
	s := testkit.StartServer(t, map[string]string{"DRAIN_WINDOW": "1s", "DRAIN_TIMEOUT": "1s"})
	c, err := net.Dial("tcp", s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET /ws HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", s.Addr)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	waitFor(ctx, t, "the connection", func() bool { return strings.Contains(get(t, s.URL()+"/metrics"), "websocket_active_connections 1") })
	began := time.Now()
	if err := s.Stop(); err != nil {
		t.Errorf("exit: %v\n%s", err, s.Output())
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestASecondSignalEndsAtOnce(t *testing.T) {
	s := testkit.StartServer(t, map[string]string{"DRAIN_TIMEOUT": "60s"})
	c, err := net.Dial("tcp", s.Addr) // holds the stop up
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	waitFor(ctx, t, "the connection", func() bool { return strings.Contains(get(t, s.URL()+"/metrics"), "websocket_active_connections 1") })
	s.Signal(syscall.SIGTERM)
	waitFor(ctx, t, "the stop to begin", func() bool { return strings.Contains(s.Output(), `"msg":"stopping"`) })
	if err := s.Stop(); err == nil { // the second one
		t.Error("exit 0, as if it had waited")
	}
}

func TestStartupErrorsAreOneLine(t *testing.T) {
	sqlite := testkit.StartServer(t, nil)
	locked := "sqlite:" + t.TempDir() + "/a.db"
	holder := testkit.StartServer(t, map[string]string{"DATABASE_URL": locked})
	unsafe := testkit.StartPostgres(t, "fsync=off")
	free := fmt.Sprintf("127.0.0.1:%d", testkit.FreePort())
	tests := []struct {
		name string
		env  []string
		args []string
		says []string
	}{
		{"unknown command", nil, []string{"dance"}, []string{"unknown command", "serve"}},
		{"settings, all at once", []string{"MAX_FRAME=12", "HEARTBEAT=soon"}, nil, []string{"MAX_FRAME", "HEARTBEAT"}},
		{"no such database scheme", []string{"DATABASE_URL=mysql://x/y"}, nil, []string{"DATABASE_URL"}},
		{"nobody answers", []string{"DATABASE_URL=postgres://x:secret@127.0.0.1:1/y"}, nil, []string{"DATABASE_URL"}},
		{"fsync off", []string{"DATABASE_URL=" + unsafe.URL()}, nil, []string{"fsync"}},
		{"a second process on one file", []string{"DATABASE_URL=" + locked}, nil, []string{"DATABASE_URL"}},
		{"a broken Redis URL", []string{"REDIS_URL=http://x"}, nil, []string{"REDIS_URL"}},
		{"a port in use", []string{"LISTEN_ADDR=" + sqlite.Addr}, nil, []string{"LISTEN_ADDR", sqlite.Addr}},
		{"an audit log in no folder", []string{"AUDIT_LOG=/no/such/folder/audit.jsonl"}, nil, []string{"AUDIT_LOG"}},
		{"an audit log that is a folder", []string{"AUDIT_LOG=/"}, nil, []string{"AUDIT_LOG"}},
		{"nothing to check", []string{"LISTEN_ADDR=" + free}, []string{"healthcheck"}, []string{"not healthy"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
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
				t.Errorf("tells a secret, or is a crash:\n%s", out)
			}
		})
	}
	if holder.WaitReady(t.Context()) != nil {
		t.Error("the first process on the file is gone")
	}
}

func TestCommands(t *testing.T) {
	s := testkit.StartServer(t, nil)
	if code, out := run(t, []string{"LISTEN_ADDR=" + s.Addr}, "healthcheck"); code != 0 {
		t.Errorf("healthcheck: exit %d: %s", code, out)
	}
	if code, out := run(t, nil, "version"); code != 0 || strings.TrimSpace(out) == "" {
		t.Errorf("version: exit %d: %q", code, out)
	}
	pg := testkit.Postgres(t)
	for range 2 { // again does no harm
		if code, out := run(t, []string{"DATABASE_URL=" + pg.URL()}, "migrate"); code != 0 {
			t.Errorf("migrate: exit %d: %s", code, out)
		}
	}
	if got := pg.Query("SELECT count(*) FROM rooms"); strings.TrimSpace(got) != "0" {
		t.Errorf("after migrate, rooms has %q", got)
	}
}

func TestOneCallChangesTheLogLevel(t *testing.T) {
	s := testkit.StartServer(t, nil)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://"+s.Admin+"/log-level?level=debug", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK || !strings.Contains(get(t, "http://"+s.Admin+"/log-level"), "DEBUG") {
		t.Errorf("status %d", res.StatusCode)
	}
}

// Two nodes on PostgreSQL alone, without a broker, serve one room: the commit
// feed carries the messages.
func TestTwoNodesWithoutRedis(t *testing.T) {
	env := map[string]string{"DATABASE_URL": testkit.Postgres(t).URL()}
	a, b := testkit.StartServer(t, env), testkit.StartServer(t, env)
	h := load.NewHistory()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var clients []*roomClient
	for i, url := range []string{a.SocketURL(), b.SocketURL()} {
		clients = append(clients, newRoomClient(t, h, i*roomCount, []string{url})) // the same room
	}
	for _, g := range clients {
		g.publishMany(ctx, t, h, 50)
	}
	waitFor(ctx, t, "all deliveries", deliveredAtLeast(h, 200))
	for _, g := range clients {
		g.client.Close()
	}
	assertClean(t, h)
}

// What a client is told does not depend on the client library: the bytes of
// the README's example.
func TestAnyClientCanJoinAndPublish(t *testing.T) {
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
	s := testkit.StartServer(t, nil)
	h := load.NewHistory()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	g := newRoomClient(t, h, 0, []string{s.SocketURL()})
	g.publishMany(ctx, t, h, 30)
	page, err := g.client.History(ctx, g.room, client.HistoryRange{Limit: 10})
	if err != nil {
		t.Fatal(err)
	}
	if len(page.Messages) != 10 || !page.More || page.Messages[9].Seq != 30 {
		t.Errorf("got %d messages, more %v", len(page.Messages), page.More)
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
