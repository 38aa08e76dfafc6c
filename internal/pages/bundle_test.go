package pages

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/fstest"
)

// During a deploy both releases answer: a page that loads its modules one by one gets
// some of each.
func TestTheClientAndThePageAreOneFileEach(t *testing.T) {
	all := Handlers(false)
	for path, exports := range map[string]string{"/client.js": "export const { SwitchyardError, afterClose, Switchyard } = $client;", "/page.js": ""} {
		w := httptest.NewRecorder()
		all[path](w, httptest.NewRequest(http.MethodGet, path, nil))
		body := w.Body.String()
		if strings.Contains(body, "\nimport ") || strings.Count(body, "\nexport ") > 1 || !strings.HasSuffix(strings.TrimSpace(body), exports) {
			t.Errorf("%s imports another file, or does not export %q", path, exports)
		}
	}
}

func TestABundleRefusesWhatItDoesNotKnow(t *testing.T) {
	for _, line := range []string{
		`import * as a from "./a.js";`, `import a from "./a.js";`, `import "./a.js";`, `import { a as b } from "./a.js";`, `import { a } from "https://host/a.js";`,
		`export default 1;`, `export * from "./a.js";`, `export { a as b };`, `export { a } from "./a.js";`, `export let a = 1;`,
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s was taken", line)
				}
			}()
			bundled(fstest.MapFS{"b.js": {Data: []byte(line + "\n")}, "a.js": {Data: []byte("export const a = 1;\n")}}, "b.js")
		}()
	}
}
