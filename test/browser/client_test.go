package browser

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"switchyard/internal/testkit"
	"switchyard/web"
)

// What the client promises, told one by one: the tests are JavaScript and run
// where the client does, with sockets and a clock that they hold themselves.
func TestClientHabits(t *testing.T) {
	files := http.NewServeMux()
	files.Handle("/", http.FileServerFS(web.Files))
	files.Handle("/test/", http.StripPrefix("/test/", http.FileServer(http.Dir("testdata"))))
	files.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = w.Write([]byte("<!doctype html><title>tests</title><link rel=icon href=/icon.svg>"))
	})
	server := httptest.NewServer(files)
	defer server.Close()
	browser := testkit.StartBrowser(t)

	for _, module := range []string{"return_test.js", "rooms_test.js", "check_test.js"} {
		t.Run(module, func(t *testing.T) {
			window := browser.Open(t, server.URL+"/")
			type result struct{ Name, Error string }
			results := testkit.Eval[[]result](window, `import("/test/`+module+`").then((m) => m.run())`)
			if len(results) < 5 {
				t.Fatalf("%d tests ran: the module is not what it was", len(results))
			}
			for _, r := range results {
				t.Run(r.Name, func(t *testing.T) {
					if r.Error != "" {
						t.Error(r.Error)
					}
				})
			}
		})
	}
}
