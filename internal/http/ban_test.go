package http

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

func TestABannedUserIsDisconnectedAndCannotReconnect(t *testing.T) {
	n := startKeyedNode(t, "", nil)
	ann, bob := tokenOf("ann", time.Hour, everyRoom), tokenOf("bob", time.Hour, everyRoom)
	first, second, other := n.dial(withToken(ann)), n.dial(withToken(ann)), n.dial(withToken(bob))
	third, waiting := n.open(nil), n.open(nil)
	third.send(`{"type":"auth","token":"%s"}`, ann)
	third.until("authenticated")
	res, body := n.call("POST", "/v1/users/ann/disconnect", testKey, `{"for":"10m"}`)
	if res.StatusCode != http.StatusOK || body != `{"user":"ann","closed":3,"for":"10m0s"}`+"\n" {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	for _, b := range []*browser{first, second, third} {
		if got := b.closed(); got != 4003 {
			t.Errorf("closed with %d, want 4003", got)
		}
	}
	if got := n.dialRejected(withToken(ann)); got != 4003 {
		t.Errorf("a reconnect was closed with %d", got)
	}
	waiting.send(`{"type":"auth","token":"%s"}`, ann)
	if got := waiting.closed(); got != 4003 {
		t.Errorf("a token in a frame was answered with %d", got)
	}
	if res, _ := n.call("GET", "/v1/rooms/a/messages", ann, ""); res.StatusCode != http.StatusForbidden {
		t.Errorf("a read over HTTP was answered with %d", res.StatusCode)
	}
	other.send(`{"type":"join","room":"a"}`)
	other.until("joined")
	if got := n.metric(`websocket_connections_total{result="removed"}`); got != "1" {
		t.Errorf("counted %q", got)
	}
}

// A banned client that does not answer the close frame can't do anything in the
// time that it has to answer.
func TestFramesOfABannedUserAreIgnored(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n := startKeyedNode(t, "", nil)
		c, br := n.rawHandshake("", "Authorization: Bearer "+tokenOf("ann", time.Hour, everyRoom))
		testkit.Eventually(t, "ann's connection", func() bool { return n.admission.CountOf("ann") == 1 })
		n.call("POST", "/v1/users/ann/disconnect", testKey, "")
		if code, _ := readClose(t, readDocument(t, "asyncapi.yaml"), br); code != 4003 {
			t.Errorf("closed with %d", code)
		}
		if _, err := io.WriteString(c, testkit.MaskedFrame(0x81, `{"type":"publish","room":"a","data":1}`)+testkit.MaskedFrame(0x88, "\x0f\xa3")); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, "the connection to end", func() bool { return n.admission.Count() == 0 })
		if _, body := n.call("GET", "/v1/rooms/a/messages", testKey, ""); !strings.Contains(body, `"head":0,`) {
			t.Errorf("the banned user has published: %s", body)
		}
	})
}

// A ban ends by itself. The default is long enough for a node that missed the event
// to find the ban.
func TestABanExpires(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n := startKeyedNode(t, "", nil)
		ann := withToken(tokenOf("ann", time.Hour, everyRoom))
		b := n.dial(ann)
		res, body := n.call("POST", "/v1/users/ann/disconnect", testKey, "")
		if res.StatusCode != http.StatusOK || !strings.Contains(body, `"for":"5s"`) {
			t.Errorf("%d %s", res.StatusCode, body)
		}
		if got := b.closed(); got != 4003 {
			t.Errorf("closed with %d", got)
		}
		if got := n.dialRejected(ann); got != 4003 {
			t.Errorf("a reconnect during the ban was closed with %d", got)
		}
		testkit.Eventually(t, "the end of the ban", func() bool { return !n.auth.banned("ann") })
		n.dial(ann)
	})
}

func TestDisconnectRequests(t *testing.T) {
	n := startKeyedNode(t, "", nil)
	for _, tt := range []struct {
		user, body string
		status     int
		says       string
	}{
		{"nobody-here", `{"for":"1h"}`, 200, `"closed":0`},
		{"with%20space%2Fand%2Fslashes", "", 200, `"user":"with space/and/slashes"`},
		{"%E2%98%83", `{}`, 200, `"user":"☃"`},
		{"ann", `{"for":null}`, 200, `"for":"5s"`},
		{"ann", `{"for":"720h"}`, 200, ""},
		{"ann", `{"for":"721h"}`, 400, "720h"},
		{"ann", `{"for":"4s"}`, 400, "5s"},
		{"ann", `{"for":"-1h"}`, 400, "5s"},
		{"ann", `{"for":"10"}`, 400, "such as 10m"},
		{"ann", `{"for":10}`, 400, `"malformed"`},
		{"ann", `[]`, 400, `"malformed"`},
		{"ann", `{"for":"` + strings.Repeat("1", 2000) + `"}`, 413, "too_large"},
		{strings.Repeat("x", 129), "", 400, "128 bytes"},
		{"%FF", "", 400, "UTF-8"},
	} {
		res, body := n.call("POST", "/v1/users/"+tt.user+"/disconnect", testKey, tt.body)
		if res.StatusCode != tt.status || !strings.Contains(body, tt.says) {
			t.Errorf("%s %.40s: %d %s, want %d %s", tt.user, tt.body, res.StatusCode, body, tt.status, tt.says)
		}
	}
	if res, _ := n.call("POST", "/v1/users/ann/disconnect", "", ""); res.StatusCode != http.StatusUnauthorized {
		t.Errorf("without a key: %d", res.StatusCode)
	}
}

// faultyBans are real bans for which the other nodes can be made unreachable.
type faultyBans struct {
	Bans
	unavailable atomic.Bool
}

func (f *faultyBans) Ban(ctx context.Context, user string, d time.Duration) error {
	err := f.Bans.Ban(ctx, user, d)
	if err == nil && f.unavailable.Load() {
		err = message.ErrSharedStateUnavailable
	}
	return err
}

// If the other nodes can't be reached now, this node closes the user's connections,
// and the answer is 202.
func TestABanThatOtherNodesLearnLater(t *testing.T) {
	var r *faultyBans
	n := startKeyedNode(t, "", func(c *Config) { r = &faultyBans{Bans: c.Bans}; c.Bans = r })
	r.unavailable.Store(true)
	b := n.dial(withToken(tokenOf("ann", time.Hour, everyRoom)))
	res, body := n.call("POST", "/v1/users/ann/disconnect", testKey, "")
	var answer struct{ Closed int }
	if err := json.Unmarshal([]byte(body), &answer); err != nil || res.StatusCode != http.StatusAccepted || answer.Closed != 1 {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	if got := b.closed(); got != 4003 {
		t.Errorf("closed with %d", got)
	}
}
