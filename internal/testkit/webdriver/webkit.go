package webdriver

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"

	"switchyard/internal/testkit"
)

// StartWebKit starts WebKitGTK's small browser behind its driver, on a screen that
// exists in memory only. All are stopped when the test ends.
func StartWebKit(tb testing.TB) *Browser {
	tb.Helper()
	driver, err := testkit.FindProgram("WebKitWebDriver", "webkit2gtk-driver")
	if err != nil {
		tb.Fatal(err)
	}
	display, stopDisplay := startDisplay(tb)
	port := testkit.FreePort()
	home, err := testkit.TempDir("webkit", nil)
	if err != nil {
		tb.Fatalf("webdriver: %v", err)
	}
	process, err := testkit.Start(testkit.Program{
		Path: driver, Args: []string{"--port=" + strconv.Itoa(port)},
		Env: []string{
			"DISPLAY=" + display, "GDK_BACKEND=x11", "HOME=" + home, "XDG_CONFIG_HOME=" + home, "XDG_CACHE_HOME=" + home,
			"XDG_DATA_HOME=" + home, "XDG_RUNTIME_DIR=" + home, "NO_AT_BRIDGE=1", "LIBGL_ALWAYS_SOFTWARE=1",
		},
	})
	if err != nil {
		stopDisplay()
		tb.Fatal(err)
	}
	wire := &driverWire{client: &http.Client{}, session: "http://127.0.0.1:" + strconv.Itoa(port) + "/session"}
	stop := func() {
		_ = process.Stop(syscall.SIGKILL, browserTimeout)
		stopDisplay()
	}
	conn, err := dialWhenReady(testkit.Within(tb, browserTimeout), port)
	if err != nil {
		stop()
		tb.Fatalf("webdriver: connect to WebKitWebDriver: %v; it printed:\n%s", err, process.Output())
	}
	_ = conn.Close()
	// Its driver does not bring a tab to the front. Windows are all visible.
	return start(tb, "WebKit", "window", wire, stop)
}

// screenNumber is what Xvfb prints among its warnings.
var screenNumber = regexp.MustCompile(`(?m)^(\d+)\n`)

// startDisplay starts an X server without a screen and returns its name.
func startDisplay(tb testing.TB) (name string, stop func()) {
	tb.Helper()
	program, err := testkit.FindProgram("Xvfb", "xvfb")
	if err != nil {
		tb.Fatal(err)
	}
	process, err := testkit.Start(testkit.Program{Path: program, Args: []string{"-displayfd", "1", "-nolisten", "tcp", "-screen", "0", "1280x800x24"}})
	if err != nil {
		tb.Fatal(err)
	}
	var number []string
	testkit.Eventually(tb, "Xvfb names its screen", func() bool {
		number = screenNumber.FindStringSubmatch(process.Output())
		return number != nil
	})
	return ":" + number[1], func() { _ = process.Stop(syscall.SIGKILL, browserTimeout) }
}

// A driverWire is the HTTP of W3C WebDriver.
type driverWire struct {
	client  *http.Client
	session string // URL; of all sessions until one is open
}

func (d *driverWire) send(ctx context.Context, c command, params any) (json.RawMessage, error) {
	body, err := json.Marshal(params)
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, c.method, d.session+c.path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	response, err := d.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	var answer struct{ Value json.RawMessage }
	if err := json.Unmarshal(text, &answer); err != nil {
		return nil, fmt.Errorf("decode %.200s: %w", text, err)
	}
	if response.StatusCode != http.StatusOK {
		var failure struct{ Error, Message string }
		_ = json.Unmarshal(answer.Value, &failure)
		return nil, &Error{failure.Error, failure.Message}
	}
	if c == newSession {
		var opened struct{ SessionID string }
		if err := json.Unmarshal(answer.Value, &opened); err != nil {
			return nil, err
		}
		d.session += "/" + opened.SessionID
	}
	return answer.Value, nil
}

// close ends the session and with it the browser.
func (d *driverWire) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if request, err := http.NewRequestWithContext(ctx, http.MethodDelete, d.session, nil); err == nil {
		if response, err := d.client.Do(request); err == nil {
			_ = response.Body.Close()
		}
	}
	d.client.CloseIdleConnections()
}
