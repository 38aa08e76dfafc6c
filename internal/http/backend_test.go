package http

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"switchyard/internal/testkit"
)

func TestABatchIsStoredWholeAndBrowsersSeeIt(t *testing.T) {
	n := startNode(t, nil)
	b := n.dial(nil)
	b.send(`{"type":"join","room":"a"}`)
	b.until("joined")
	body := `[{"room":"a","data":1,"id":"x"},{"room":"b","data":2},{"room":"a","data":3}]`
	res, answer := n.call("POST", "/v1/messages", testKey, body)
	var receipts []receipt
	if err := json.Unmarshal([]byte(answer), &receipts); err != nil || res.StatusCode != http.StatusCreated || len(receipts) != 3 {
		t.Fatalf("%d %s", res.StatusCode, answer)
	}
	for i, want := range []string{"a 1", "b 1", "a 2"} {
		if got := fmt.Sprint(receipts[i].Room, " ", receipts[i].Seq); got != want || receipts[i].Duplicate || receipts[i].ID == "" || receipts[i].Epoch == "" {
			t.Errorf("receipt %d: %+v, want %s", i, receipts[i], want)
		}
	}
	for _, want := range []float64{1, 3} {
		if got := b.until("message"); got["data"] != want || got["from"] != "api:backend" {
			t.Errorf("message: %v, want %v", got, want)
		}
	}
	res, answer = n.call("POST", "/v1/messages", testKey, `[{"room":"a","data":1,"id":"x"},{"room":"a","data":4}]`)
	if res.StatusCode != http.StatusCreated || !strings.Contains(answer, `"seq":1,"id":"x","duplicate":true`) || !strings.Contains(answer, `"seq":3`) {
		t.Errorf("a batch with one new message: %d %s", res.StatusCode, answer)
	}
	if res, answer = n.call("POST", "/v1/messages", testKey, `[{"room":"a","data":1,"id":"x"}]`); res.StatusCode != http.StatusOK {
		t.Errorf("a batch without a new message: %d %s", res.StatusCode, answer)
	}
}

func TestABatchWithOneFaultStoresNothing(t *testing.T) {
	n := startNode(t, nil)
	n.call("POST", "/v1/rooms/a/messages", testKey, `{"data":1,"id":"x"}`)
	good := `{"room":"a","data":0},`
	for _, tt := range []struct {
		body, code string
		index      int
	}{
		{`[` + good + `{"room":"a","data":2,"id":"x"}]`, "conflict", 1},
		{`[` + good + good + `{"room":"a b","data":2}]`, "invalid", 2},
		{`[` + good + `{"room":"_x","data":2}]`, "forbidden", 1},
		{`[` + good + `{"room":"a","data":"` + strings.Repeat("x", 70000) + `"}]`, "too_large", 1},
		{`[` + strings.Repeat(good, 256) + `{"room":"a","data":1}]`, "invalid", -1},
		{`[]`, "invalid", -1},
		{`{}`, "malformed", -1},
		{`["` + strings.Repeat("x", 1<<20) + `"]`, "too_large", -1},
	} {
		res, answer := n.call("POST", "/v1/messages", testKey, tt.body)
		var p problem
		if err := json.Unmarshal([]byte(answer), &p); err != nil {
			t.Fatalf("%s: %v", answer, err)
		}
		index := -1
		if p.Index != nil {
			index = *p.Index
		}
		if p.Code != tt.code || index != tt.index || res.StatusCode != p.Status {
			t.Errorf("%.60s: %d %+v, want %s of %d", tt.body, index, p, tt.code, tt.index)
		}
	}
	if _, answer := n.call("GET", "/v1/rooms/a/messages", testKey, ""); !strings.Contains(answer, `"head":1,`) {
		t.Errorf("a message was stored: %s", answer)
	}
}

func TestABackendsSignalReachesTheMembers(t *testing.T) {
	n := startNode(t, nil)
	b := n.dial(nil)
	b.send(`{"type":"join","room":"a"}`)
	b.until("joined")
	res, answer := n.call("POST", "/v1/rooms/a/signals", testKey, `{"data":{"typing":true}}`)
	if res.StatusCode != http.StatusAccepted || answer != "" {
		t.Errorf("%d %q", res.StatusCode, answer)
	}
	if got := b.until("signal"); got["from"] != "api:backend" || fmt.Sprint(got["data"]) != "map[typing:true]" {
		t.Errorf("signal: %v", got)
	}
	if _, answer := n.call("GET", "/v1/rooms/a/messages", testKey, ""); !strings.Contains(answer, `"head":0,`) {
		t.Errorf("a signal was stored: %s", answer)
	}
}

func TestRoomsAreListedInPages(t *testing.T) {
	n := startNode(t, nil)
	for _, room := range []string{"orders:2", "chat", "orders:1", "Zoo", "orders:1"} {
		n.call("POST", "/v1/rooms/"+room+"/messages", testKey, `{"data":1}`)
	}
	for _, own := range []string{"_canary.n1", "_canary.n2"} { // the service's own rooms are never listed
		if _, err := n.hub.Publish(t.Context(), draft(own, "1")); err != nil {
			t.Fatal(err)
		}
	}
	for query, want := range map[string]string{
		"":                        "Zoo chat orders:1 orders:2 more=false",
		"?limit=3":                "Zoo chat orders:1 more=true",
		"?limit=1&after=Zoo":      "chat more=true",
		"?limit=3&after=orders:1": "orders:2 more=false",
		"?prefix=orders:":         "orders:1 orders:2 more=false",
		"?prefix=x":               "more=false",
	} {
		res, answer := n.call("GET", "/v1/rooms"+query, testKey, "")
		var list struct {
			Rooms []roomSummary
			More  bool
		}
		if err := json.Unmarshal([]byte(answer), &list); err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("%s: %d %s", query, res.StatusCode, answer)
		}
		got := ""
		for _, r := range list.Rooms {
			got += string(r.Room) + " "
			at, err := time.Parse(time.RFC3339Nano, r.LastAt)
			if err != nil || time.Since(at) > time.Minute || r.First != 1 || (r.Head == 2) != (r.Room == "orders:1") {
				t.Errorf("%+v", r)
			}
		}
		if got += fmt.Sprintf("more=%v", list.More); got != want {
			t.Errorf("%q: %s, want %s", query, got, want)
		}
	}
}

func TestRefusalsAreProblemsOnEveryRoute(t *testing.T) {
	n := startNode(t, nil)
	upgrade := http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}}
	for _, tt := range []struct {
		method, path string
		header       http.Header
		status       int
		code         string
		gets         [2]string // name and value of a header of the answer
	}{
		{"GET", "/ws", nil, 426, "upgrade_required", [2]string{"Upgrade", "websocket"}},
		{"GET", "/ws", upgrade, 400, "bad_handshake", [2]string{"Sec-Websocket-Version", "13"}},
		{"POST", "/ws", nil, 405, "method_not_allowed", [2]string{"Allow", "GET"}},
		{"GET", "/ws", http.Header{"Origin": {"https://evil.example"}}, 403, "forbidden", [2]string{}},
		{"POST", "/v1/rooms", nil, 405, "method_not_allowed", [2]string{"Allow", "GET"}},
		{"PUT", "/v1/rooms/a/messages", nil, 405, "method_not_allowed", [2]string{"Allow", "GET"}},
		{"POST", "/healthz", nil, 405, "method_not_allowed", [2]string{"Allow", "GET"}},
		{"GET", "/v1/nothing", nil, 404, "not_found", [2]string{}},
		{"POST", "/v1/messages", http.Header{"Content-Encoding": {"gzip"}}, 415, "unsupported_encoding", [2]string{}},
		{"GET", "/v1/rooms?prefix=a%20b", nil, 400, "invalid", [2]string{}},
		{"GET", "/v1/rooms?after=_x", nil, 403, "forbidden", [2]string{}},
		{"GET", "/v1/rooms?limit=1001", nil, 400, "invalid", [2]string{}},
	} {
		t.Run(tt.method+tt.path, func(t *testing.T) {
			header := tt.header.Clone()
			if header == nil {
				header = http.Header{}
			}
			header.Set("Authorization", "Bearer "+testKey)
			res, answer := n.request(tt.method, tt.path, header, strings.NewReader(""))
			var p problem
			if err := json.Unmarshal([]byte(answer), &p); err != nil {
				t.Fatalf("%q: %v", answer, err)
			}
			if res.StatusCode != tt.status || p.Status != tt.status || p.Code != tt.code || p.RequestID == "" ||
				p.RequestID != res.Header.Get("X-Request-Id") || res.Header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("%d %+v %v, want %d %s", res.StatusCode, p, res.Header, tt.status, tt.code)
			}
			if tt.gets[0] != "" && res.Header.Get(tt.gets[0]) != tt.gets[1] {
				t.Errorf("%s: %q, want %q", tt.gets[0], res.Header.Get(tt.gets[0]), tt.gets[1])
			}
		})
	}
}

func TestHeadIsAGetWithoutItsBody(t *testing.T) {
	n := startNode(t, nil)
	for _, path := range []string{"/", "/healthz", "/client.js", "/v1/rooms/a/messages"} {
		res, answer := n.call("HEAD", path, testKey, "")
		if res.StatusCode != http.StatusOK || answer != "" {
			t.Errorf("HEAD %s: %d %q", path, res.StatusCode, answer)
		}
	}
}

func TestAPanicFailsOnlyItsRequest(t *testing.T) {
	n := startNode(t, func(c *Config) { c.Components = func() []Component { panic("planted") } })
	res, answer := n.call("GET", "/readyz", "", "")
	if res.StatusCode != http.StatusInternalServerError || !strings.Contains(answer, `"code":"internal"`) || strings.Contains(answer, "planted") {
		t.Errorf("%d %s", res.StatusCode, answer)
	}
	if logs := n.logs.String(); !strings.Contains(logs, "planted") || !strings.Contains(logs, res.Header.Get("X-Request-Id")) {
		t.Errorf("the log does not have the panic: %s", logs)
	}
	if res, _ := n.call("GET", "/healthz", "", ""); res.StatusCode != http.StatusOK {
		t.Errorf("after the panic: %d", res.StatusCode)
	}
}

// A body that stops halfway is refused, and nothing is stored.
func TestATruncatedBodyIsRefused(t *testing.T) {
	n := startNode(t, nil)
	cut, write := io.Pipe()
	go func() {
		_, _ = io.WriteString(write, `{"data":`)
		_ = write.CloseWithError(io.ErrUnexpectedEOF)
	}()
	r, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+n.addr+"/v1/rooms/a/messages", cut)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+testKey)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	if res, err := client.Do(r); err == nil {
		_ = res.Body.Close()
		if res.StatusCode != http.StatusBadRequest {
			t.Errorf("half a body was answered with %d", res.StatusCode)
		}
	}
	testkit.Eventually(t, "the request to be counted", func() bool {
		return n.metric(`http_requests_total{code="400",method="POST",route="/v1/rooms/{room}/messages"}`) == "1"
	})
}
