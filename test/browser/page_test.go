package browser

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"switchyard/internal/testkit"
	"switchyard/internal/testkit/chromium"
)

// rows returns the messages that a window shows of its open room, each as "seq name
// text".
const rows = `[...document.querySelectorAll(".log:not([hidden]) .row[data-seq]")].map((r) =>
	r.dataset.seq + " " + r.querySelector(".who").textContent + " " + r.querySelector(".text").textContent)`

// clean reports whether the page's check of the raw frames has found no fault.
const clean = `document.getElementById("verdict").dataset.clean === "true"`

func openPage(t *testing.T, b *chromium.Browser, url, name string) *chromium.Window {
	t.Helper()
	w := b.Open(t, url)
	w.Until(`document.body.dataset.state === "live"`)
	chromium.Eval[string](w, fmt.Sprintf(`document.getElementById("name").value = %q`, name))
	return w
}

// openShared is openPage in the browser of a story that all browsers run.
func openShared(t *testing.T, e *env, url, name string) window {
	t.Helper()
	w := e.open(t, url)
	w.Until(`document.body.dataset.state === "live"`)
	eval[string](w, fmt.Sprintf(`document.getElementById("name").value = %q`, name))
	return w
}

// typeMessage sends a message as a user does: with the keyboard, through the field
// that has the focus.
func typeMessage(w window, text string) { w.Type(text + "\r") }

func waitForRows(w window, count int) {
	w.Until(fmt.Sprintf("%s.length >= %d", rows, count))
}

func testTwoWindowsChat(t *testing.T, e *env) {
	ada := openShared(t, e, e.server.URL()+"/#kitchen", "ada")
	bob := openShared(t, e, e.server.URL()+"/#kitchen", "bob")
	ada.Until(`document.getElementById("second").offsetParent !== null`) // an empty room shows what to do

	typeMessage(ada, "hello")
	bob.Until(`document.getElementById("signals").textContent === "" && ` + rows + `.length === 1`)
	typeMessage(bob, "hello yourself")
	bob.Until(`document.getElementById("composer").value === ""`)
	waitForRows(ada, 2)
	waitForRows(bob, 2)

	want := []string{"1 ada hello", "2 bob hello yourself"}
	for _, w := range []window{ada, bob} {
		if got := eval[[]string](w, rows); !slices.Equal(got, want) {
			t.Errorf("a window shows %q, want %q", got, want)
		}
		w.Until(clean + ` && document.getElementById("verdict").textContent === "every seq from 1 to 2, once, in order"`)
	}
	if got := eval[string](ada, `document.getElementById("plate").textContent`); !strings.Contains(got, "green") {
		t.Errorf("the header shows %q, want the node's color", got)
	}

	bob.Type("hm")
	ada.Until(`document.getElementById("signals").textContent === "bob is writing"`)
}

// An anonymous sender writes any name into its message, also that of somebody else.
func testANameThatNobodyVouchesForIsMarked(t *testing.T, e *env) {
	const key = "0123456789abcdef0123456789abcdef"
	server := testkit.StartServer(t, map[string]string{"API_KEYS": "shop:" + key})
	bob := openPage(t, e.browser, server.URL()+"/#gate", "api:shop")
	typeMessage(bob, "hello")
	waitForRows(bob, 1)
	if res, body := testkit.Call(t, http.MethodPost, server.URL()+"/v1/rooms/gate/messages", key, `{"data":{"name":"bob","text":"hi"}}`); res.StatusCode >= 300 {
		t.Fatalf("%s %s", res.Status, body)
	}
	waitForRows(bob, 2)
	got := eval[[]string](bob, `[...document.querySelectorAll(".row .who")].map((who) =>
		who.textContent + getComputedStyle(who, "::after").content)`)
	if want := []string{`api:shop" unverified"`, `api:shopnone`}; !slices.Equal(got, want) {
		t.Errorf("the authors are shown as %q, want %q", got, want)
	}
}

// The page lists the sessions in the room. They are anonymous here, since the
// service knows no users.
func testThePageShowsWhoIsInTheRoom(t *testing.T, e *env) {
	server := testkit.StartServer(t, nil)
	ada := openPage(t, e.browser, server.URL()+"/#porch", "ada")
	ada.Until(showsPeople("1 here", "this window"))
	bob := openPage(t, e.browser, server.URL()+"/#porch", "bob")
	eve := openPage(t, e.browser, server.URL()+"/#porch", "eve")
	for _, w := range []*chromium.Window{ada, bob, eve} {
		w.Until(showsPeople("3 here", "this window, 2 guests"))
	}
	chromium.Eval[string](eve, `location.hash = "#cellar"`)
	eve.Until(showsPeople("1 here", "this window"))
	chromium.Eval[string](eve, `location.hash = "#porch"`)
	eve.Until(showsPeople("3 here", "this window, 2 guests"))
	for _, w := range []*chromium.Window{bob, eve} {
		chromium.Eval[bool](w, `document.getElementById("leave").click() ?? true`)
	}
	ada.Until(showsPeople("1 here", "this window"))
	if got := chromium.Eval[string](ada, `document.getElementById("color").textContent`); got != "no color" {
		t.Errorf("without a color the header shows %q", got)
	}
	if shown := chromium.Eval[string](ada, `document.getElementById("f-session").textContent`); strings.Contains(shown, ".") {
		t.Error("the page shows the secret of its session")
	}
}

func showsPeople(count, people string) string {
	return fmt.Sprintf(`document.getElementById("here").textContent === %q &&
		[...document.querySelectorAll("#people-list li")].map((li) => li.textContent).join(", ") === %q`, count, people)
}

// The page checks itself as well: it reports a message that it has shown twice,
// although the server sent it once.
func testThePageChecksWhatItShows(t *testing.T, e *env) {
	w := openShared(t, e, e.server.URL()+"/#mirror", "ada")
	typeMessage(w, "once")
	w.Until(clean + ` && document.getElementById("received").textContent === "1"`)
	got := eval[[]string](w, `Promise.all([import("/panel.js"), import("/check.js")]).then(([{ Metrics }, { RoomCheck }]) => {
		const [sent, shown] = [new RoomCheck(), new RoomCheck()];
		for (const check of [sent, shown]) {
			check.joined({ epoch: "e", seq: 0 }, 1);
			check.message({ epoch: "e", seq: 1 }, 1);
		}
		shown.message({ epoch: "e", seq: 1 }, 1);
		new Metrics().check(sent, shown);
		const tick = document.getElementById("tick");
		return ["verdict", "received", "doubled"].map((id) => document.getElementById(id).textContent).concat(tick.textContent, tick.dataset.clean);
	})`)
	if want := []string{"shown: seq 1 doubled", "1", "1", "✗ shown: seq 1 doubled", "false"}; !slices.Equal(got, want) {
		t.Errorf("the page shows %q, want %q", got, want)
	}
}

func testNothingIsLostWhenTheServerDies(t *testing.T, e *env) {
	server := testkit.StartServer(t, nil)
	ada := openShared(t, e, server.URL()+"/#yard", "ada")
	bob := openShared(t, e, server.URL()+"/#yard", "bob")
	typeMessage(ada, "before")
	waitForRows(bob, 1)

	// The server is killed while twenty messages of each window are in progress.
	for _, w := range []window{ada, bob} {
		eval[bool](w, `document.getElementById("burst").click() ?? true`)
	}
	server.Kill()
	for _, w := range []window{ada, bob} {
		w.Until(`document.body.dataset.state !== "live"`)
	}
	typeMessage(ada, "while down")
	ada.Until(`[...document.querySelectorAll(".waiting .text")].some((e) => e.textContent === "while down")`)
	ada.Until(`document.body.dataset.state === "waiting" && /^\d+\.\d s$/.test(document.getElementById("countdown").textContent)`)

	server.Restart()
	for _, w := range []window{ada, bob} {
		w.Until(`document.body.dataset.state === "live"`)
		waitForRows(w, 42)
		w.Until(`document.querySelectorAll(".waiting .row").length === 0`)
		w.Until(`document.getElementById("f-returns").textContent !== "0 times"`)
		w.Until(clean)
	}
	typeMessage(bob, "after")
	waitForRows(ada, 43)
	waitForRows(bob, 43)

	got := eval[[]string](ada, rows)
	if other := eval[[]string](bob, rows); !slices.Equal(got, other) {
		t.Errorf("the windows differ:\n%q\n%q", got, other)
	}
	checkExactlyOnce(t, got)
	ada.Until(clean + ` && document.getElementById("received").textContent === "43"`)
}

// checkExactlyOnce checks that each message is shown once, that no seq is missing,
// and that the messages of each user are in the order of sending.
func checkExactlyOnce(t *testing.T, got []string) {
	t.Helper()
	var want []string
	for _, name := range []string{"ada", "bob"} {
		for i := 1; i <= 20; i++ {
			want = append(want, fmt.Sprintf("%s %d of 20", name, i))
		}
	}
	want = append(want, "ada before", "ada while down", "bob after")
	rowOf := map[string]int{}
	for i, row := range got {
		var seq int
		var rest string
		if _, err := fmt.Sscanf(row, "%d", &seq); err != nil || seq != i+1 {
			t.Errorf("row %d is %q: a seq is missing or doubled", i+1, row)
		}
		rest = row[len(fmt.Sprint(seq))+1:]
		if _, duplicate := rowOf[rest]; duplicate {
			t.Errorf("%q is shown twice", rest)
		}
		rowOf[rest] = i
	}
	last := map[byte]int{'a': -1, 'b': -1}
	for _, w := range want {
		at, found := rowOf[w]
		if !found {
			t.Errorf("%q is lost", w)
		}
		if strings.Contains(w, " of 20") {
			if at < last[w[0]] {
				t.Errorf("%q is shown before a message that was sent earlier", w)
			}
			last[w[0]] = at
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d rows, want %d", len(got), len(want))
	}
}

func testHistoryIsLoadedByScrolling(t *testing.T, e *env) {
	first := openShared(t, e, e.server.URL()+"/#archive", "ada")
	publishMany(first, "archive", 120)

	later := openShared(t, e, e.server.URL()+"/#archive", "bob")
	later.Until(rows + `.at(-1)?.startsWith("120 ")`)
	later.Until(`document.getElementById("empty").hidden`)
	if n := eval[int](later, rows+".length"); n != 50 {
		t.Errorf("%d rows were loaded at once, want a page of 50", n)
	}
	// Scrolling up loads the rest, and the visible messages do not move.
	for _, top := range []string{"21 ", "1 "} {
		eval[bool](later, `(document.querySelector(".log").scrollTop = 0, true)`)
		later.Until(fmt.Sprintf(`%s[0].startsWith(%q) && document.querySelector(".log").scrollTop > 0`, rows, top))
	}
	waitForRows(later, 120)
	got := eval[[]string](later, rows)
	for i, row := range got {
		if want := fmt.Sprintf("%d ada number %d", i+1, i+1); row != want {
			t.Fatalf("row %d is %q, want %q", i+1, row, want)
		}
	}
}

// publishMany publishes messages through another client in the window.
func publishMany(w window, room string, count int) {
	eval[bool](w, fmt.Sprintf(`import("/client.js").then(async ({ Switchyard }) => {
		const client = Switchyard.connect();
		const texts = Array.from({ length: %d }, (_, i) => ({ name: "ada", text: "number " + (i + 1) }));
		await Promise.all(texts.map((data) => client.publish(%q, data)));
		client.close();
		return true;
	})`, count, room))
}

func testHostileContentIsShownAsText(t *testing.T, e *env) {
	w := openShared(t, e, e.server.URL()+"/#open", "eve")
	hostile := []any{
		map[string]any{"name": `<img src=x onerror="window.owned=1">`, "text": `<script>window.owned=1</script>`},
		map[string]any{"name": map[string]any{"toString": 1}, "text": []any{1}},
		`"><svg onload=window.owned=1>`,
		nil, 1.5, []any{}, map[string]any{"__proto__": map[string]any{"text": "x"}},
		map[string]any{"text": "\u202egnirts\u0000 {{7*7}} ${7*7} javascript:window.owned=1"},
	}
	for _, data := range hostile {
		encoded, err := json.Marshal(data)
		if err != nil {
			t.Fatal(err)
		}
		eval[bool](w, fmt.Sprintf(`import("/client.js").then(async ({ Switchyard }) => {
			const client = Switchyard.connect();
			await client.publish("open", JSON.parse(%q));
			client.signal("open", { wave: true, name: "<b>x</b>" });
			client.close();
			return true;
		})`, encoded))
	}
	waitForRows(w, len(hostile))
	w.Until(clean)
	if found := eval[int](w, `document.querySelectorAll(".log img, .log script, .log svg, .log b, .signals b").length`); found != 0 {
		t.Errorf("%d elements were made of hostile messages", found)
	}
	if eval[bool](w, `"owned" in window`) {
		t.Error("the script of a hostile message ran")
	}
	got := eval[[]string](w, rows)
	if want := `1 <img src=x onerror="window.owned=1"> <script>window.owned=1</script>`; got[0] != want {
		t.Errorf("shown as %q, want %q", got[0], want)
	}
}
