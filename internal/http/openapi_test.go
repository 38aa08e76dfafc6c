package http

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/go-chi/chi/v5"

	"switchyard/internal/message"
)

// operations returns "METHOD /route" of each operation of the document, with one
// for each file.
func operations(d *document) []string {
	var found []string
	for route := range d.object("paths") {
		for method := range d.object("paths", route) {
			if method == "parameters" {
				continue
			}
			if route != "/{file}" {
				found = append(found, strings.ToUpper(method)+" "+route)
				continue
			}
			for _, name := range fileNames(d) {
				found = append(found, strings.ToUpper(method)+" /"+name)
			}
		}
	}
	slices.Sort(found)
	return found
}

func fileNames(d *document) []string {
	parameters, _ := d.at("paths", "/{file}", "get", "parameters")
	var names []string
	for _, v := range parameters.([]any)[0].(map[string]any)["schema"].(map[string]any)["enum"].([]any) {
		names = append(names, v.(string))
	}
	return names
}

func TestRoutesMatchOpenAPI(t *testing.T) {
	n := startNode(t, nil)
	var served []string
	err := chi.Walk(n.Handler().(chi.Routes), func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		served = append(served, method+" "+route)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(served)
	if documented := operations(readDocument(t, "openapi.yaml")); !slices.Equal(served, documented) {
		t.Errorf("served:\n%s\ndocumented:\n%s", strings.Join(served, "\n"), strings.Join(documented, "\n"))
	}
}

// An exchange is one call of a documented operation.
type exchange struct {
	method, route, path, body string
	header                    http.Header
	failure                   error // of the log
	status                    int
}

func upgradeHeader(more ...string) http.Header {
	h := http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="}}
	for i := 0; i < len(more); i += 2 {
		h.Set(more[i], more[i+1])
	}
	return h
}

// everyCall returns one call of each operation, for answers that do not depend on
// the request.
func everyCall() (all []exchange) {
	for _, operation := range []string{
		"POST /v1/rooms/{room}/messages", "GET /v1/rooms/{room}/messages", "OPTIONS /v1/rooms/{room}/messages", "POST /v1/messages", "POST /v1/rooms/{room}/signals",
		"GET /v1/rooms", "GET /v1/rooms/{room}/presence", "POST /v1/users/{user}/disconnect", "GET /", "GET /{file}", "GET /ws", "GET /healthz", "GET /readyz", "GET /metrics",
	} {
		method, route, _ := strings.Cut(operation, " ")
		path := strings.NewReplacer("{room}", "a", "{user}", "ann", "{file}", "client.js").Replace(route)
		all = append(all, exchange{method: method, route: route, path: path})
	}
	return all
}

func exchanges() []exchange {
	const one, batch, sig, list = "/v1/rooms/{room}/messages", "/v1/messages", "/v1/rooms/{room}/signals", "/v1/rooms"
	const a, s = "/v1/rooms/a/messages", "/v1/rooms/a/signals"
	const presence = "/v1/rooms/{room}/presence"
	const removal, ann = "/v1/users/{user}/disconnect", "/v1/users/ann/disconnect"
	gzip := http.Header{"Content-Encoding": {"gzip"}}
	nobody := http.Header{"Authorization": {"Bearer nobody"}}
	planted := errors.New("planted")
	long := `"` + strings.Repeat("x", 70000) + `"`
	all := []exchange{
		{"POST", one, a, `{"data":{"x":1},"id":"k1"}`, nil, nil, 201},
		{"POST", one, a, `{"data":{"x":1},"id":"k1"}`, nil, nil, 200},
		{"POST", one, a, `{"data":2,"id":"k1"}`, nil, nil, 409},
		{"POST", one, a, `{"data":"` + long[1:] + `}`, nil, nil, 413},
		{"POST", one, a, `{"data":1,"id":"a b"}`, nil, nil, 400},
		{"POST", one, a, `{"data":1,"new":"field"}`, http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}, nil, 201},
		{"POST", batch, batch, `[{"room":"a","data":1,"id":"b1"},{"room":"b","data":null}]`, nil, nil, 201},
		{"POST", batch, batch, `[{"room":"a","data":1,"id":"b1"}]`, nil, nil, 200},
		{"POST", batch, batch, `[{"room":"a","data":2,"id":"b1"}]`, nil, nil, 409},
		{"POST", batch, batch, `[{"room":"a","data":` + long + `}]`, nil, nil, 413},
		{"POST", batch, batch, `[{"room":"_x","data":1}]`, nil, nil, 403},
		{"POST", batch, batch, `[{"room":"a"}]`, nil, nil, 400},
		{"POST", batch, batch, `[]`, nil, nil, 400},
		{"POST", sig, s, `{"data":[]}`, nil, nil, 202},
		{"POST", sig, s, `{"data":` + long + `}`, nil, nil, 413},
		{"POST", sig, s, `{}`, nil, nil, 400},
		{"GET", one, a, "", nil, nil, 200},
		{"GET", one, a + "?after=0&limit=1", "", nil, nil, 200},
		{"GET", one, a + "?before=9", "", nil, nil, 200},
		{"GET", one, "/v1/rooms/empty/messages", "", nil, nil, 200},
		{"GET", one, a + "?limit=0", "", nil, nil, 400},
		{"OPTIONS", one, a, "", http.Header{"Origin": {"https://app.example"}}, nil, 204},
		{"OPTIONS", one, a, "", http.Header{"Origin": {"https://evil.example"}}, nil, 403},
		{"GET", one, a, "", nil, planted, 503},
		{"GET", one, a, "", nil, errPanic, 500},
		{"GET", list, list, "", nil, nil, 200},
		{"GET", list, list + "?prefix=a&after=a&limit=1", "", nil, nil, 200},
		{"GET", list, list + "?prefix=%20", "", nil, nil, 400},
		{"GET", list, list + "?prefix=_x", "", nil, nil, 403},
		{"GET", list, list, "", nil, planted, 503},
		{"GET", list, list, "", nil, errPanic, 500},
		{"GET", list, list, "", nobody, nil, 401},
		{"GET", presence, "/v1/rooms/a/presence", "", nil, nil, 200},
		{"GET", presence, "/v1/rooms/a/presence", "", nil, planted, 503},
		{"GET", presence, "/v1/rooms/a/presence", "", nil, errPanic, 500},
		{"GET", presence, "/v1/rooms/a/presence", "", nobody, nil, 401},
		{"GET", presence, "/v1/rooms/_x/presence", "", nil, nil, 403},
		{"GET", presence, "/v1/rooms/a%20b/presence", "", nil, nil, 400},
		{"GET", one, a, "", nobody, nil, 401},
		{"GET", one, "/v1/rooms/_x/messages", "", nil, nil, 403},
		{"POST", removal, ann, `{"for":"10s"}`, nil, nil, 200},
		{"POST", removal, ann, "", nil, nil, 200},
		{"POST", removal, ann, `{"for":"10"}`, nil, nil, 400},
		{"POST", removal, ann, `{"for":"` + long + `"}`, nil, nil, 413},
		{"POST", removal, ann, `{}`, gzip, nil, 415},
		{"POST", removal, ann, `{}`, nobody, nil, 401},
		{"GET", "/healthz", "/healthz", "", nil, nil, 200},
		{"GET", "/readyz", "/readyz", "", nil, nil, 200},
		{"GET", "/metrics", "/metrics", "", nil, nil, 200},
		{"GET", "/metrics", "/metrics", "", http.Header{"X-Forwarded-For": {"10.0.0.1"}}, nil, 404},
		{"GET", "/", "/", "", nil, nil, 200},
		{"GET", "/ws", "/ws", "", upgradeHeader(), nil, 101},
		{"GET", "/ws", "/ws", "", upgradeHeader("Sec-Websocket-Version", "12"), nil, 400},
		{"GET", "/ws", "/ws", "", upgradeHeader("Origin", "https://evil.example"), nil, 403},
		{"GET", "/ws", "/ws", "", nil, nil, 426},
	}
	for _, e := range everyCall() {
		e.header, e.status = http.Header{"Host": {"evil.example"}}, http.StatusMisdirectedRequest
		all = append(all, e)
	}
	for _, call := range []exchange{{route: one, path: a}, {route: batch, path: batch}, {route: sig, path: s}} {
		reserved := strings.Replace(call.path, "/a/", "/_x/", 1)
		all = append(all,
			exchange{"POST", call.route, call.path, `nonsense`, nil, nil, 400},
			exchange{"POST", call.route, call.path, `{"data":1}`, gzip, nil, 415},
			exchange{"POST", call.route, call.path, `{"data":1}`, nobody, nil, 401})
		if reserved != call.path {
			all = append(all, exchange{"POST", call.route, reserved, `{"data":1}`, nil, nil, 403})
		}
		if call.route == sig {
			continue // does not use the log
		}
		body := `{"data":1}`
		if call.route == batch {
			body = `[{"room":"a","data":1}]`
		}
		all = append(all,
			exchange{"POST", call.route, call.path, body, nil, message.ErrUnavailable, 503},
			exchange{"POST", call.route, call.path, body, nil, message.ErrRejected, 500})
	}
	return all
}

// Every operation is called, every status of it is met, and every answer is
// validated against the document. The service accepts exactly the bodies that the
// document accepts.
func TestEveryAnswerMatchesOpenAPI(t *testing.T) {
	n := startNode(t, func(c *Config) {
		c.AllowedHosts, c.AllowedOrigins = []string{"127.0.0.1"}, []string{"https://app.example"}
	})
	d := readDocument(t, "openapi.yaml")
	met, codes, used := map[string]bool{}, map[string]bool{}, map[string]bool{}
	do := func(n *node, e exchange) {
		t.Helper()
		n.log.failure.Store(nil)
		if e.failure != nil {
			n.log.setFailure(e.failure)
		}
		header := http.Header{"Authorization": {"Bearer " + testKey}}
		maps.Copy(header, e.header)
		res, body := n.request(e.method, e.path, header, strings.NewReader(e.body))
		name := fmt.Sprintf("%s %s %d", e.method, e.route, res.StatusCode)
		if res.StatusCode != e.status {
			t.Errorf("%s %s %.40q: %d, want %d: %s", e.method, e.path, e.body, res.StatusCode, e.status, body)
		}
		if err := d.checkAnswer(res, body, e.route, e.method); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		met[name] = true
		var p problem
		if res.StatusCode >= http.StatusBadRequest && json.Unmarshal([]byte(body), &p) == nil && p.Code != "" {
			codes[p.Code] = true
		}
		for key := range res.Request.URL.Query() {
			used[e.method+" "+e.route+" "+key] = true
		}
		fits := d.checkText(e.body, "paths", e.route, strings.ToLower(e.method), "requestBody", "content", "application/json", "schema")
		if sent := e.method == "POST" && e.body != ""; sent && (fits == nil) != (p.Code != "malformed" && p.Code != "invalid" && p.Code != "forbidden") &&
			res.StatusCode < 401 {
			t.Errorf("%s with %.60q: the document says %v", name, e.body, fits)
		}
	}
	for _, e := range exchanges() {
		do(n, e)
	}
	for _, name := range fileNames(d) {
		do(n, exchange{"GET", "/{file}", "/" + name, "", nil, nil, 200})
	}
	for path, code := range map[string]string{"GET /none": codeNotFound, "PATCH /healthz": codeMethod} {
		method, path, _ := strings.Cut(path, " ")
		_, body := n.call(method, path, "", "")
		if err := d.checkText(body, "components", "schemas", "Problem"); err != nil || !strings.Contains(body, code) {
			t.Errorf("%s: %s: %v", path, body, err)
		}
		codes[code] = true
	}
	limited := startNode(t, func(c *Config) { c.Rates.API, c.now = 1, new(manualClock).now })
	for range 2 {
		limited.call("GET", "/v1/rooms", testKey, "")
	}
	for _, e := range everyCall() {
		if strings.HasPrefix(e.route, "/v1/") && e.method != http.MethodOptions { // a preflight has no key
			e.status = http.StatusTooManyRequests
			do(limited, e)
		}
	}
	rejecting := startKeyedNode(t, "", func(c *Config) {
		r := &faultyBans{Bans: c.Bans}
		r.unavailable.Store(true)
		c.Bans, c.maxRejecting = r, fewRejecting
	})
	do(rejecting, exchange{"POST", "/v1/users/{user}/disconnect", "/v1/users/ann/disconnect", "", nil, nil, 202})
	for range fewRejecting {
		rejecting.rawHandshake("", "Authorization: Bearer x") // reads nothing, so that its close waits
	}
	do(rejecting, exchange{"GET", "/ws", "/ws", "", upgradeHeader("Authorization", "Bearer x"), nil, 401})
	n.Stop()
	do(n, exchange{"GET", "/readyz", "/readyz", "", nil, nil, 503})
	do(n, exchange{"GET", "/ws", "/ws", "", upgradeHeader(), nil, 503})
	reportUnmet(t, d, met, used, codes)
}

// reportUnmet reports what is documented and was not met.
func reportUnmet(t *testing.T, d *document, met, used, codes map[string]bool) {
	t.Helper()
	for route := range d.object("paths") {
		for method := range d.object("paths", route) {
			for status := range d.object("paths", route, method, "responses") {
				if name := strings.ToUpper(method) + " " + route + " " + status; !met[name] {
					t.Errorf("%s is documented and was not answered", name)
				}
			}
			parameters, _ := d.at("paths", route, method, "parameters")
			list, _ := parameters.([]any)
			for _, p := range list {
				p := p.(map[string]any)
				if name := fmt.Sprint(strings.ToUpper(method), " ", route, " ", p["name"]); p["in"] == "query" && !used[name] {
					t.Errorf("the parameter %s was not used", name)
				}
			}
		}
	}
	documented := d.strings("components", "schemas", "Problem", "properties", "code", "enum")
	slices.Sort(documented)
	if got := slices.Sorted(maps.Keys(codes)); !slices.Equal(got, documented) {
		t.Errorf("codes answered %v, documented %v", got, documented)
	}
}
