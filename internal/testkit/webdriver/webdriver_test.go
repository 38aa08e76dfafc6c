package webdriver_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"switchyard/internal/testkit"
	"switchyard/internal/testkit/webdriver"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// Each browser shows a page, evaluates in each of its tabs, and types.
func TestEachBrowserShowsAPage(t *testing.T) {
	pages := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", "default-src 'none'")
		_, _ = w.Write([]byte("<!doctype html><title>" + r.URL.Path + "</title><input autofocus>"))
	}))
	defer pages.Close()
	for name, start := range map[string]func(testing.TB) *webdriver.Browser{
		"Firefox": webdriver.StartFirefox, "WebKit": webdriver.StartWebKit,
	} {
		t.Run(name, func(t *testing.T) {
			browser := start(t)
			first := browser.Open(t, pages.URL+"/first")
			second := browser.Open(t, pages.URL+"/second")
			first.Evaluate(`(sessionStorage.tab = "first", window.mark = 1)`, nil)
			first.Evaluate(`document.querySelector("input").focus()`, nil)
			first.Type("a b\r")
			first.Until(`document.querySelector("input").value === "a b"`)
			var got []any
			second.Evaluate(`new Promise((done) => setTimeout(done, 1, [document.title, sessionStorage.tab ?? null, window.mark ?? 0]))`, &got)
			if len(got) != 3 || got[0] != "/second" || got[1] != nil || got[2] != 0.0 {
				t.Errorf("the second tab has %v", got)
			}
		})
	}
}
