package browser

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"switchyard/internal/client"
	"switchyard/internal/message"
	"switchyard/internal/testkit"
	"switchyard/internal/testkit/chromium"
)

// recordInterruptions starts to record changes that a user would notice as an
// interruption: the states of the connection, the number of people in the room,
// and the longest time in ms without a new row.
const recordInterruptions = `(() => {
	const seen = window.seen = { states: [], people: [], pause: 0 };
	const add = (list, now) => { if (list.at(-1) !== now) list.push(now); };
	const state = document.getElementById("state"), here = document.getElementById("here");
	const record = () => { add(seen.states, document.body.dataset.state + " " + state.textContent); add(seen.people, here.textContent); };
	record();
	const all = { subtree: true, childList: true, characterData: true, attributes: true };
	for (const element of [document.querySelector(".status"), here]) new MutationObserver(record).observe(element, all);
	new MutationObserver(record).observe(document.body, { attributes: true });
	let last = performance.now();
	new MutationObserver(() => {
		const now = performance.now();
		seen.pause = Math.max(seen.pause, now - last);
		last = now;
	}).observe(document.querySelector(".log:not([hidden]) .rows"), { childList: true });
	return true;
})()`

type interruptions struct {
	States, People []string
	Pause          float64
}

// servedBy returns what the header shows of the server: color, node, deployment.
const servedBy = `["color", "node", "deployment"].map((id) => document.getElementById(id).innerText.toLowerCase()).join(" ")`

// A publisher publishes increasing numbers from a Go client, which moves like the
// windows.
type publisher struct {
	*client.Client
	stop  context.CancelFunc
	ended chan struct{}
	acked int   // with err, once ended
	err   error // the first publish that was not acked
}

func startPublisher(t *testing.T, url, room string) *publisher {
	t.Helper()
	c, err := client.Dial(t.Context(), client.Options{URLs: []string{url}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	p := &publisher{Client: c, stop: stop, ended: make(chan struct{})}
	t.Cleanup(func() { // after a failure the publisher still runs
		stop()
		c.Close()
		<-p.ended
	})
	go p.publishLoop(ctx, message.Room(room))
	return p
}

func (p *publisher) publishLoop(ctx context.Context, room message.Room) {
	defer close(p.ended)
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		data := fmt.Appendf(nil, `{"name":"publisher","text":"%d"}`, p.acked+1)
		if _, p.err = p.Publish(context.WithoutCancel(ctx), room, data, ""); p.err != nil {
			return
		}
		p.acked++
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// finish stops the publisher and returns the number of messages, all of them acked.
func (p *publisher) finish(t *testing.T) int {
	t.Helper()
	p.stop()
	<-p.ended
	if p.err != nil {
		t.Errorf("publish %d: %v", p.acked+1, p.err)
	}
	return p.acked
}

// A deploy during a chat in two windows: the address leads to the new color, the
// old color drains and then ends. The users see that the color changes, and no
// interruption.
func testThePageFollowsAMove(t *testing.T, e *env) {
	shared := map[string]string{
		"DATABASE_URL": testkit.Postgres(t).URL(), "REDIS_URL": testkit.Redis(t).URL(), "DRAIN_WINDOW": "2s", "DRAIN_TIMEOUT": "60s",
	}
	blue := startColor(t, shared, "blue", "d1")
	green := startColor(t, shared, "green", "d2")
	address := testkit.NewProxy(t, blue.Addr)
	url := "http://" + address.Addr() + "/#platform-4"
	ada, bob := openPage(t, e.browser, url, "ada"), openPage(t, e.browser, url, "bob")
	windows := []*chromium.Window{ada, bob}
	typeMessage(ada, "on blue")
	typeMessage(bob, "on blue, too")
	p := startPublisher(t, "ws://"+address.Addr()+"/ws", "platform-4")
	for _, w := range windows {
		waitForRows(w, 5)
		w.Until(`document.getElementById("here").textContent === "2 here"`)
		w.Until(servedBy + `.startsWith("blue ") && ` + servedBy + `.endsWith(" d1")`)
		chromium.Eval[bool](w, recordInterruptions)
	}
	node := chromium.Eval[string](ada, `document.getElementById("node").textContent`)

	address.Retarget(green.Addr)
	drain(t, blue)
	typeMessage(ada, "moving")
	for _, w := range windows {
		w.Until(servedBy + `.startsWith("green ") && ` + servedBy + `.endsWith(" d2")`)
		w.Until(showsMove)
	}
	if now := chromium.Eval[string](ada, `document.getElementById("node").textContent`); now == node {
		t.Errorf("the header still shows node %s", now)
	}
	typeMessage(bob, "on green")
	p.waitForMore(t, ada)
	if err := blue.Stop(); err != nil {
		t.Errorf("blue ended with %v", err)
	}
	typeMessage(ada, "blue is gone")
	p.waitForMore(t, bob)
	total := p.finish(t) + 5
	var first []string
	for _, w := range windows {
		waitForRows(w, total)
		got := chromium.Eval[[]string](w, rows)
		if first == nil {
			first = got
			checkOrder(t, got, total)
		} else if !slices.Equal(got, first) {
			t.Errorf("the windows differ:\n%q\n%q", first, got)
		}
		w.Until(clean + ` && document.getElementById("received").textContent === "` + fmt.Sprint(total) + `"`)
		w.Until(`document.getElementById("f-moves").textContent === "once" && document.getElementById("f-returns").textContent === "0 times"`)
		saw := chromium.Eval[interruptions](w, "window.seen")
		if !slices.Equal(saw.States, []string{"live Live"}) {
			t.Errorf("the page showed the states %q, want live all the time", saw.States)
		}
		// When Redis does not answer within the half second of a handshake, the node
		// logs that and starts a new session, which is one more in the room until the
		// old one has expired.
		if !slices.Equal(saw.People, []string{"2 here"}) && !strings.Contains(green.Output(), "session not resumed") {
			t.Errorf("the page showed %q in the room, want 2 all the time\n%s", saw.People, green.Output())
		}
		w.Until(showsPeople("2 here", "this window, 1 guest"))
		t.Logf("%s; the longest time without a new row was %.0f ms", chromium.Eval[string](w, noteTexts+`.join()`), saw.Pause)
	}
	checkContrast(t, bob)
}

// noteTexts returns the notes in the open log, and showsMove reports whether the only
// one names the node in the header.
const (
	noteTexts = `[...document.querySelectorAll(".log:not([hidden]) .note .body")].map((n) => n.textContent)`
	showsMove = noteTexts + `.length === 1 && new RegExp("^moved to node " + document.getElementById("node").textContent + " in \\d+ ms$").test(` + noteTexts + `[0])`
)

func startColor(t *testing.T, shared map[string]string, color, deployment string) *testkit.Server {
	t.Helper()
	env := map[string]string{"COLOR": color, "DEPLOYMENT": deployment, "LOG_LEVEL": "debug"}
	for name, value := range shared {
		env[name] = value
	}
	return testkit.StartServer(t, env)
}

// drain starts a drain, as the deploy command does on the old color.
func drain(t *testing.T, s *testkit.Server) {
	t.Helper()
	res, _ := testkit.Call(t, http.MethodPost, "http://"+s.Admin+"/drain?scope=deployment&reason=deploy", "", "")
	if res.StatusCode != http.StatusAccepted {
		t.Fatalf("drain: %s", res.Status)
	}
}

// waitForMore waits until a window shows 20 more messages.
func (p *publisher) waitForMore(t *testing.T, w *chromium.Window) {
	t.Helper()
	shown := chromium.Eval[int](w, rows+".length")
	waitForRows(w, shown+20)
}

// checkOrder checks that every seq is shown once, and the messages of the publisher
// and of each window in the order of sending.
func checkOrder(t *testing.T, got []string, total int) {
	t.Helper()
	if len(got) != total {
		t.Errorf("%d rows, want %d", len(got), total)
	}
	var people []string
	next := 1
	for i, row := range got {
		seq, rest, _ := strings.Cut(row, " ")
		if seq != fmt.Sprint(i+1) {
			t.Fatalf("row %d is %q: a seq is missing or doubled", i+1, row)
		}
		if number, ok := strings.CutPrefix(rest, "publisher "); !ok {
			people = append(people, rest)
		} else if number != fmt.Sprint(next) {
			t.Fatalf("row %d is %q, want the publisher's %d", i+1, row, next)
		} else {
			next++
		}
	}
	want := []string{"ada on blue", "ada moving", "ada blue is gone", "bob on blue, too", "bob on green"}
	if slices.SortStableFunc(people, func(a, b string) int { return strings.Compare(a[:3], b[:3]) }); !slices.Equal(people, want) {
		t.Errorf("the windows' messages are %q, want %q", people, want)
	}
}

// checkContrast checks that the page is readable in both color schemes after the
// move, and saves screenshots.
func checkContrast(t *testing.T, w *chromium.Window) {
	t.Helper()
	for _, width := range []int64{1280, 800, 360} {
		for _, scheme := range []string{"light", "dark"} {
			w.Resize(width, 640)
			w.SetColorScheme(scheme)
			if lowContrast := chromium.Eval[[]string](w, lowContrastElements); len(lowContrast) > 0 {
				t.Errorf("after the move, %s, %d pixels wide: contrast under 4.5 to 1 (WCAG 2.2 AA): %v", scheme, width, lowContrast)
			}
			if over := chromium.Eval[int64](w, `document.documentElement.scrollWidth`); over > width {
				t.Errorf("after the move, %s: the page is %d pixels wide, not %d", scheme, over, width)
			}
			chromium.Eval[bool](w, `(document.querySelector(".note").scrollIntoView({ block: "center" }), true)`) // it returns a promise in newer Chromium
			takeScreenshot(w, fmt.Sprintf("moved-%s-%d", scheme, width))
		}
	}
}
