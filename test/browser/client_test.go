package browser

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"testing"

	"switchyard/internal/testkit"
	"switchyard/test/behaviors"
)

// The modules of test/node run in Chromium, where client.js is used.
func testClientModules(t *testing.T, e *env) {
	server := httptest.NewServer(repository())
	defer server.Close()
	for _, module := range []string{"behaviors", "golden", "reconnecting", "requests", "arguments", "alive", "reachable", "kept_session", "listeners", "unhandled", "observer", "presence_list", "move_model"} {
		t.Run(module, func(t *testing.T) {
			window := e.open(t, server.URL+"/")
			type result struct{ Name, Error string }
			results := eval[[]result](window, `import("/test/node/`+module+`.mjs").then((m) => m.run())`)
			if len(results) < 5 {
				t.Fatalf("%d tests ran, want 5 or more", len(results))
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

// checkNames checks that every behavior of the list ran.
func checkNames(t *testing.T, ran []string) {
	t.Helper()
	names, err := behaviors.Names()
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(ran)
	if !slices.Equal(ran, names) {
		t.Errorf("Chromium ran the behaviors %q\nthe list has %q", ran, names)
	}
}

// repository serves the folders that the modules import, under their paths.
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

// During a deploy the files of two releases are served. The page and the client work,
// although the other release exports something else.
func testFilesOfTwoReleasesAreNotMixed(t *testing.T, e *env) {
	target, err := url.Parse(e.server.URL())
	if err != nil {
		t.Fatal(err)
	}
	forward := httputil.NewSingleHostReverseProxy(target)
	both := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if name := r.URL.Path; strings.HasSuffix(name, ".js") && name != "/client.js" && name != "/page.js" {
			w.Header().Set("Content-Type", "text/javascript")
			_, _ = w.Write([]byte("export const ofAnotherRelease = true;"))
			return
		}
		forward.ServeHTTP(w, r)
	}))
	defer both.Close()
	w := openPage(t, e.browser, both.URL+"/#mixed", "ada")
	typeMessage(w, "hello")
	waitForRows(w, 1)
	names := eval[string](w, `import("/client.js").then((m) => Object.keys(m).join(" "))`)
	if names != "Switchyard SwitchyardError afterClose" {
		t.Errorf("client.js exports %q", names)
	}
}

// When an operator lowers ID_WINDOW, clients resend for a shorter time.
func testTheWelcomeHasTheIDWindow(t *testing.T, e *env) {
	server := testkit.StartServer(t, map[string]string{"ID_WINDOW": "2m"})
	w := openShared(t, e, server.URL()+"/", "ada")
	idWindow := eval[int](w, `import("/client.js").then(({ Switchyard }) => new Promise((resolve) => {
		const client = Switchyard.connect();
		client.on("state", ({ welcome }) => { if (welcome) { client.close(); resolve(welcome.id_window_ms); } });
	}))`)
	if idWindow != 120_000 {
		t.Errorf("the welcome has id_window_ms %d, want 120000", idWindow)
	}
}

// A page that publishes six hundred messages at once, at default limits, finds them
// stored in the order of its calls.
func testPublishesAtOnceKeepTheirOrder(t *testing.T, e *env) {
	w := openShared(t, e, e.server.URL()+"/", "ada")
	inOrder := eval[string](w, `import("/client.js").then(async ({ Switchyard }) => {
		const client = Switchyard.connect();
		const refused = [];
		client.on("frame", (f) => { if (f.type === "error") refused.push(f.code); });
		const acks = await Promise.all(Array.from({ length: 600 }, (_, n) => client.publish("at-once", n)));
		client.close();
		const misplaced = acks.findIndex(({ seq }, n) => seq !== n + 1);
		return misplaced < 0 && refused.length === 0 ? "in order" : "call " + misplaced + " is misplaced; refused: " + refused;
	})`)
	if inOrder != "in order" {
		t.Error(inOrder)
	}
}
