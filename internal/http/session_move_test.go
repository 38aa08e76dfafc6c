package http

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"nhooyr.io/websocket"

	"switchyard/internal/drain"
	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// failingSaves fail the next failuresLeft saves, or all if it is negative.
type failingSaves struct {
	*observedSessions
	failuresLeft atomic.Int64
}

func (f *failingSaves) Save(ctx context.Context, batch []message.SessionSave) []message.SaveResult {
	if left := f.failuresLeft.Load(); left != 0 {
		f.failuresLeft.CompareAndSwap(left, max(left-1, -1))
		results := make([]message.SaveResult, len(batch))
		for i := range results {
			results[i] = message.SaveFailed
		}
		return results
	}
	return f.observedSessions.Save(ctx, batch)
}

func startFailingSavesNode(t *testing.T, fails int64) (*node, *failingSaves) {
	t.Helper()
	f := &failingSaves{}
	f.failuresLeft.Store(fails)
	n, a := startSessionNode(t, func(c *Config) {
		f.observedSessions = c.Sessions.(*observedSessions)
		c.Sessions = f
		c.Heartbeat = time.Hour
		c.DrainWindow, c.DrainTimeout = 3*time.Second, 20*time.Second
		c.MoveTargets = func(drain.Scope) drain.MoveTargets { return healthyTargets }
	})
	f.observedSessions = a
	return n, f
}

// resumes reports whether another node could resume the session now.
func (f *failingSaves) resumes(t *testing.T, secret any) bool {
	t.Helper()
	_, ok, err := f.Resume(t.Context(), secret.(string), "")
	if err != nil {
		t.Error(err)
	}
	return ok
}

// A client that is asked to move has a saved session, however soon after its
// handshake that is.
func TestSessionsAreSavedBeforeClientsMove(t *testing.T) {
	for name, fails := range map[string]int64{"at once": 0, "though the first save failed": 1} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				n, f := startFailingSavesNode(t, fails)
				b, welcome := n.connect("", "")
				n.adminCall("POST", "/drain")
				b.until("move")
				if !f.resumes(t, welcome["session"]) {
					t.Error("the client was asked to move before its session was saved")
				}
			})
		})
	}
}

// gatedSaves fail the first saves, as many as a session has without a pong. Those after
// that wait at a gate.
type gatedSaves struct {
	*failingSaves
	begun chan struct{} // receives a value for each save
	gate  chan struct{}
}

const savesWithoutPong = 3

func (g *gatedSaves) Save(ctx context.Context, batch []message.SessionSave) []message.SaveResult {
	waits := g.failuresLeft.Load() == 0
	g.begun <- struct{}{}
	if waits {
		<-g.gate
	}
	return g.failingSaves.Save(ctx, batch)
}

// A client may send its token just when it would be asked to move: when a wave is picked,
// or while the sessions of the wave are saved. It is asked when its session is saved, too.
func TestAClientThatIsBeingIdentifiedMovesWithItsSession(t *testing.T) {
	for _, whileSaving := range []bool{false, true} {
		t.Run(fmt.Sprint("while saving ", whileSaving), func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				v := newGatedVerifier(keyedVerifier(t, ""))
				saves := &gatedSaves{failingSaves: &failingSaves{}, begun: make(chan struct{}, 100), gate: make(chan struct{})}
				n, a := startSessionNode(t, func(c *Config) {
					saves.observedSessions = c.Sessions.(*observedSessions)
					c.Verifier, c.Sessions = v, saves
					c.Heartbeat = time.Hour
					c.DrainWindow, c.DrainTimeout = 3*time.Second, 20*time.Second
					c.MoveTargets = func(drain.Scope) drain.MoveTargets { return healthyTargets }
				})
				late := n.open(nil)
				identify := func(b *browser, user string) {
					b.send(`{"type":"auth","token":"%s"}`, tokenOf(user, time.Hour, everyRoom))
					<-v.waiting
				}
				if whileSaving {
					close(v.gate)
					saves.failuresLeft.Store(savesWithoutPong)
					other := n.open(nil)
					identify(other, "ben")
					for range savesWithoutPong { // ben's session is unsaved
						<-saves.begun
					}
					n.adminCall("POST", "/drain")
					<-saves.begun // the wave is picked, and saves it
					identify(late, "ann")
					synctest.Wait() // ann is identified
					close(saves.gate)
				} else {
					close(saves.gate)
					identify(late, "ann")
					n.adminCall("POST", "/drain")
					time.Sleep(2500 * time.Millisecond) // waves are picked meanwhile
					close(v.gate)
				}
				secret := late.welcome()["session"].(string)
				late.until("move")
				if _, ok, err := a.Resume(t.Context(), secret, "ann"); !ok || err != nil {
					t.Errorf("the client was asked to move before its session was saved: %v", err)
				}
			})
		})
	}
}

// A client that has moved and closes its old connection has not left its rooms. A
// client that closes its only connection has.
func TestANormalCloseAfterAMoveLeavesNoRoom(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n, _ := startFailingSavesNode(t, 0)
		changes := func(welcome map[string]any) []message.PresenceKind {
			var kinds []message.PresenceKind
			id := message.SessionID(sessionID(welcome))
			for _, c := range n.presence.recorded() {
				if c.Session == id {
					kinds = append(kinds, c.Kind)
				}
			}
			return kinds
		}
		want := func(what string, welcome map[string]any, last message.PresenceKind) {
			t.Helper()
			testkit.Eventually(t, what, func() bool {
				kinds := changes(welcome)
				return len(kinds) == 2 && kinds[0] == message.PresenceJoined && kinds[1] == last
			})
		}
		joined := func(secret string) (*browser, map[string]any) {
			b, welcome := n.connect(secret, "")
			b.send(`{"type":"join","room":"a"}`)
			b.until("joined")
			return b, welcome
		}
		closed, one := joined("")
		_ = closed.ws.Close(websocket.StatusNormalClosure, "")
		want("the close", one, message.PresenceLeft)

		moved, two := joined("")
		n.adminCall("POST", "/drain")
		moved.followMove()
		want("the client that was asked to move", two, message.PresenceDisconnected)
		n.awaitPhase(drain.PhaseDrained)
		n.adminCall("DELETE", "/drain")
	})
}

// sessionID returns the public part of a welcome's session.
func sessionID(welcome map[string]any) string {
	secret := welcome["session"].(string)
	for i := range secret {
		if secret[i] == '.' {
			return secret[:i]
		}
	}
	return secret
}

// A backend sees the sessions in a room. Each has the public part of its welcome's
// session as its name.
func TestABackendReadsThePresenceOfARoom(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n, _ := startSessionNode(t, nil)
		b, welcome := n.connect("", "")
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
		presence := func(room string) (a answer) {
			res, body := n.call("GET", "/v1/rooms/"+room+"/presence", testKey, "")
			if err := json.Unmarshal([]byte(body), &a); err != nil || res.StatusCode != http.StatusOK {
				t.Fatalf("%d %s", res.StatusCode, body)
			}
			return a
		}
		testkit.Eventually(t, "one session in the room", func() bool { return presence("a").Count == 1 })
		if got := presence("a"); got.Room != "a" || len(got.Members) != 1 || got.Members[0].Session != sessionID(welcome) || got.Members[0].User != nil {
			t.Errorf("%+v, want %s alone", got, sessionID(welcome))
		}
		if got := presence("empty"); got.Count != 0 || got.Members == nil {
			t.Errorf("an empty room: %+v, want an empty list of members", got)
		}
		if got := n.metric(`http_requests_total{code="200",method="GET",route="/v1/rooms/{room}/presence"}`); got == "" {
			t.Error("the call is not counted under its route")
		}
	})
}
