// Package chromium drives a real Chromium in tests. It is not part of testkit, so
// that only the tests of pages link chromedp.
package chromium

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"switchyard/internal/testkit"
)

const (
	// browserTimeout bounds how long Chromium may take to start or to open a page.
	browserTimeout = 30 * time.Second
	// pageTimeout bounds how long Until waits. It is longer than the client's
	// backoff on a busy machine.
	pageTimeout = 30 * time.Second
)

// errorRecorder is a script that records exceptions, files that fail to load, and
// violations of the page's Content-Security-Policy.
const errorRecorder = `window.faults = [];
addEventListener("error", (e) => faults.push(e.message ?? "cannot load " + (e.target.src ?? e.target.href)), true);
addEventListener("unhandledrejection", (e) => faults.push(String(e.reason)));
addEventListener("securitypolicyviolation", (e) => faults.push(e.violatedDirective + " " + e.blockedURI));`

// A Browser is a Chromium for one test, with an empty profile. Its methods may be
// called from any goroutine.
type Browser struct {
	ctx context.Context
}

// Start starts Chromium without a screen. It is stopped when the test ends, and
// the kernel kills it if the test binary dies before that. The flags are further ones
// of its command line.
func Start(tb testing.TB, flags ...chromedp.ExecAllocatorOption) *Browser {
	tb.Helper()
	return start(tb, "{}", flags)
}

// StartCautious is Start with a user who has forbidden all storage: sessionStorage and
// localStorage throw.
func StartCautious(tb testing.TB, flags ...chromedp.ExecAllocatorOption) *Browser {
	tb.Helper()
	return start(tb, `{"profile": {"default_content_setting_values": {"cookies": 2}}}`, flags)
}

func start(tb testing.TB, preferences string, flags []chromedp.ExecAllocatorOption) *Browser {
	tb.Helper()
	program, err := testkit.FindProgram("chromium", "chromium")
	if err != nil {
		tb.Fatal(err)
	}
	profile, err := testkit.TempDir("chromium", nil)
	if err != nil {
		tb.Fatalf("chromium: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(profile, "Default"), 0o700); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(profile, "Default", "Preferences"), []byte(preferences), 0o600); err != nil {
		tb.Fatal(err)
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(program),
		chromedp.UserDataDir(profile),
		// The crash reporter would write into the user's home.
		chromedp.Env("HOME="+profile, "XDG_CONFIG_HOME="+profile, "XDG_CACHE_HOME="+profile),
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-gpu", true),
		// Root can't set up the sandbox.
		chromedp.Flag("no-sandbox", os.Getuid() == 0),
	)
	allocator, stop := chromedp.NewExecAllocator(context.Background(), append(options, flags...)...)
	ctx, cancel := chromedp.NewContext(allocator)
	tb.Cleanup(func() {
		closing, done := context.WithTimeout(ctx, browserTimeout)
		_ = chromedp.Cancel(closing) // cancel and stop kill it if this fails
		done()
		cancel()
		stop()
	})
	// The browser lives as long as the context of the first action, so that
	// context has no deadline.
	if err := chromedp.Do(ctx); err != nil {
		tb.Fatalf("chromium: start Chromium: %v", err)
	}
	return &Browser{ctx: ctx}
}

// A Window shows one page. Its methods fail the test on an error, and belong to
// the test's goroutine.
type Window struct {
	tb  testing.TB
	ctx context.Context
}

// Open opens a new window with its own storage, as another person's browser has,
// and waits until the page has loaded. The test fails at its end if errorRecorder
// has recorded anything.
func (b *Browser) Open(tb testing.TB, url string) *Window {
	tb.Helper()
	ctx, cancel := chromedp.NewContext(b.ctx, chromedp.WithNewBrowserContext())
	w := &Window{tb: tb, ctx: ctx}
	if err := chromedp.Do(ctx); err != nil { // opens the window, see Start
		tb.Fatalf("chromium: open a window: %v", err)
	}
	tb.Cleanup(func() {
		defer cancel()
		if found := Eval[[]string](w, "window.faults ?? []"); len(found) > 0 {
			tb.Errorf("the page had errors: %s", strings.Join(found, "; "))
		}
	})
	if _, err := chromedp.Call(ctx, page.AddScriptToEvaluateOnNewDocument,
		page.AddScriptToEvaluateOnNewDocumentParams{Source: errorRecorder}); err != nil {
		tb.Fatalf("chromium: install the error recorder: %v", err)
	}
	for try := 1; ; try++ {
		err := w.try(chromedp.Navigate(url))
		if err == nil {
			return w
		}
		// Chromium now and then aborts the first navigation of a new window.
		if try == 3 || !strings.Contains(err.Error(), "net::ERR_ABORTED") {
			tb.Fatalf("chromium: open %s: %v", url, err)
		}
	}
}

func (w *Window) do(what string, steps ...chromedp.Action[chromedp.Void]) {
	w.tb.Helper()
	if err := w.try(steps...); err != nil {
		w.tb.Fatalf("chromium: %s: %v", what, err)
	}
}

func (w *Window) try(steps ...chromedp.Action[chromedp.Void]) error {
	ctx, cancel := context.WithTimeout(w.ctx, browserTimeout)
	defer cancel()
	return chromedp.Do(ctx, steps...)
}

// Eval returns the value of a JavaScript expression. A promise is awaited.
func Eval[T any](w *Window, expression string) T {
	w.tb.Helper()
	value, err := evaluate[T](w, expression)
	if err != nil {
		w.tb.Fatalf("chromium: evaluate %s: %v", expression, err)
	}
	return value
}

// Evaluate decodes the value of a JavaScript expression, unless value is nil. A promise
// is awaited.
func (w *Window) Evaluate(expression string, value any) {
	w.tb.Helper()
	if value == nil {
		value = new(any)
	}
	if err := json.Unmarshal(Eval[json.RawMessage](w, expression), value); err != nil {
		w.tb.Fatalf("chromium: the value of %s: %v", expression, err)
	}
}

func evaluate[T any](w *Window, expression string) (T, error) {
	ctx, cancel := context.WithTimeout(w.ctx, browserTimeout)
	defer cancel()
	return chromedp.Run(ctx, chromedp.Evaluate[T](expression,
		func(p *runtime.EvaluateParams) { chromedp.EvalAwaitPromise(p) }))
}

// serverError is the code with which Chromium answers when the page that was asked is
// gone, because the window was reloaded at that moment.
const serverError = -32000

// Until waits until a JavaScript expression is true, also while the page is loaded. If that takes longer than
// pageTimeout, the test fails with the text of the page.
func (w *Window) Until(expression string) {
	w.tb.Helper()
	deadline := time.Now().Add(pageTimeout)
	for {
		var left *cdproto.Error
		ok, err := evaluate[bool](w, "!!("+expression+")")
		if err != nil && (!errors.As(err, &left) || left.Code != serverError) {
			w.tb.Fatalf("chromium: evaluate %s: %v", expression, err)
		}
		if ok {
			return
		}
		if time.Now().After(deadline) {
			w.tb.Fatalf("not true in the page within %v: %s\nthe page shows:\n%s",
				pageTimeout, expression, Eval[string](w, "document.body.innerText"))
		}
		<-time.After(20 * time.Millisecond)
	}
}

// Type types keys into the element that has the focus; "\r" is the Enter key.
func (w *Window) Type(keys string) {
	w.tb.Helper()
	w.do("type", chromedp.KeyEvent(keys))
}

// Resize sets the width and height of the page in CSS pixels.
func (w *Window) Resize(width, height int64) {
	w.tb.Helper()
	w.do("resize", chromedp.EmulateViewport(width, height))
}

// SetColorScheme sets prefers-color-scheme, "light" or "dark".
func (w *Window) SetColorScheme(scheme string) {
	w.tb.Helper()
	_, err := chromedp.Call(w.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	})
	if err != nil {
		w.tb.Fatalf("chromium: set the color scheme: %v", err)
	}
}

// Screenshot writes a picture of the window to a PNG file.
func (w *Window) Screenshot(path string) {
	w.tb.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, browserTimeout)
	defer cancel()
	picture, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err == nil {
		err = os.WriteFile(path, picture, 0o644)
	}
	if err != nil {
		w.tb.Fatalf("chromium: %v", fmt.Errorf("take a picture of the page: %w", err))
	}
}
