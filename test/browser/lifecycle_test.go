package browser

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"switchyard/internal/testkit"
	"switchyard/internal/testkit/chromium"
	"switchyard/internal/testkit/metrictest"
)

const sessionID = `document.getElementById("f-session").textContent`

// Chromium freezes a tab that nobody has looked at for minutes: nothing runs in it,
// for longer than two heartbeats. What was published meanwhile is there afterwards.
func testAFrozenPageMissesNothing(t *testing.T, e *env) {
	server := testkit.StartServer(t, map[string]string{"HEARTBEAT": "1s"})
	ada := openPage(t, e.browser, server.URL()+"/#ice", "ada")
	bob := openPage(t, e.browser, server.URL()+"/#ice", "bob")
	typeMessage(ada, "before")
	ada.Freeze()
	publishMany(bob, "ice", 30)
	<-time.After(2500 * time.Millisecond) // the time that the page is frozen
	publishMany(bob, "ice", 30)
	waitForRows(bob, 61)
	ada.Thaw()
	typeMessage(ada, "after")
	for _, w := range []window{ada, bob} {
		waitForRows(w, 62)
		w.Until(clean + ` && document.body.dataset.state === "live"`)
	}
	if got := eval[[]string](ada, rows); len(got) != 62 || got[61] != "62 ada after" {
		t.Errorf("%d rows, the last one %q", len(got), got[len(got)-1])
	}
}

// A tab that Chromium has discarded continues its session, so that others see nobody
// twice.
func testADiscardedTabContinuesItsSession(t *testing.T, e *env) {
	server := testkit.StartServer(t, nil)
	w := openPage(t, e.browser, server.URL()+"/#shelf", "ada")
	typeMessage(w, "before")
	waitForRows(w, 1)
	first := eval[string](w, sessionID)
	eval[bool](w, `(window.isOld = true)`)
	w.Discard()
	w.Until(`!window.isOld && document.body?.dataset.state === "live"`)
	if got := eval[string](w, sessionID); got != first {
		t.Errorf("the session is %s, want %s", got, first)
	}
	w.Until(`document.getElementById("here").textContent === "1 here"`)
	w.Until(rows + `.length === 1`)
}

// Chromium keeps a page that the user has left, without its socket, and shows it
// again as it was, if it has the memory.
func testAPageOutOfTheBackForwardCacheMissesNothing(t *testing.T, e *env) {
	server := testkit.StartServer(t, nil)
	w := openPage(t, e.browser, server.URL()+"/#corridor", "ada")
	bob := openPage(t, e.browser, server.URL()+"/#corridor", "bob")
	first := eval[string](w, sessionID)
	eval[bool](w, `(addEventListener("pageshow", ({ persisted }) => { window.persisted = persisted; }), true)`)
	typeMessage(w, "leaving")
	eval[bool](w, `(location.href = "/no-connection.html", true)`)
	w.Until(`document.querySelector("h1")?.textContent === "No connection"`)
	typeMessage(bob, "while away")
	waitForRows(bob, 2)
	eval[bool](w, `(history.back(), true)`)
	w.Until(`document.body?.dataset.state === "live"`)
	waitForRows(w, 2)
	w.Until(clean)
	if got := eval[string](w, sessionID); got != first {
		t.Errorf("the session is %s, want %s", got, first)
	}
	// Chromium may keep no page for reasons of its own: a socket that it did not close in time
	// is one. The user sees the same. The page must not be the reason, by what it listens to or
	// by its headers.
	if !eval[bool](w, `window.persisted === true`) {
		why := eval[string](w, `JSON.stringify(performance.getEntriesByType("navigation")[0].notRestoredReasons ?? null)`)
		t.Logf("the page did not come out of the cache: %s", why)
		for _, own := range []string{"unload", "no-store"} {
			if strings.Contains(strings.ToLower(why), own) {
				t.Errorf("the page kept itself out of the cache: %s", why)
			}
		}
	}
	w.Until(`sessionStorage.getItem("switchyard.session") === null`)
}

// A tab that is copied while its page is not there copies the session, too. Whichever
// of the two comes second takes it over, and the other begins one of its own.
func testACopyOfATabThatIsElsewhereGetsItsOwnSession(t *testing.T, e *env) {
	server := testkit.StartServer(t, nil)
	w := openPage(t, e.browser, server.URL()+"/#twins", "ada")
	first := eval[string](w, sessionID)
	eval[bool](w, `(location.href = "/no-connection.html", true)`)
	w.Until(`document.querySelector("h1")?.textContent === "No connection"`)
	sessions := eval[[]string](w, `(async () => {
		const copies = window.copies = [open("/#twins"), open("/#twins")];
		const shown = (id) => copies.map((copy) => copy.document.getElementById(id)?.textContent);
		for (;;) {
			const [one, two] = shown("f-session");
			if (copies.every((copy) => copy.document.body?.dataset.state === "live") && one !== two) return [one, two];
			await new Promise((resolve) => setTimeout(resolve, 20));
		}
	})()`)
	if sessions[0] != first && sessions[1] != first {
		t.Errorf("the sessions of the copies are %q, want %s for one", sessions, first)
	}
	bob := openPage(t, e.browser, server.URL()+"/#twins", "bob")
	bob.Until(`document.getElementById("here").textContent === "3 here"`)
	typeMessage(bob, "to both")
	w.Until(`copies.every((copy) => copy.document.querySelectorAll(".log:not([hidden]) .row[data-seq]").length === 1)`)
}

// A browser that loses its network keeps what is written, and comes back by itself.
func testABrowserThatIsOfflineLosesNothing(t *testing.T, e *env) {
	server := testkit.StartServer(t, map[string]string{"HEARTBEAT": "1s"})
	ada := openPage(t, e.browser, server.URL()+"/#plane", "ada")
	bob := openPage(t, e.browser, server.URL()+"/#plane", "bob")
	ada.SetOffline(true)
	ada.Until(`!navigator.onLine`)
	typeMessage(ada, "in the air")
	publishMany(bob, "plane", 20)
	<-time.After(2500 * time.Millisecond) // the time without a network
	ada.SetOffline(false)
	for _, w := range []window{ada, bob} {
		waitForRows(w, 21)
		w.Until(clean + ` && document.body.dataset.state === "live"`)
	}
}

// A computer sleeps for longer than the service waits for a sign of life. The page comes
// back by itself when it wakes, with what was published meanwhile.
func testABrowserThatSleepsMissesNothing(t *testing.T, e *env) {
	server := testkit.StartServer(t, map[string]string{"HEARTBEAT": "1s"})
	browser := chromium.Start(t)
	ada := openPage(t, browser, server.URL()+"/#night", "ada")
	bob := openPage(t, e.browser, server.URL()+"/#night", "bob")
	typeMessage(ada, "before")
	waitForRows(bob, 1)
	wake := browser.Sleep(t)
	publishMany(bob, "night", 30)
	testkit.Eventually(t, "the service to give the sleeper up", func() bool {
		lost, _ := metrictest.Parse(t, testkit.Get(t, server.URL()+"/metrics")).Value(t, `websocket_disconnections_total{reason="no_pong"}`)
		if lost == 0 {
			<-time.After(50 * time.Millisecond) // the page costs a server with the race detector some milliseconds
		}
		return lost > 0
	})
	publishMany(bob, "night", 30)
	waitForRows(bob, 61)
	wake()
	waitForRows(ada, 61)
	typeMessage(ada, "after")
	for _, w := range []window{ada, bob} {
		waitForRows(w, 62)
		w.Until(clean + ` && document.body.dataset.state === "live"`)
	}
}

// Another page of this origin may have stored anything under the names of the page.
func testForeignStorageBreaksNothing(t *testing.T, e *env) {
	w := e.browser.Open(t, e.server.URL()+"/no-connection.html")
	for i, content := range []string{`{`, `null`, `"lobby"`, `[1, null, "no room!"]`, `{"length": 1}`} {
		eval[bool](w, fmt.Sprintf(`(sessionStorage.setItem("rooms", %q), sessionStorage.setItem("switchyard.session", %[1]q),
			localStorage.setItem("name", %[1]q), window.isOld = true, location.href = "/?%[2]d#attic", true)`, content, i))
		w.Until(`!window.isOld && document.body?.dataset.state === "live" && location.hash === "#attic"`)
		w.Until(fmt.Sprintf(`location.search === "?%d" && document.title.startsWith("attic")`, i))
	}
}

// A browser that refuses storage and throttles the timers of a tab in the background
// shows the page all the same, and the tab comes back after an outage.
func testACautiousBrowserLosesNothing(t *testing.T, _ *env) {
	browser := chromium.StartCautious(t, chromedp.Flag("disable-background-timer-throttling", false),
		chromedp.Flag("disable-renderer-backgrounding", false), chromedp.Flag("disable-backgrounding-occluded-windows", false),
		chromedp.Flag("enable-features", "IntensiveWakeUpThrottling:grace_period_seconds/1"))
	server := testkit.StartServer(t, map[string]string{"HEARTBEAT": "1s"})
	w := openPage(t, browser, server.URL()+"/#vault", "ada")
	for _, name := range []string{"sessionStorage", "localStorage"} {
		if got := eval[string](w, `(() => { try { return "works: " + `+name+`.length; } catch (error) { return error.name; } })()`); got != "SecurityError" {
			t.Errorf("%s %s, want a SecurityError", name, got)
		}
	}
	typeMessage(w, "before")
	waitForRows(w, 1)
	eval[bool](w, `(window.front = open("/no-connection.html"), true)`)
	w.Until(`document.visibilityState === "hidden"`)
	server.Kill()
	w.Until(`document.body.dataset.state !== "live"`)
	server.Restart()
	w.Until(`document.body.dataset.state === "live"`)
	eval[bool](w, `(window.front.close(), true)`)
	w.Until(`document.visibilityState === "visible"`)
	typeMessage(w, "after")
	waitForRows(w, 2)
	w.Until(clean)
}
