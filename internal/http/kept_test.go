package http

import (
	"context"
	"encoding/json"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"nhooyr.io/websocket"

	"switchyard/internal/message"
)

// A forgetful place fails the first saves: so many, or all when negative.
type forgetful struct {
	*away
	fails atomic.Int64
}

func (f *forgetful) Save(ctx context.Context, batch []message.SessionSave) []message.SaveResult {
	if left := f.fails.Load(); left != 0 {
		f.fails.CompareAndSwap(left, max(left-1, -1))
		results := make([]message.SaveResult, len(batch))
		for i := range results {
			results[i] = message.SaveFailed
		}
		return results
	}
	return f.away.Save(ctx, batch)
}

func forgetting(t *testing.T, fails int64) (*node, *forgetful) {
	t.Helper()
	f := &forgetful{}
	f.fails.Store(fails)
	n, a := remembering(t, func(c *Config) {
		f.away = c.Sessions.(*away)
		c.Sessions = f
		c.Heartbeat = time.Minute
		c.DrainWindow, c.DrainTimeout = 3*time.Second, 20*time.Second
		c.Receivers = func(Scope) Receivers { return well }
	})
	f.away = a
	return n, f
}

// resumes says whether the session could go on on another node now.
func (f *forgetful) resumes(t *testing.T, secret any) bool {
	t.Helper()
	_, ok, err := f.Resume(t.Context(), secret.(string), "")
	if err != nil {
		t.Error(err)
	}
	return ok
}

// Who is asked to move has a session to come back with, however soon after the
// handshake that is.
func TestNobodyIsAskedToMoveBeforeTheSessionIsKept(t *testing.T) {
	for name, fails := range map[string]int64{"at once": 0, "though the first save failed": 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n, f := forgetting(t, fails)
			b, welcome := n.come("", "")
			n.adminCall("POST", "/drain")
			b.until("move")
			if !f.resumes(t, welcome["session"]) {
				t.Error("asked to move, and the session is not to be had")
			}
		})
	}
}

// A Redis that keeps nothing holds nobody back for long.
func TestSessionsThatCannotBeKeptHoldNoDrainUp(t *testing.T) {
	t.Parallel()
	n, _ := forgetting(t, -1)
	b, _ := n.come("", "")
	n.adminCall("POST", "/drain")
	b.follow()
	n.reach(phaseDrained)
	if state := n.DrainState(); state.Moved != 1 {
		t.Errorf("%+v", state)
	}
}

// A save that failed is made again, without waiting for the client's next
// answer to a ping.
func TestASaveThatFailedIsMadeAgain(t *testing.T) {
	t.Parallel()
	n, f := forgetting(t, saveTries-1)
	_, welcome := n.come("", "")
	eventually(t, "the session to be kept", func() bool { return f.resumes(t, welcome["session"]) })
}

// Who has gone on elsewhere and says goodbye to its first socket has left no
// room; who just goes has.
func TestAGoodbyeAfterAMoveLeavesNoRoom(t *testing.T) {
	n, _ := forgetting(t, 0)
	here := func(welcome map[string]any) []message.PresenceKind {
		var kinds []message.PresenceKind
		id := message.SessionID(name(welcome))
		for _, c := range n.seats.told() {
			if c.Session == id {
				kinds = append(kinds, c.Kind)
			}
		}
		return kinds
	}
	want := func(what string, welcome map[string]any, last message.PresenceKind) {
		t.Helper()
		eventually(t, what, func() bool {
			kinds := here(welcome)
			return len(kinds) == 2 && kinds[0] == message.PresenceJoined && kinds[1] == last
		})
	}
	in := func(secret string) (*browser, map[string]any) {
		b, welcome := n.come(secret, "")
		b.send(`{"type":"join","room":"a"}`)
		b.until("joined")
		return b, welcome
	}
	gone, one := in("")
	_ = gone.ws.Close(websocket.StatusNormalClosure, "")
	want("the goodbye", one, message.PresenceLeft)

	told, two := in("")
	n.adminCall("POST", "/drain")
	told.follow()
	want("who was asked to move", two, message.PresenceLost)
	n.reach(phaseDrained)
	n.adminCall("DELETE", "/drain")
}

// name is the public part of a welcome's session.
func name(welcome map[string]any) string {
	secret := welcome["session"].(string)
	for i := range secret {
		if secret[i] == '.' {
			return secret[:i]
		}
	}
	return secret
}

// A backend sees who is in a room, and each client's session goes by the name
// that its welcome begins with.
func TestABackendSeesWhoIsThere(t *testing.T) {
	n, _ := remembering(t, nil)
	b, welcome := n.come("", "")
	b.send(`{"type":"join","room":"a"}`)
	b.until("joined")
	type answer struct {
		Room    string
		Count   int
		Members []struct {
			Session string
			User    *string
		}
	}
	ask := func(room string) (a answer) {
		res, body := n.call("GET", "/v1/rooms/"+room+"/presence", testKey, "")
		if err := json.Unmarshal([]byte(body), &a); err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("%d %s", res.StatusCode, body)
		}
		return a
	}
	eventually(t, "one in the room", func() bool { return ask("a").Count == 1 })
	if got := ask("a"); got.Room != "a" || len(got.Members) != 1 || got.Members[0].Session != name(welcome) || got.Members[0].User != nil {
		t.Errorf("%+v, want %s alone", got, name(welcome))
	}
	if got := ask("empty"); got.Count != 0 || got.Members == nil {
		t.Errorf("an empty room: %+v, want no members, and the list of them", got)
	}
	if got := n.metric(`http_requests_total{code="200",method="GET",route="/v1/rooms/{room}/presence"}`); got == "" {
		t.Error("not counted under its route")
	}
}
