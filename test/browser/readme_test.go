package browser

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"switchyard/internal/testkit"
	"switchyard/internal/testkit/chromium"
)

// readmeExample returns the README's example for browsers as printed.
func readmeExample(t *testing.T) string {
	t.Helper()
	readme := testkit.ReadFile(t, "../../README.md")
	_, example, ok := strings.Cut(string(readme), "```js\n")
	example, _, closed := strings.Cut(example, "```")
	if !ok || !closed {
		t.Fatal("README.md has no example for browsers")
	}
	return example
}

// The README's example for browsers works when it is pasted into the page's console as
// printed, by whichever name of this machine the page was opened. The service listens
// on all addresses, as the README's first command does.
func testTheReadmeExampleWorks(t *testing.T, e *env) {
	port := testkit.FreePort()
	server, err := testkit.Start(testkit.Program{Path: testkit.BuildServer(t), Env: []string{
		fmt.Sprintf("LISTEN_ADDR=:%d", port), fmt.Sprintf("ADMIN_ADDR=127.0.0.1:%d", testkit.FreePort()),
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Stop(syscall.SIGKILL, testkit.Timeout) })
	if err := server.WaitOutput(testkit.Within(t, testkit.Timeout), "serving"); err != nil {
		t.Fatal(err)
	}
	example := readmeExample(t)
	for i, name := range []string{"localhost", "127.0.0.1", "[::1]"} {
		page := fmt.Sprintf("http://%s:%d/", name, port)
		if i == 0 && !strings.Contains(string(testkit.ReadFile(t, "../../README.md")), "<http://localhost:8000/>") {
			t.Fatal("README.md does not name the address that the first command prints")
		}
		want := []string{fmt.Sprintf(`%d {"text":"hello"}`, i+1), fmt.Sprintf(`"stored as" %d`, i+1)}
		got := chromium.Eval[[]string](e.browser.Open(t, page), `(async () => {
			const lines = [];
			const console = { log: (...values) => lines.push(values.map((v) => JSON.stringify(v)).join(" ")) };
			`+example+`
			for (let i = 0; i < 1250 && lines.length < `+fmt.Sprint(i+2)+`; i++) await new Promise((r) => setTimeout(r, 20));
			client.close();
			return lines;
		})()`)
		if !slices.Contains(got, want[0]) || !slices.Contains(got, want[1]) {
			t.Errorf("on %s it logged %q, want %q too", page, got, want)
		}
	}
}
