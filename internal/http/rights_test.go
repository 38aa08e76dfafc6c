package http

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestRights(t *testing.T) {
	n := startKeyedNode(t, "open.*:r", nil)
	ann := n.dial(withToken(tokenOf("ann", time.Hour, `{"read":"r","write":"w","both.*":"rw"}`)))
	anonymous := n.dial(nil)
	request := func(b *browser, frame, room string) string {
		t.Helper()
		b.send(frame, room)
		for {
			got := b.read()
			if got["ref"] != "x" {
				continue
			}
			if got["type"] == "error" {
				return got["code"].(string)
			}
			return "yes"
		}
	}
	const (
		join     = `{"type":"join","ref":"x","room":"%s"}`
		history  = `{"type":"history","ref":"x","room":"%s"}`
		presence = `{"type":"presence","ref":"x","room":"%s"}`
		publish  = `{"type":"publish","ref":"x","room":"%s","data":1}`
	)
	for _, tt := range []struct {
		room                                   string
		read, write, anonymous, anonymousWrite string
	}{
		{"read", "yes", "forbidden", "forbidden", "forbidden"},
		{"write", "forbidden", "yes", "forbidden", "forbidden"},
		{"both.1", "yes", "yes", "forbidden", "forbidden"},
		{"both", "forbidden", "forbidden", "forbidden", "forbidden"},
		{"open.1", "forbidden", "forbidden", "yes", "forbidden"},
		{"other", "forbidden", "forbidden", "forbidden", "forbidden"},
		{"_canary.n1", "forbidden", "forbidden", "forbidden", "forbidden"},
		{"Read", "forbidden", "forbidden", "forbidden", "forbidden"},
	} {
		for _, frame := range []string{join, history} {
			if got := request(ann, frame, tt.room); got != tt.read {
				t.Errorf("%s: %s, want %s", fmt.Sprintf(frame, tt.room), got, tt.read)
			}
			if got := request(anonymous, frame, tt.room); got != tt.anonymous {
				t.Errorf("anonymous: %s: %s, want %s", fmt.Sprintf(frame, tt.room), got, tt.anonymous)
			}
		}
		if got := request(ann, presence, tt.room); (got == "forbidden") != (tt.read == "forbidden") {
			t.Errorf("presence of %s: %s", tt.room, got)
		}
		if got := request(ann, publish, tt.room); got != tt.write {
			t.Errorf("publish in %s: %s, want %s", tt.room, got, tt.write)
		}
		if got := request(anonymous, publish, tt.room); got != tt.anonymousWrite {
			t.Errorf("anonymous: publish in %s: %s, want %s", tt.room, got, tt.anonymousWrite)
		}
		// A signal has no answer except a refusal.
		ann.send(`{"type":"signal","ref":"x","room":"%s","data":1}`, tt.room)
		ann.send(`{"type":"leave","ref":"end","room":"none"}`)
		refused := false
		for got := ann.read(); got["ref"] != "end"; got = ann.read() {
			refused = refused || got["code"] == "forbidden"
		}
		if refused != (tt.write == "forbidden") {
			t.Errorf("a signal in %s refused: %v", tt.room, refused)
		}
	}
}

// An id belongs to a room and a user: it does not collide with another user's, and
// does not reveal it.
func TestMessageIDsAreScopedToTheUser(t *testing.T) {
	n := startKeyedNode(t, "*:rw", nil)
	users := map[string]*browser{
		"ann": n.dial(withToken(tokenOf("ann", time.Hour, everyRoom))), "bob": n.dial(withToken(tokenOf("bob", time.Hour, everyRoom))), "": n.dial(nil),
		"backend": n.dial(withToken(tokenOf("backend", time.Hour, everyRoom))), // the name of one of the API keys
	}
	n.call("POST", "/v1/rooms/a/messages", testKey, `{"id":"1","data":"of the key"}`)
	for user, b := range users {
		b.send(`{"type":"publish","room":"a","id":"1","data":"of %s"}`, user)
		if got := b.until("ack"); got["duplicate"] != nil {
			t.Errorf("%q: %v, want its own message", user, got)
		}
		b.send(`{"type":"publish","room":"a","id":"1","data":"of %s"}`, user)
		if got := b.until("ack"); got["duplicate"] != true {
			t.Errorf("%q again: %v", user, got)
		}
	}
	_, body := n.call("GET", "/v1/rooms/a/messages", testKey, "")
	if !strings.Contains(body, `"head":5,`) {
		t.Errorf("the room does not have five messages: %s", body)
	}
}

func TestHistoryByToken(t *testing.T) {
	var clock manualClock
	n := startKeyedNode(t, "*:rw", func(c *Config) { c.Rates.History, c.now = 4, clock.now })
	n.call("POST", "/v1/rooms/a/messages", testKey, `{"data":1}`)
	reader := tokenOf("ann", time.Hour, `{"a":"r","w":"w"}`)
	for _, tt := range []struct {
		name, method, path, credential string
		status                         int
		code                           string
	}{
		{"may read", "GET", "/v1/rooms/a/messages", reader, 200, ""},
		{"may write only", "GET", "/v1/rooms/w/messages", reader, 403, "forbidden"},
		{"another room", "GET", "/v1/rooms/b/messages", reader, 403, "forbidden"},
		{"a reserved room", "GET", "/v1/rooms/_x/messages", reader, 403, "forbidden"},
		{"no such name", "GET", "/v1/rooms/a%20b/messages", reader, 400, "invalid"},
		{"ended", "GET", "/v1/rooms/a/messages", tokenOf("ann", -time.Hour, everyRoom), 401, "unauthorized"},
		{"nonsense", "GET", "/v1/rooms/a/messages", "x", 401, "unauthorized"},
		{"nothing, anonymous or not", "GET", "/v1/rooms/a/messages", "", 401, "unauthorized"},
		{"publishing is for keys", "POST", "/v1/rooms/a/messages", tokenOf("ann", time.Hour, everyRoom), 401, "unauthorized"},
		{"so are lists", "GET", "/v1/rooms", tokenOf("ann", time.Hour, everyRoom), 401, "unauthorized"},
		{"and batches", "POST", "/v1/messages", tokenOf("ann", time.Hour, everyRoom), 401, "unauthorized"},
		{"and signals", "POST", "/v1/rooms/a/signals", tokenOf("ann", time.Hour, everyRoom), 401, "unauthorized"},
		{"and removal", "POST", "/v1/users/bob/disconnect", tokenOf("ann", time.Hour, everyRoom), 401, "unauthorized"},
	} {
		res, body := n.call(tt.method, tt.path, tt.credential, "")
		var p problem
		_ = json.Unmarshal([]byte(body), &p)
		if res.StatusCode != tt.status || p.Code != tt.code {
			t.Errorf("%s: %d %s", tt.name, res.StatusCode, body)
		}
	}
	for range 3 { // five of eight were used above
		n.call("GET", "/v1/rooms/a/messages", reader, "")
	}
	if res, body := n.call("GET", "/v1/rooms/a/messages", reader, ""); res.StatusCode != http.StatusTooManyRequests || res.Header.Get("Retry-After") == "" {
		t.Errorf("over the rate: %d %s", res.StatusCode, body)
	}
	if res, _ := n.call("GET", "/v1/rooms/a/messages", testKey, ""); res.StatusCode != http.StatusOK {
		t.Error("the rate of a user applies to a key")
	}
}
