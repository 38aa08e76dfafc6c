package browser

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"switchyard/internal/testkit"
	"switchyard/internal/testkit/chromium"
	"switchyard/test/behaviors"
)

// What the client promises, told one by one: the tests are those of test/node,
// and run here where the client does.
func TestClientModulesInChromium(t *testing.T) {
	server := httptest.NewServer(repository())
	defer server.Close()
	browser := chromium.Start(t)

	for _, module := range []string{"behaviors", "golden", "returning", "keeping", "witness", "people", "fleet"} {
		t.Run(module, func(t *testing.T) {
			window := browser.Open(t, server.URL+"/")
			type result struct{ Name, Error string }
			results := chromium.Eval[[]result](window, `import("/test/node/`+module+`.mjs").then((m) => m.run())`)
			if len(results) < 5 {
				t.Fatalf("%d tests ran: the module is not what it was", len(results))
			}
			var ran []string
			for _, r := range results {
				ran = append(ran, r.Name)
				t.Run(r.Name, func(t *testing.T) {
					if r.Error != "" {
						t.Error(r.Error)
					}
				})
			}
			if module == "behaviors" {
				checkNames(t, ran)
			}
		})
	}
}

func checkNames(t *testing.T, ran []string) {
	t.Helper()
	names, err := behaviors.Names()
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(ran)
	if !slices.Equal(ran, names) {
		t.Errorf("Chromium ran %q\nthe list has %q", ran, names)
	}
}

// repository serves what the tests import, each file where it lies.
func repository() http.Handler {
	files := http.NewServeMux()
	for _, folder := range []string{"web", "test/node", "test/behaviors", "internal/protocol/testdata"} {
		files.Handle("/"+folder+"/", http.StripPrefix("/"+folder+"/", http.FileServer(http.Dir("../../"+folder))))
	}
	files.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = w.Write([]byte("<!doctype html><title>tests</title><link rel=icon href=/web/icon.svg>"))
	})
	return files
}

// An operator who lowers ID_WINDOW shortens what clients resend for.
func TestTheWelcomeHasTheIDWindow(t *testing.T) {
	server := testkit.StartServer(t, map[string]string{"ID_WINDOW": "2m"})
	w := openPage(t, chromium.Start(t), server.URL()+"/", "ada")
	idWindow := chromium.Eval[int](w, `import("/client.js").then(({ Switchyard }) => new Promise((resolve) => {
		const client = Switchyard.connect();
		client.on("state", ({ welcome }) => { if (welcome) { client.close(); resolve(welcome.id_window_ms); } });
	}))`)
	if idWindow != 120_000 {
		t.Errorf("welcome tells %d ms", idWindow)
	}
}
