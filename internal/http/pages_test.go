package http

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"switchyard/internal/protocol"
)

// A page of history ends at 200 messages or at 256 KiB, has at least one message,
// and says whether there is more. This holds over HTTP and on the WebSocket.
func TestAPageIsBoundedInMessagesAndBytes(t *testing.T) {
	n := startNode(t, func(c *Config) { c.MaxFrame, c.QueueBytes = 1<<20, 4<<20 })
	fill := func(room string, sizes ...int) {
		t.Helper()
		var batch []string
		for _, size := range sizes {
			batch = append(batch, fmt.Sprintf(`{"room":%q,"data":"%s"}`, room, strings.Repeat("x", size)))
		}
		if res, body := n.call("POST", "/v1/messages", testKey, "["+strings.Join(batch, ",")+"]"); res.StatusCode != http.StatusCreated {
			t.Fatalf("%d %s", res.StatusCode, body)
		}
	}
	fill("many", make([]int, 205)...)
	fill("large", 60<<10, 60<<10, 60<<10, 60<<10, 60<<10, 60<<10)
	fill("huge", 1, 600<<10)
	b := n.dial(nil)
	b.ws.SetReadLimit(4 << 20)
	for _, tt := range []struct {
		room, query, field string
		seqs               string // first to last
		more               bool
	}{
		{"many", "", "", "6-205", true},
		{"many", "?limit=200", `,"limit":200`, "6-205", true},
		{"many", "?after=0", `,"after":0`, "1-200", true},
		{"many", "?after=5", `,"after":5`, "6-205", false},
		{"many", "?before=3", `,"before":3`, "1-2", false},
		{"large", "", "", "3-6", true},
		{"large", "?after=0", `,"after":0`, "1-4", true},
		{"huge", "", "", "2-2", true},
		{"huge", "?before=2", `,"before":2`, "1-1", false},
	} {
		type page struct {
			Messages []struct{ Seq int }
			More     bool
		}
		check := func(way string, got page) {
			t.Helper()
			if len(got.Messages) == 0 || len(got.Messages) > protocol.MaxHistory {
				t.Fatalf("%s: %s%s: %d messages", way, tt.room, tt.query, len(got.Messages))
			}
			if seqs := fmt.Sprintf("%d-%d", got.Messages[0].Seq, got.Messages[len(got.Messages)-1].Seq); seqs != tt.seqs || got.More != tt.more {
				t.Errorf("%s: %s%s: %s, more %v; want %s, %v", way, tt.room, tt.query, seqs, got.More, tt.seqs, tt.more)
			}
		}
		var got page
		if _, body := n.call("GET", "/v1/rooms/"+tt.room+"/messages"+tt.query, testKey, ""); json.Unmarshal([]byte(body), &got) != nil {
			t.Fatalf("%.200s", body)
		}
		check("HTTP", got)
		b.send(`{"type":"history","room":"%s"%s}`, tt.room, tt.field)
		again, err := json.Marshal(b.until("history"))
		if err != nil {
			t.Fatal(err)
		}
		var answered page
		if err := json.Unmarshal(again, &answered); err != nil {
			t.Fatal(err)
		}
		check("socket", answered)
	}
}

// Profiles are available to operators on the host.
func TestOperatorsGetProfiles(t *testing.T) {
	n := startNode(t, nil)
	n.addr = n.admin
	for path, says := range map[string]string{
		"/debug/pprof/": "goroutine", "/debug/pprof/goroutine?debug=1": "goroutine profile", "/debug/pprof/cmdline": "http.test",
	} {
		if res, body := n.call("GET", path, "", ""); res.StatusCode != http.StatusOK || !strings.Contains(body, says) {
			t.Errorf("%s: %d %.200s", path, res.StatusCode, body)
		}
	}
}
