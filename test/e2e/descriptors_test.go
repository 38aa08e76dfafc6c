package e2e

import (
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"nhooyr.io/websocket"

	"switchyard/internal/testkit"
)

// dialSilent opens a connection that sends nothing.
func dialSilent(t *testing.T, s *testkit.Server) {
	t.Helper()
	conn, err := net.Dial("tcp", s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
}

// dialClient opens a connection and sends a handshake, whose answer it does not read.
func dialClient(t *testing.T, s *testkit.Server) {
	t.Helper()
	conn, err := net.Dial("tcp", s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := io.WriteString(conn, "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
}

// wantProbes checks that each probe is answered, on a connection of its own.
func wantProbes(t *testing.T, s *testkit.Server) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: testkit.Timeout}
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		var status int
		testkit.Eventually(t, path+" to be answered", func() bool {
			res, err := client.Get(s.URL() + path)
			if err != nil {
				return false
			}
			_ = res.Body.Close()
			status = res.StatusCode
			return true
		})
		if status != http.StatusOK {
			t.Errorf("%s: %d", path, status)
		}
	}
}

// The host allows far fewer open files than MAX_CONNECTIONS needs. The node says so at
// its start, accepts as many clients as it can, refuses the others, and answers probes
// in spite of connections that are only held open.
func TestFewerDescriptorsThanConnections(t *testing.T) {
	t.Parallel()
	s := testkit.StartServerWithFiles(t, 256, map[string]string{"MAX_CONNECTIONS": "10000"})
	limit := int(metric(t, s, "websocket_connections_limit"))
	if limit < 64 || limit > 256-64 {
		t.Fatalf("%d connections are accepted with 256 descriptors", limit)
	}
	if got := strings.Count(s.Output(), "allows fewer connections than MAX_CONNECTIONS"); got != 1 {
		t.Errorf("the log says so %d times, want once:\n%s", got, s.Output())
	}
	for i := range limit {
		conn, _, err := websocket.Dial(t.Context(), s.SocketURL(), nil)
		if err != nil {
			t.Fatalf("connection %d of %d: %v", i+1, limit, err)
		}
		t.Cleanup(func() { _ = conn.CloseNow() })
	}
	conn, _, err := websocket.Dial(t.Context(), s.SocketURL(), nil)
	if err == nil {
		defer func() { _ = conn.CloseNow() }()
		_, _, err = conn.Read(t.Context())
	}
	if code := websocket.CloseStatus(err); code != 4103 {
		t.Errorf("one connection more: %v, want close code 4103", err)
	}
	for range 100 {
		dialSilent(t, s)
	}
	wantProbes(t, s)
	if got := metric(t, s, "http_accept_errors_total"); got != 0 {
		t.Errorf("%v connections could not be accepted, though their number is bounded", got)
	}
}

// Something uses up all descriptors. Probes are answered nevertheless, and the failures
// are logged and counted.
func TestNoDescriptorIsLeft(t *testing.T) {
	t.Parallel()
	// The clients answer no ping. They keep their descriptors longer than a probe may take.
	s := testkit.StartServer(t, map[string]string{"HEARTBEAT": "40s"})
	wantProbes(t, s)
	highest := slices.Max(s.OpenFiles())
	s.LimitFiles(highest + 1)
	testkit.Eventually(t, "all descriptors to be in use", func() bool {
		dialClient(t, s)
		return strings.Contains(s.Output(), "connections cannot be accepted")
	})
	for range 8 { // They take what becomes free for a moment, such as that of a file: the probes wait behind them.
		dialClient(t, s)
	}
	wantProbes(t, s)
	if res, err := http.Get(s.URL() + "/v1/rooms"); err == nil {
		_ = res.Body.Close()
	}
	testkit.Eventually(t, "the failures to be counted", func() bool { return metric(t, s, "http_accept_errors_total") > 0 })
	if got := strings.Count(s.Output(), "connections cannot be accepted"); got < 1 || got > 12 {
		t.Errorf("the log says so %d times:\n%s", got, s.Output())
	}
	s.LimitFiles(1024)
	conn, _, err := websocket.Dial(t.Context(), s.SocketURL(), nil)
	if err != nil {
		t.Fatalf("a client after the limit was raised: %v", err)
	}
	_ = conn.CloseNow()
}
