package http

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"switchyard/internal/testkit"
)

func TestABackendPublishesAndBrowsersSeeIt(t *testing.T) {
	n := startNode(t, nil)
	b := n.dial(nil)
	b.send(`{"type":"join","room":"orders:7"}`)
	b.until("joined")
	res, body := n.call("POST", "/v1/rooms/orders:7/messages", testKey, `{"data":{"total":1},"id":"k1"}`)
	if res.StatusCode != http.StatusCreated || !strings.Contains(body, `"seq":1`) {
		t.Fatalf("publish: %d %s", res.StatusCode, body)
	}
	if got := b.until("message"); got["from"] != "api:backend" || got["id"] != "k1" {
		t.Errorf("message: %v", got)
	}
	res, body = n.call("POST", "/v1/rooms/orders:7/messages", testKey, `{"data":{"total":1},"id":"k1"}`)
	if res.StatusCode != http.StatusOK || !strings.Contains(body, `"duplicate":true`) {
		t.Errorf("the same again: %d %s", res.StatusCode, body)
	}
	// The id belongs to the key that used it: another backend has its own.
	res, _ = n.call("POST", "/v1/rooms/orders%3A7/messages", testKey+"2", `{"data":2,"id":"k1"}`)
	if res.StatusCode != http.StatusCreated {
		t.Errorf("another key, same id: %d", res.StatusCode)
	}
}

// A backend whose HTTP client sends Idempotency-Key repeats a publish, and it is
// stored once. The header has the bounds of an id, and never contradicts the body.
func TestTheHeaderIdempotencyKeyIsTheID(t *testing.T) {
	n := startNode(t, nil)
	for _, tt := range []struct {
		path, body string
		keys       []string
		status     int
		says       string
	}{
		{"/v1/rooms/a/messages", `{"data":1}`, []string{"c5ff-1"}, 201, `"id":"c5ff-1"`},
		{"/v1/rooms/a/messages", `{"data":1}`, []string{"c5ff-1"}, 200, `"duplicate":true`},
		{"/v1/rooms/a/messages", `{"data":1}`, []string{`"c5ff-1"`}, 200, `"duplicate":true`},
		{"/v1/rooms/a/messages", `{"data":1,"id":"c5ff-1"}`, []string{"c5ff-1"}, 200, `"duplicate":true`},
		{"/v1/rooms/a/messages", `{"data":1,"id":null}`, []string{"c5ff-1"}, 200, `"duplicate":true`},
		{"/v1/rooms/a/messages", `{"data":1,"id":"c5ff-1"}`, nil, 200, `"duplicate":true`},
		{"/v1/rooms/a/messages", `{"data":2}`, []string{"c5ff-1"}, 409, "other data"},
		{"/v1/rooms/a/messages", `{"data":1,"id":"c5ff-2"}`, []string{"c5ff-1"}, 400, "Idempotency-Key must be equal to the id of the body"},
		{"/v1/rooms/a/messages", `{"data":1}`, []string{"c5ff-1", "c5ff-1"}, 400, "Idempotency-Key can't be given twice"},
		{"/v1/rooms/a/messages", `{"data":1}`, []string{""}, 400, "Idempotency-Key must be 1 to 64 of"},
		{"/v1/rooms/a/messages", `{"data":1}`, []string{`""`}, 400, "Idempotency-Key must be 1 to 64 of"},
		{"/v1/rooms/a/messages", `{"data":1}`, []string{strings.Repeat("x", 65)}, 400, "Idempotency-Key must be 1 to 64 of"},
		{"/v1/rooms/a/messages", `{"data":1}`, []string{`"` + strings.Repeat("x", 64) + `"`}, 201, strings.Repeat("x", 64)},
		{"/v1/rooms/a/messages", `{"data":1}`, []string{"two words"}, 400, "Idempotency-Key must be 1 to 64 of"},
		{"/v1/messages", `[{"room":"a","data":1,"id":"c5ff-3"},{"room":"a","data":2}]`, []string{"c5ff-4"}, 400, "Idempotency-Key can't be used with a batch"},
		{"/v1/messages", `[{"room":"a","data":1,"id":"c5ff-3"},{"room":"a","data":2,"id":"c5ff-4"}]`, []string{"c5ff-5"}, 201, `"id":"c5ff-4"`},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+n.addr+tt.path, strings.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+testKey)
		req.Header["Idempotency-Key"] = tt.keys
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(res.Body)
		_ = res.Body.Close() // it was read
		if err != nil || res.StatusCode != tt.status || !strings.Contains(string(answer), tt.says) {
			t.Errorf("%s with the header %q: %d %s, %v; want %d and %q", tt.body, tt.keys, res.StatusCode, answer, err, tt.status, tt.says)
		}
	}
}

// Data is compared byte for byte: the same value, written in another way, is other
// data. White space around it belongs to the body.
func TestARepeatedPublishIsComparedByteForByte(t *testing.T) {
	n := startNode(t, nil)
	for _, tt := range []struct {
		body   string
		status int
	}{
		{`{"data":{"a":1,"b":"é"},"id":"k"}`, 201},
		{`{"data":{"a":1,"b":"é"},"id":"k"}`, 200},
		{` { "id" : "k" , "data" : {"a":1,"b":"é"} } `, 200},
		{`{"data":{"b":"é","a":1},"id":"k"}`, 409},
		{`{"data":{"a": 1,"b":"é"},"id":"k"}`, 409},
		{`{"data":{"a":1.0,"b":"é"},"id":"k"}`, 409},
		{`{"data":{"a":1,"b":"\u00e9"},"id":"k"}`, 409},
	} {
		if res, answer := n.call("POST", "/v1/rooms/a/messages", testKey, tt.body); res.StatusCode != tt.status {
			t.Errorf("%s: %d %s, want %d", tt.body, res.StatusCode, answer, tt.status)
		}
	}
}

func TestHistoryPagesBothWays(t *testing.T) {
	n := startNode(t, nil)
	for i := range 7 {
		if res, body := n.call("POST", "/v1/rooms/a/messages", testKey, fmt.Sprintf(`{"data":%d}`, i+1)); res.StatusCode != http.StatusCreated {
			t.Fatal(body)
		}
	}
	for query, want := range map[string]string{
		"":                  "1 2 3 4 5 6 7 more=false",
		"?limit=2":          "6 7 more=true",
		"?before=6&limit=2": "4 5 more=true",
		"?before=3":         "1 2 more=false",
		"?after=0&limit=3":  "1 2 3 more=true",
		"?after=5":          "6 7 more=false",
		"?after=7":          "more=false",
		"?after=99":         "more=false",
	} {
		res, body := n.call("GET", "/v1/rooms/a/messages"+query, testKey, "")
		var page struct {
			Head, First int
			Epoch       string
			Messages    []struct{ Seq, Data int }
			More        bool
		}
		if err := json.Unmarshal([]byte(body), &page); err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("%s: %d %s", query, res.StatusCode, body)
		}
		got := ""
		for _, m := range page.Messages {
			got += fmt.Sprintf("%d ", m.Data)
		}
		got += fmt.Sprintf("more=%v", page.More)
		if got != want || page.Head != 7 || page.First != 1 || page.Epoch == "" {
			t.Errorf("%q: got %s (head %d, first %d), want %s", query, got, page.Head, page.First, want)
		}
	}
}

// What some decoders and databases refuse or replace comes back as it was written, to
// members and over HTTP: half a surrogate, NUL, a byte order mark within a text.
func TestDataComesBackAsItWasWritten(t *testing.T) {
	n := startNode(t, nil)
	b := n.dial(nil)
	b.send(`{"type":"join","room":"a"}`)
	b.until("joined")
	for _, data := range []string{`"\ud800"`, `"a\u0000b"`, `{"\udfff":"\ud83d \ude00"}`, "\"\ufeff\"", `1e400`} {
		b.send(`{"type":"publish","room":"a","data":%s}`, data)
		want := `"data":` + data
		for frame := ""; !strings.Contains(frame, `"type":"message"`); {
			_, p, err := b.ws.Read(testkit.Within(t, testkit.Timeout))
			if frame = string(p); err != nil || strings.Contains(frame, `"type":"error"`) {
				t.Fatalf("%s: %s %v", data, frame, err)
			}
			if strings.Contains(frame, `"type":"message"`) && !strings.Contains(frame, want) {
				t.Errorf("%s came back as %s", data, frame)
			}
		}
		if _, body := n.call("GET", "/v1/rooms/a/messages?limit=1", testKey, ""); !strings.Contains(body, want) {
			t.Errorf("%s came back over HTTP as %s", data, body)
		}
	}
}

func TestProblems(t *testing.T) {
	n := startNode(t, func(c *Config) { c.MaxFrame = 1024 })
	long := `{"data":"` + strings.Repeat("x", 2000) + `"}`
	tests := []struct {
		method, path, key, body string
		status                  int
		code, says              string
	}{
		{"POST", "/v1/rooms/a/messages", "", `{"data":1}`, 401, "unauthorized", "API_KEYS"},
		{"POST", "/v1/rooms/a/messages", "wrong", `{"data":1}`, 401, "unauthorized", "API_KEYS"},
		{"POST", "/v1/rooms/a/messages", testKey, `{"data":`, 400, "malformed", "JSON"},
		{"POST", "/v1/rooms/a/messages", testKey, `[1]`, 400, "malformed", "JSON"},
		{"POST", "/v1/rooms/a/messages", testKey, "\ufeff" + `{"data":1}`, 400, "malformed", "JSON"},
		{"POST", "/v1/rooms/a/messages", testKey, `{}`, 400, "invalid", "data"},
		{"POST", "/v1/rooms/a/messages", testKey, `{"data":1,"id":""}`, 400, "invalid", "id"},
		{"POST", "/v1/rooms/a%20b/messages", testKey, `{"data":1}`, 400, "invalid", "room"},
		{"POST", "/v1/rooms/_x/messages", testKey, `{"data":1}`, 403, "forbidden", "_"},
		{"POST", "/v1/rooms/a/messages", testKey, long, 413, "too_large", "MAX_FRAME"},
		{"GET", "/v1/rooms/a/messages?limit=201", testKey, "", 400, "invalid", "limit must be a whole number from 1 to 200"},
		{"GET", "/v1/rooms/a/messages?after=-1", testKey, "", 400, "invalid", "after"},
		{"GET", "/v1/rooms/a/messages?before=0", testKey, "", 400, "invalid", "before must be a whole number from 1"},
		{"GET", "/v1/rooms/a/messages?after=1&before=2", testKey, "", 400, "invalid", "before"},
		{"GET", "/v1/rooms/a/messages?limit=1&limit=2", testKey, "", 400, "invalid", "limit can't be given twice"},
		{"GET", "/v1/rooms/a/messages?limit=1;after=2", testKey, "", 400, "invalid", "query must be"},
		{"GET", "/v1/rooms/a/messages?after=%zz", testKey, "", 400, "invalid", "percent escapes"},
		{"GET", "/v1/rooms?prefix=a&prefix=b", testKey, "", 400, "invalid", "prefix can't be given twice"},
		{"GET", "/v1/rooms?after=%", testKey, "", 400, "invalid", "percent escapes"},
		{"DELETE", "/v1/rooms/a/messages", testKey, "", 405, "method_not_allowed", "method"},
		{"GET", "/nothing/here", "", "", 404, "not_found", "route"},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.method, " ", tt.path, " ", tt.status), func(t *testing.T) {
			res, body := n.call(tt.method, tt.path, tt.key, tt.body)
			var p problem
			if err := json.Unmarshal([]byte(body), &p); err != nil {
				t.Fatalf("%s: %v", body, err)
			}
			if res.StatusCode != tt.status || p.Status != tt.status || p.Code != tt.code || !strings.Contains(p.Detail, tt.says) {
				t.Errorf("got %d %+v, want %d %s about %q", res.StatusCode, p, tt.status, tt.code, tt.says)
			}
			if res.Header.Get("Content-Type") != "application/problem+json" || p.RequestID != res.Header.Get("X-Request-Id") || p.RequestID == "" {
				t.Errorf("headers %v, request id %q", res.Header, p.RequestID)
			}
		})
	}
}

func TestHealthAndReadiness(t *testing.T) {
	n := startNode(t, nil)
	if res, _ := n.call("GET", "/healthz", "", ""); res.StatusCode != http.StatusOK {
		t.Errorf("healthz %d", res.StatusCode)
	}
	if res, body := n.call("GET", "/readyz", "", ""); res.StatusCode != http.StatusOK || !strings.Contains(body, `"log":"up"`) {
		t.Errorf("readyz %d %s", res.StatusCode, body)
	}
	set := func(c ...Component) { n.mu.Lock(); n.state = c; n.mu.Unlock() }
	set(Component{"log", "up", true}, Component{"broker", "down", false})
	if res, body := n.call("GET", "/readyz", "", ""); res.StatusCode != http.StatusOK || !strings.Contains(body, `"broker":"down"`) {
		t.Errorf("broker down: %d %s, want 200 that says so", res.StatusCode, body)
	}
	set(Component{"log", "down", true})
	if res, _ := n.call("GET", "/readyz", "", ""); res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("log down: %d, want 503", res.StatusCode)
	}
	if res, _ := n.call("GET", "/healthz", "", ""); res.StatusCode != http.StatusOK {
		t.Errorf("healthz depends on the log: %d", res.StatusCode)
	}
}

func TestThePagesContentSecurityPolicy(t *testing.T) {
	n := startNode(t, nil)
	for _, path := range []string{"/", "/client.js", "/client.d.ts", "/page.js", "/page.css"} {
		res, body := n.call("GET", path, "", "")
		if res.StatusCode != http.StatusOK || len(body) == 0 {
			t.Errorf("%s: %d", path, res.StatusCode)
		}
		csp := res.Header.Get("Content-Security-Policy")
		if !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") {
			t.Errorf("%s: policy %q", path, csp)
		}
	}
}

// A service without a key is open to everybody, and its page says so.
func TestThePageWarnsWhereTheServiceIsOpen(t *testing.T) {
	for _, open := range []bool{true, false} {
		n := startNode(t, func(c *Config) { c.Open = open })
		res, body := n.call("GET", "/", "", "")
		if warns := strings.Contains(body, "No key is configured"); warns != open || !strings.Contains(body, "</html>") || strings.Count(body, "<main>") != 1 ||
			res.Header.Get("Content-Type") != "text/html; charset=utf-8" {
			t.Errorf("open %v: %v %s", open, res.Header, body)
		}
	}
}

func TestTheLevelOfTheLogCanBeChanged(t *testing.T) {
	n := startNode(t, nil)
	public := n.addr
	n.addr = n.admin
	if _, body := n.call("PUT", "/log-level?level=debug", "", ""); !strings.Contains(body, "DEBUG") {
		t.Errorf("set: %s", body)
	}
	if res, body := n.call("PUT", "/log-level?level=loud", "", ""); res.StatusCode != http.StatusBadRequest || !strings.Contains(body, "debug, info, warn or error") {
		t.Errorf("bad level: %d %s", res.StatusCode, body)
	}
	if res, _ := n.call("GET", "/debug/rooms", "", ""); res.StatusCode != http.StatusOK {
		t.Errorf("rooms: %d", res.StatusCode)
	}
	n.addr = public
	for _, path := range []string{"/log-level", "/debug/pprof/", "/debug/rooms"} {
		if res, _ := n.call("GET", path, "", ""); res.StatusCode != http.StatusNotFound {
			t.Errorf("%s is served to the public: %d", path, res.StatusCode)
		}
	}
}

func TestMetricsUseAClosedSetOfRoutes(t *testing.T) {
	n := startNode(t, nil)
	n.call("GET", "/secret-token-in-a-path", "", "")
	n.call("GET", "/v1/rooms/private/messages", testKey, "")
	_, body := n.call("GET", "/metrics", "", "")
	if strings.Contains(body, "secret") || strings.Contains(body, "private") {
		t.Error("a path became a label")
	}
	if got := n.metric(`http_requests_total{code="200",method="GET",route="/v1/rooms/{room}/messages"}`); got != "1" {
		t.Errorf("history counted %q times:\n%s", got, grep(body, "http_requests_total"))
	}
}

func grep(text, word string) (found string) {
	for line := range strings.Lines(text) {
		if strings.Contains(line, word) {
			found += line
		}
	}
	return found
}
