// Package webdriver drives a real Firefox or WebKitGTK in tests by the commands of
// W3C WebDriver. Firefox takes them over Marionette, its own protocol, so that it
// needs no driver; WebKitGTK has a driver that takes them over HTTP.
package webdriver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"
)

const (
	// browserTimeout bounds the start of a browser, and each command.
	browserTimeout = time.Minute
	// pageTimeout bounds how long Until waits.
	pageTimeout = 30 * time.Second
)

// A command is one of W3C WebDriver: its method and path over HTTP, below the
// session's, and its name in Marionette.
type command struct{ method, path, name string }

var (
	newSession    = command{http.MethodPost, "", "WebDriver:NewSession"}
	getWindow     = command{http.MethodGet, "/window", "WebDriver:GetWindowHandle"}
	newWindow     = command{http.MethodPost, "/window/new", "WebDriver:NewWindow"}
	switchWindow  = command{http.MethodPost, "/window", "WebDriver:SwitchToWindow"}
	closeWindow   = command{http.MethodDelete, "/window", "WebDriver:CloseWindow"}
	navigate      = command{http.MethodPost, "/url", "WebDriver:Navigate"}
	executeAsync  = command{http.MethodPost, "/execute/async", "WebDriver:ExecuteAsyncScript"}
	performAction = command{http.MethodPost, "/actions", "WebDriver:PerformActions"}
)

// A wire carries commands to a browser, one at a time.
type wire interface {
	// send returns the value of the answer.
	send(ctx context.Context, c command, params any) (json.RawMessage, error)
	close()
}

// An Error is one that the browser answers.
type Error struct{ Code, Message string }

func (e *Error) Error() string { return e.Code + ": " + e.Message }

// A Browser is one for one test, with an empty profile. Its windows are tabs that
// share its storage, as those of one person do. Its methods and those of its windows
// may be called from any goroutine.
type Browser struct {
	wire  wire
	kind  string     // of new windows, "tab" or "window"
	first string     // handle of an empty tab that stays open
	mu    sync.Mutex // Held over the commands that follow each other for one window.
}

// start opens the session of a browser. stop is called when the test ends.
func start(tb testing.TB, name, kind string, wire wire, stop func()) *Browser {
	tb.Helper()
	tb.Cleanup(func() {
		wire.close()
		stop()
	})
	b := &Browser{wire: wire, kind: kind}
	err := b.do(newSession, map[string]any{"capabilities": map[string]any{}}, nil)
	if err == nil {
		err = b.do(getWindow, map[string]any{}, &b.first)
	}
	if err != nil {
		tb.Fatalf("webdriver: open a session of %s: %v", name, err)
	}
	return b
}

// dialWhenReady connects to a port of this machine as soon as somebody listens there.
func dialWhenReady(ctx context.Context, port int) (net.Conn, error) {
	var dialer net.Dialer
	for {
		conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			return conn, nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// do sends a command and decodes the value of its answer, unless value is nil.
func (b *Browser) do(c command, params, value any) error {
	ctx, cancel := context.WithTimeout(context.Background(), browserTimeout)
	defer cancel()
	answer, err := b.wire.send(ctx, c, params)
	if err != nil || value == nil {
		return err
	}
	if err := json.Unmarshal(answer, value); err != nil {
		return fmt.Errorf("decode %.200s: %w", answer, err)
	}
	return nil
}

// A Window is one tab. Its methods fail the test on an error.
type Window struct {
	tb      testing.TB
	browser *Browser
	handle  string
}

// Open opens a new tab in front of the others and waits until the page has loaded. It
// is closed when the test ends.
func (b *Browser) Open(tb testing.TB, url string) *Window {
	tb.Helper()
	w := &Window{tb: tb, browser: b}
	if err := w.open(); err != nil {
		tb.Fatalf("webdriver: open a tab: %v", err)
	}
	tb.Cleanup(func() { _ = w.do(closeWindow, map[string]any{}, nil) })
	if err := w.do(navigate, map[string]any{"url": url}, nil); err != nil {
		tb.Fatalf("webdriver: open %s: %v", url, err)
	}
	return w
}

// open opens the tab, from one that is open: the last one may be closed by now.
func (w *Window) open() error {
	w.browser.mu.Lock()
	defer w.browser.mu.Unlock()
	var opened struct{ Handle string }
	err := w.browser.do(switchWindow, map[string]any{"handle": w.browser.first, "focus": false}, nil)
	if err == nil {
		err = w.browser.do(newWindow, map[string]any{"type": w.browser.kind}, &opened)
	}
	w.handle = opened.Handle
	return err
}

// do sends a command to this window, which comes to the front when it is opened or typed
// into.
func (w *Window) do(c command, params, value any) error {
	w.browser.mu.Lock()
	defer w.browser.mu.Unlock()
	if err := w.browser.do(switchWindow, map[string]any{"handle": w.handle, "focus": c == performAction || c == navigate}, nil); err != nil {
		return err
	}
	return w.browser.do(c, params, value)
}

// evaluateScript calls back with the value of an expression, or with its error.
const evaluateScript = `const done = arguments[arguments.length - 1];
try {
	Promise.resolve(%s).then((value) => done({ value }), (error) => done({ error: String(error) }));
} catch (error) {
	done({ error: String(error) });
}`

func (w *Window) evaluate(expression string, value any) error {
	var answer struct {
		Value json.RawMessage
		Error string
	}
	err := w.do(executeAsync, map[string]any{"script": fmt.Sprintf(evaluateScript, expression), "args": []any{}}, &answer)
	switch {
	case err != nil:
		return err
	case answer.Error != "":
		return errors.New(answer.Error)
	case value == nil || answer.Value == nil:
		return nil
	}
	return json.Unmarshal(answer.Value, value)
}

// Evaluate decodes the value of a JavaScript expression, unless value is nil. A
// promise is awaited.
func (w *Window) Evaluate(expression string, value any) {
	w.tb.Helper()
	if err := w.evaluate(expression, value); err != nil {
		w.tb.Fatalf("webdriver: evaluate %s: %v", expression, err)
	}
}

// Until waits until a JavaScript expression is true, also while the page is loaded.
// If that takes longer than pageTimeout, the test fails with the text of the page.
func (w *Window) Until(expression string) {
	w.tb.Helper()
	deadline := time.Now().Add(pageTimeout)
	for {
		var ok bool
		err := w.evaluate("!!("+expression+")", &ok)
		if ok {
			return
		}
		if time.Now().After(deadline) {
			var text string
			w.Evaluate("document.body.innerText", &text)
			w.tb.Fatalf("not true in the page within %v: %s (%v)\nthe page shows:\n%s", pageTimeout, expression, err, text)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// enterKey is the key Enter in WebDriver.
const enterKey = "\ue006"

// Type types keys into the element that has the focus; "\r" is the Enter key.
func (w *Window) Type(keys string) {
	w.tb.Helper()
	var actions []any
	for _, key := range keys {
		text := string(key)
		if key == '\r' {
			text = enterKey
		}
		for _, kind := range []string{"keyDown", "keyUp"} {
			actions = append(actions, map[string]any{"type": kind, "value": text})
		}
	}
	err := w.do(performAction, map[string]any{"actions": []any{
		map[string]any{"type": "key", "id": "keyboard", "actions": actions},
	}}, nil)
	if err != nil {
		w.tb.Fatalf("webdriver: type: %v", err)
	}
}
