package browser

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"switchyard/internal/testkit"
	"switchyard/internal/testkit/chromium"
)

// takeScreenshot writes a screenshot into the directory that the environment
// variable PICTURES names. Without it there is none.
func takeScreenshot(w *chromium.Window, name string) {
	if dir := os.Getenv("PICTURES"); dir != "" {
		w.Screenshot(filepath.Join(dir, name+".png"))
	}
}

// The page fits each screen in both color schemes, with readable text.
func testThePageFitsEveryScreen(t *testing.T, e *env) {
	server := testkit.StartServer(t, map[string]string{"COLOR": "blue", "DEPLOYMENT": "2026-01-02.1"})
	ada := openPage(t, e.browser, server.URL()+"/#platform-4", "ada")
	bob := openPage(t, e.browser, server.URL()+"/#platform-4", "bob")
	chat(ada, bob)
	chromium.Eval[string](bob, `location.hash = "#`+strings.Repeat("a-room-with-a-very-long-name", 4)+`"`)
	chromium.Eval[string](bob, `location.hash = "#platform-4"`)
	bob.Until(`document.title.startsWith("platform-4")`)

	// The documentation uses the screenshots, so they do not show this host's name.
	chromium.Eval[string](bob, `document.getElementById("node").textContent = "node-2"`)
	chromium.Eval[string](bob, `document.getElementById("f-session").textContent = "node-2-17"`)
	for _, width := range []int64{1280, 800, 360} {
		for _, scheme := range []string{"light", "dark"} {
			bob.Resize(width, 640)
			bob.SetColorScheme(scheme)
			name := fmt.Sprintf("%s-%d", scheme, width)
			if over := chromium.Eval[int64](bob, `document.documentElement.scrollWidth`); over > width {
				t.Errorf("%s: the page is %d pixels wide", name, over)
			}
			if offscreen := chromium.Eval[[]string](bob, offscreenElements); len(offscreen) > 0 {
				t.Errorf("%s: outside the screen: %v", name, offscreen)
			}
			if lowContrast := chromium.Eval[[]string](bob, lowContrastElements); len(lowContrast) > 0 {
				t.Errorf("%s: contrast under 4.5 to 1 (WCAG 2.2 AA): %v", name, lowContrast)
			}
			bob.Until(`(() => { const log = document.querySelector(".log:not([hidden])");
				return log.scrollHeight - log.scrollTop - log.clientHeight < 2; })()`) // the newest message stays visible
			takeScreenshot(bob, name)
		}
	}
}

// offscreenElements returns the ids of important elements that are not fully
// visible.
const offscreenElements = `["composer", "state", "title", "room", "name"].filter((id) => {
	const box = document.getElementById(id).getBoundingClientRect();
	return box.width < 10 || box.left < 0 || box.right > innerWidth || box.bottom > innerHeight;
})`

// lowContrastElements returns the elements whose text has a contrast with its
// background under 4.5 to 1, WCAG 2.2 §1.4.3.
const lowContrastElements = `(() => {
	const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
	const paint = (colors) => {
		canvas.clearRect(0, 0, 1, 1);
		for (const c of colors) { canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); }
		return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => v / 255)
			.map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
			.reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
	};
	const under = (e) => e ? [...under(e.parentElement), getComputedStyle(e).backgroundColor] : [];
	const pale = [...document.querySelectorAll("h1, h2, .open, .seq, .who, .text, .at, .name, .chip, .tick, dt, dd, button, label, #state, #node, #deployment, #here, #verdict, .people li, .note .body")]
		.filter((e) => e.offsetParent && e.textContent.trim() !== "")
		.map((e) => {
			const [a, b] = [paint([...under(e), getComputedStyle(e).color]), paint(under(e))].sort((x, y) => y - x);
			return [(e.id || e.className || e.tagName) + " " + ((a + 0.05) / (b + 0.05)).toFixed(1), (a + 0.05) / (b + 0.05)];
		}).filter(([, ratio]) => ratio < 4.5).map(([name]) => name);
	return [...new Set(pale)];
})()`

// chat fills a room with messages of all kinds.
func chat(ada, bob *chromium.Window) {
	lines := []string{
		"The 17:04 is on platform four, eleven cars.",
		"Confirmed. Points 12 and 14 are set for the branch.",
		"Moving everyone to green now, hold the signal.",
		"Holding. Every client resumed, none dropped.",
		"Killed a node, to be sure. Do the numbers continue?",
		"They do: no seq missing, none twice.",
	}
	for i, line := range lines {
		w := []*chromium.Window{ada, bob}[i%2]
		typeMessage(w, line)
		waitForRows(ada, i+1)
		waitForRows(bob, i+1)
	}
	publishJSON(ada)
	waitForRows(bob, len(lines)+1)
	typeMessage(ada, "That last one came from a machine.")
	waitForRows(bob, len(lines)+2)
	ada.Type("And")
	bob.Until(`document.getElementById("signals").textContent !== ""`)
}

// publishJSON publishes a message that is not in the page's format.
func publishJSON(w *chromium.Window) {
	chromium.Eval[bool](w, `import("/client.js").then(async ({ Switchyard }) => {
		const client = Switchyard.connect();
		await client.publish("platform-4", { sensor: "axle-counter-7", axles: 44, occupied: false });
		client.close();
		return true;
	})`)
}

// A user can reach and do everything with the keyboard, and sees where the focus
// is.
func testThePageWorksWithTheKeyboardAlone(t *testing.T, e *env) {
	server := testkit.StartServer(t, nil) // whose lobby is empty
	w := openPage(t, e.browser, server.URL()+"/", "ada")
	w.Until(`location.hash === "#lobby"`)
	seen := map[string]bool{}
	for range 20 {
		w.Type("\t")
		at := chromium.Eval[string](w, `document.activeElement.id || document.activeElement.textContent.trim() || document.activeElement.className`)
		seen[at] = true
		if at != "BODY" && chromium.Eval[bool](w, `document.activeElement !== document.body && getComputedStyle(document.activeElement).outlineStyle === "none"`) {
			t.Errorf("%q has the focus, and no outline shows it", at)
		}
	}
	for _, want := range []string{"skip", "lobby", "room", "+", "leave", "log", "composer", "Send", "name", "wave", "burst"} {
		if !seen[want] {
			t.Errorf("the Tab key did not reach %q; it reached %v", want, seen)
		}
	}
	chromium.Eval[bool](w, `document.getElementById("room").focus() ?? true`)
	w.Type("depot\r")
	w.Until(`location.hash === "#depot" && document.activeElement.id === "composer"`)
	typeMessage(w, "typed without a mouse")
	waitForRows(w, 1)
	if live := chromium.Eval[string](w, `document.querySelector(".log:not([hidden])").getAttribute("role")`); live != "log" {
		t.Errorf("the list of messages has role %q, want log: a screen reader would not read new ones out", live)
	}
}
