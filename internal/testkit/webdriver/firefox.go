package webdriver

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"switchyard/internal/testkit"
)

// StartFirefox starts Firefox without a screen. It is stopped when the test ends.
func StartFirefox(tb testing.TB) *Browser {
	tb.Helper()
	program, err := testkit.FindProgram("firefox-esr", "firefox-esr")
	if err != nil {
		tb.Fatal(err)
	}
	profile, err := testkit.TempDir("firefox", nil)
	if err != nil {
		tb.Fatalf("webdriver: %v", err)
	}
	port := testkit.FreePort()
	prefs := fmt.Sprintf("user_pref(\"marionette.port\", %d);\n", port)
	if err := os.WriteFile(filepath.Join(profile, "user.js"), []byte(prefs), 0o600); err != nil {
		tb.Fatal(err)
	}
	process, err := testkit.Start(testkit.Program{
		Path: program, Args: []string{"--headless", "--marionette", "--no-remote", "--profile", profile},
		Env: []string{"HOME=" + profile, "XDG_CONFIG_HOME=" + profile, "XDG_CACHE_HOME=" + profile, "MOZ_CRASHREPORTER_DISABLE=1"},
	})
	if err != nil {
		tb.Fatal(err)
	}
	stop := func() { _ = process.Stop(syscall.SIGKILL, browserTimeout) }
	conn, err := dialMarionette(testkit.Within(tb, browserTimeout), port)
	if err != nil {
		stop()
		tb.Fatalf("webdriver: connect to Firefox: %v; it printed:\n%s", err, process.Output())
	}
	return start(tb, "Firefox", "tab", conn, stop)
}

// A marionette is a connection to Firefox's own protocol: JSON arrays, each behind
// its length in bytes and a colon.
type marionette struct {
	conn   net.Conn
	reader *bufio.Reader
	last   int // number of the last command
}

// dialMarionette connects as soon as Firefox listens, and reads its greeting.
func dialMarionette(ctx context.Context, port int) (*marionette, error) {
	conn, err := dialWhenReady(ctx, port)
	if err != nil {
		return nil, err
	}
	m := &marionette{conn: conn, reader: bufio.NewReader(conn)}
	if _, err := m.read(ctx); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("read the greeting: %w", err)
	}
	return m, nil
}

func (m *marionette) close() { _ = m.conn.Close() }

func (m *marionette) read(ctx context.Context) ([]byte, error) {
	deadline, _ := ctx.Deadline()
	if err := m.conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	text, err := m.reader.ReadString(':')
	if err != nil {
		return nil, err
	}
	length, err := strconv.Atoi(strings.TrimSuffix(text, ":"))
	if err != nil {
		return nil, err
	}
	packet := make([]byte, length)
	_, err = io.ReadFull(m.reader, packet)
	return packet, err
}

func (m *marionette) send(ctx context.Context, c command, params any) (json.RawMessage, error) {
	m.last++
	request, err := json.Marshal([]any{0, m.last, c.name, params})
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	if err := m.conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(m.conn, "%d:%s", len(request), request); err != nil {
		return nil, err
	}
	packet, err := m.read(ctx)
	if err != nil {
		return nil, err
	}
	var kind, number int
	var failure *struct {
		Error, Message string
	}
	var result json.RawMessage
	if err := json.Unmarshal(packet, &[]any{&kind, &number, &failure, &result}); err != nil {
		return nil, fmt.Errorf("decode %.200s: %w", packet, err)
	}
	switch {
	case number != m.last:
		return nil, fmt.Errorf("an answer to command %d, want %d", number, m.last)
	case failure != nil:
		return nil, &Error{failure.Error, failure.Message}
	}
	// Commands with one result wrap it.
	var wrapped struct{ Value json.RawMessage }
	if json.Unmarshal(result, &wrapped) == nil && wrapped.Value != nil {
		return wrapped.Value, nil
	}
	return result, nil
}
