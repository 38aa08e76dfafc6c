package browser

import (
	"strings"
	"testing"

	"switchyard/internal/testkit"
	"switchyard/internal/testkit/chromium"
)

// The README's example for browsers works when it is pasted into the page's
// console as printed.
func testTheReadmeExampleWorks(t *testing.T, e *env) {
	readme := testkit.ReadFile(t, "../../README.md")
	_, example, ok := strings.Cut(string(readme), "```js\n")
	example, _, closed := strings.Cut(example, "```")
	if !ok || !closed {
		t.Fatal("README.md has no example for browsers")
	}
	if !strings.Contains(example, "localhost:8000") {
		t.Fatal("the example does not name the address that the first command prints")
	}
	example = strings.ReplaceAll(example, "localhost:8000", e.server.Addr)
	w := e.browser.Open(t, e.server.URL()+"/")
	got := chromium.Eval[string](w, `(async () => {
		const lines = [];
		const console = { log: (...values) => lines.push(values.map((v) => JSON.stringify(v)).join(" ")) };
		`+example+`
		for (let i = 0; i < 1250 && lines.length < 2; i++) await new Promise((r) => setTimeout(r, 20));
		return lines.join("; ");
	})()`)
	if !strings.Contains(got, `1 {"text":"hello"}`) || !strings.Contains(got, `"stored as" 1`) {
		t.Errorf("it logged %q", got)
	}
}
