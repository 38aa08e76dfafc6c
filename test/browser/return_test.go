package browser

import (
	"net/http/httptest"
	"strings"
	"testing"

	"switchyard/internal/testkit"
)

// A path that swallows bytes is noticed some seconds after the browser says that its
// network is back, and not after two heartbeats: nothing that was sent is lost.
func testASilentPathIsNoticedWhenTheNetworkComesBack(t *testing.T, e *env) {
	proxy := testkit.NewProxy(t, e.server.Addr)
	w := openShared(t, e, "http://"+proxy.Addr()+"/#tunnel", "ada")
	proxy.Swallow()
	typeMessage(w, "out of the tunnel")
	eval[bool](w, `dispatchEvent(new Event("online"))`)
	waitForRows(w, 1)
	w.Until(`document.body.dataset.state === "live" && document.getElementById("f-moves").textContent === "once"`)
	if got := eval[string](w, `document.getElementById("f-returns").textContent`); got != "0 times" {
		t.Errorf("it reconnected %s, want a move", got)
	}
}

// While a dialog is open or a script runs, the page takes no message: here for longer than two
// heartbeats. It reconnects once at most, and loses nothing.
func testAPageHeldUpByADialogLosesNothing(t *testing.T, e *env) {
	server := testkit.StartServer(t, map[string]string{"HEARTBEAT": "1s"})
	w := openPage(t, e.browser, server.URL()+"/#dialog", "ada")
	other := openPage(t, e.browser, server.URL()+"/#dialog", "bob")
	eval[bool](other, `setTimeout(() => document.getElementById("burst").click(), 1000) > 0`)
	eval[bool](w, `(() => {
		document.getElementById("burst").click();
		for (const end = performance.now() + 2100; performance.now() < end;) { /* as alert() does */ }
		return true;
	})()`)
	waitForRows(w, 40)
	w.Until(clean + ` && document.body.dataset.state === "live" && document.getElementById("received").textContent === "40"`)
	if got := eval[string](w, `document.getElementById("f-returns").textContent`); got != "0 times" && got != "once" {
		t.Errorf("it reconnected %s", got)
	}
}

// A reload continues the session, so that others see nobody twice, and a copy of the tab
// gets a session of its own.
func testThePageKeepsItsSessionOverAReload(t *testing.T, e *env) {
	const session = `document.getElementById("f-session").textContent`
	server := testkit.StartServer(t, nil)
	other := openShared(t, e, server.URL()+"/#hall", "bob")
	w := openShared(t, e, server.URL()+"/#hall", "ada")
	other.Until(`document.getElementById("here").textContent === "2 here"`)
	eval[bool](other, `(window.counts = [], new MutationObserver(() => {
		window.counts.push(document.getElementById("here").textContent);
	}).observe(document.getElementById("here"), { childList: true, characterData: true, subtree: true }), true)`)
	first := eval[string](w, session)
	for range 3 {
		eval[bool](w, `(window.isOld = true, location.reload(), true)`)
		w.Until(`!window.isOld && document.body?.dataset.state === "live"`)
		if got := eval[string](w, session); got != first {
			t.Errorf("the session after a reload is %s, want %s", got, first)
		}
	}
	// The copy has what sessionStorage had when it was opened.
	copied := eval[string](w, `new Promise((resolve) => {
		const copy = open(location.href);
		const poll = setInterval(() => {
			if (copy.document.body?.dataset.state !== "live") return;
			clearInterval(poll);
			resolve(copy.document.getElementById("f-session").textContent);
		}, 20);
	})`)
	if copied == first || copied == "" {
		t.Errorf("the copy of the tab has the session %q of the first", copied)
	}
	other.Until(`document.getElementById("here").textContent === "3 here"`)
	if got := eval[[]string](other, `window.counts`); len(got) != 1 {
		t.Errorf("others saw %q, want the copy of the tab only", got)
	}
	w.Until(`document.body.dataset.state === "live"`)
}

// Safari ends the composition before the keydown of the Enter that confirms it, and gives
// that event the key code 229.
func testEnterOfAnInputMethodSendsNothing(t *testing.T, e *env) {
	w := openShared(t, e, e.server.URL()+"/#kana", "ada")
	press := func(code string) bool {
		return eval[bool](w, `(document.getElementById("composer").value = "\u306b\u307b",
			document.getElementById("composer").dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", keyCode: `+code+`, bubbles: true, cancelable: true })))`)
	}
	if !press("229") {
		t.Error("the page canceled the key of the input method")
	}
	if got := eval[string](w, `document.getElementById("composer").value`); got != "\u306b\u307b" {
		t.Errorf("the field has %q after the key of the input method", got)
	}
	if press("13") {
		t.Error("Enter itself did not send")
	}
	waitForRows(w, 1)
}

// A page whose origin is not allowed gets an error that says so, with a page that helps.
func testAForeignPageLearnsWhyItCannotConnect(t *testing.T, e *env) {
	foreign := httptest.NewServer(repository())
	defer foreign.Close()
	w := e.open(t, foreign.URL+"/")
	message := eval[string](w, `import("/web/client.js").then(({ Switchyard }) => new Promise((resolve) => {
		const client = Switchyard.connect("`+e.server.SocketURL()+`", { backoff: { base: 10 } });
		client.on("error", (error) => { client.close(); resolve(error.message); });
	}))`)
	link := e.server.URL() + "/no-connection.html"
	if !strings.Contains(message, foreign.URL) || !strings.Contains(message, "ALLOWED_ORIGINS") || !strings.Contains(message, link) {
		t.Errorf("the error is %q", message)
	}
	help := e.open(t, link)
	help.Until(`document.querySelector("h1").textContent === "No connection" && document.body.innerText.includes("ALLOWED_ORIGINS")`)
}
