package chromium

import (
	"context"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"

	"switchyard/internal/testkit"
)

// crashTimeout bounds the wait for the answer of a page that crashes.
const crashTimeout = 500 * time.Millisecond

// call runs a command without a result.
func call[P any](w *Window, what string, command cdp.Command[P, cdp.Empty], params P) {
	w.tb.Helper()
	if _, err := chromedp.Call(w.ctx, command, params); err != nil {
		w.tb.Fatalf("chromium: %s: %v", what, err)
	}
}

// Freeze stops the page, as Chromium does with a tab that nobody has looked at for
// minutes. Nothing can be evaluated in it until Thaw.
func (w *Window) Freeze() {
	w.tb.Helper()
	call(w, "freeze the page", page.SetWebLifecycleState, page.SetWebLifecycleStateParams{State: page.SetWebLifecycleStateStateFrozen})
}

// Thaw resumes a frozen page.
func (w *Window) Thaw() {
	w.tb.Helper()
	call(w, "resume the page", page.SetWebLifecycleState, page.SetWebLifecycleStateParams{State: page.SetWebLifecycleStateStateActive})
}

// SetOffline takes the network from the page, or gives it back.
func (w *Window) SetOffline(offline bool) {
	w.tb.Helper()
	call(w, "set the network's state", network.OverrideNetworkState, network.OverrideNetworkStateParams{
		Offline: offline, DownloadThroughput: -1, UploadThroughput: -1,
	})
	if _, err := chromedp.Call(w.ctx, network.EmulateNetworkConditionsByRule, network.EmulateNetworkConditionsByRuleParams{
		MatchedNetworkConditions: []*network.Conditions{{Offline: offline, DownloadThroughput: -1, UploadThroughput: -1}},
	}); err != nil {
		w.tb.Fatalf("chromium: set the network's conditions: %v", err)
	}
}

// Discard does what Chromium does with a frozen tab when memory is short: the page is
// gone without an event, and is loaded again once somebody looks at it.
func (w *Window) Discard() {
	w.tb.Helper()
	Eval[bool](w, `(document.addEventListener("freeze", () => { window.isFrozen = true; }), true)`)
	w.Freeze()
	w.Until("window.isFrozen") // the page's own listeners, which came first, have run
	ctx, cancel := context.WithTimeout(w.ctx, crashTimeout)
	defer cancel()
	_, _ = chromedp.Call(ctx, page.Crash, cdp.Empty{}) // nothing is left that could answer
	call(w, "load the page again", page.Reload, page.ReloadParams{})
}

// Sleep stops all processes of the browser, as a computer does that sleeps, until wake is
// called or the test ends.
func (b *Browser) Sleep(tb testing.TB) (wake func()) {
	tb.Helper()
	wake = testkit.PauseTree(chromedp.FromContext(b.ctx).Browser.Process().Pid)
	tb.Cleanup(wake)
	return wake
}
