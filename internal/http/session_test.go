package http

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"nhooyr.io/websocket"

	"switchyard/internal/message"
	"switchyard/internal/sharedstate"
	"switchyard/internal/testkit"
)

// observedSessions are sessions that record how they are saved.
type observedSessions struct {
	*sharedstate.Node
	saves     atomic.Int64
	lastSaved atomic.Pointer[message.Session] // the last session that was saved in full
}

func (o *observedSessions) Save(ctx context.Context, batch []message.SessionSave) []message.SaveResult {
	results := o.Node.Save(ctx, batch)
	for i, s := range batch {
		if results[i] == message.SaveDone && !s.Renew {
			o.lastSaved.Store(&s.Session)
		}
	}
	o.saves.Add(int64(len(batch)))
	return results
}

// savedRooms returns the rooms of the session that was saved last, in the order of
// joining.
func (o *observedSessions) savedRooms() string {
	s := o.lastSaved.Load()
	if s == nil {
		return ""
	}
	names := make([]string, len(s.Rooms))
	for i, p := range s.Rooms {
		names[i] = string(p.Room)
	}
	return strings.Join(names, " ")
}

// startSessionNode starts a node that keeps sessions in its process.
func startSessionNode(t *testing.T, change func(*Config)) (*node, *observedSessions) {
	t.Helper()
	own, err := sharedstate.NewMemory(nil, sharedstate.Config{Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	a := &observedSessions{Node: own}
	n := startNode(t, func(c *Config) {
		c.Sessions, c.SessionEvents = a, a
		c.Heartbeat, c.TakeoverTimeout = time.Second, 2*time.Second
		if change != nil {
			change(c)
		}
	})
	own.Start(sharedstate.Hooks{Notify: n.handleNodeEvent})
	t.Cleanup(func() {
		if err := own.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return n, a
}

// withSessions makes a node keep sessions, without events for other nodes.
func withSessions(t *testing.T) func(*Config) {
	t.Helper()
	own, err := sharedstate.NewMemory(nil, sharedstate.Config{Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = own.Close(context.Background()) })
	return func(c *Config) { c.Sessions, c.SessionEvents = &observedSessions{Node: own}, own }
}

// connect connects with a session ("" for none), and also returns the welcome.
func (n *node) connect(secret, query string) (*browser, map[string]any) {
	n.t.Helper()
	offer := []string{"switchyard.v1"}
	if secret != "" {
		offer = append(offer, "session."+secret)
	}
	b, res := n.openAt("/ws"+query, &websocket.DialOptions{Subprotocols: offer})
	if got := res.Header.Get("Sec-WebSocket-Protocol"); got != "switchyard.v1" {
		n.t.Errorf("the answer chose %q", got)
	}
	return b, b.read()
}

func TestASessionIsResumedBySecretAlone(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n, a := startSessionNode(t, nil)
		b, welcome := n.connect("", "")
		secret := welcome["session"].(string)
		if welcome["resumed"] != false || len(secret) < 20 {
			t.Errorf("first welcome: %v", welcome)
		}
		testkit.Eventually(t, "the session to be saved", func() bool { return a.saves.Load() > 0 })
		_ = b.ws.CloseNow() // the network fails: no close frame
		if _, again := n.connect(secret, ""); again["session"] != secret || again["resumed"] != true {
			t.Errorf("second welcome: %v", again)
		}
		name, _, _ := strings.Cut(secret, ".")
		for what, wrong := range map[string]string{"the name that others see": name, "a guess": name + ".AAAAAAAAAAAAAAAAAAAAAAAAAA", "junk": "x"} {
			if _, w := n.connect(wrong, ""); w["resumed"] != false || w["session"] == wrong {
				t.Errorf("%s resumed a session: %v", what, w)
			}
		}
	})
}

// A client with rooms=1 stores no positions and misses nothing: the service rejoins
// its rooms from the confirmed positions.
func TestAClientThatTracksNothingMissesNothing(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n, _ := startSessionNode(t, nil)
		b, welcome := n.connect("", "?rooms=1")
		secret := welcome["session"].(string)
		b.send(`{"type":"join","room":"a"}`)
		b.send(`{"type":"join","room":"b"}`)
		b.until("joined")
		b.until("joined")
		n.publish("a", 1, 5)
		proved := 0.0
		for proved < 5 { // reading answers pings, and the last message came before one of them
			proved = b.until("message")["seq"].(float64)
		}
		b.until("heartbeat")
		b.until("heartbeat")
		_ = b.ws.CloseNow()
		n.publish("a", 6, 9)
		n.publish("b", 1, 1)

		c, again := n.connect(secret, "?rooms=1")
		if again["resumed"] != true {
			t.Fatalf("welcome %v", again)
		}
		got := map[string][]float64{}
		for len(got["a"]) == 0 || got["a"][len(got["a"])-1] < 9 || len(got["b"]) < 1 {
			if m := c.until("message"); true {
				room := m["room"].(string)
				got[room] = append(got[room], m["seq"].(float64))
			}
		}
		// The messages begin at the confirmed position and have no gap. Some may come
		// twice.
		first := got["a"][0]
		if first > 6 {
			t.Errorf("room a begins with %v, want at most 6", first)
		}
		for i, seq := range got["a"] {
			if seq != first+float64(i) {
				t.Errorf("a: %v", got["a"])
				break
			}
		}
		if got["b"][0] != 1 {
			t.Errorf("b: %v", got["b"])
		}
	})
}

// The joins and leaves of a client with rooms=1 are saved at once, not only at its
// next pong. This includes a join that takes long.
func TestJoinsAndLeavesAreSavedAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n, a := startSessionNode(t, func(c *Config) { c.Heartbeat = time.Hour })
		b, welcome := n.connect("", "?rooms=1")
		secret := welcome["session"].(string)
		b.send(`{"type":"join","room":"a"}`)
		b.until("joined")
		testkit.Eventually(t, "room a to be saved", func() bool { return a.savedRooms() == "a" })
		n.log.setFailure(message.ErrUnavailable)
		b.send(`{"type":"join","room":"late"}`)
		before := a.saves.Load()
		testkit.Eventually(t, "a save that finds the join unanswered", func() bool { return a.saves.Load() > before })
		n.log.setFailure(nil)
		b.until("joined")
		testkit.Eventually(t, "the late room to be saved", func() bool { return a.savedRooms() == "a late" })
		b.send(`{"type":"leave","room":"a"}`)
		b.until("left")
		testkit.Eventually(t, "the left room to be removed", func() bool { return a.savedRooms() == "late" })

		c, _ := n.connect(secret, "?rooms=1")
		if m := c.until("joined"); m["room"] != "late" {
			t.Errorf("rejoined %v, want the late room", m["room"])
		}
		c.send(`{"type":"leave","room":"late"}`)
		c.until("left")
		testkit.Eventually(t, "the last room to be removed", func() bool { return a.savedRooms() == "" })
		if _, again := n.connect(secret, "?rooms=1"); again["resumed"] != true {
			t.Errorf("welcome %v", again)
		}
	})
}

// publish stores messages with the numbers first to last in a room.
func (n *node) publish(room string, first, last int) {
	n.t.Helper()
	for i := first; i <= last; i++ {
		if _, err := n.hub.Publish(n.t.Context(), draft(room, fmt.Sprint(i))); err != nil {
			n.t.Fatal(err)
		}
	}
}

func TestTheOlderSocketIsReplacedOnceTheNewerIsLive(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n, a := startSessionNode(t, func(c *Config) { c.TakeoverTimeout = time.Minute })
		old, welcome := n.connect("", "")
		secret := welcome["session"].(string)
		old.send(`{"type":"join","room":"a"}`)
		old.until("joined")
		for a.saves.Load() < 2 { // reading answers pings
			old.until("heartbeat")
		}
		b, _ := n.connect(secret, "")
		old.send(`{"type":"publish","room":"a","data":1,"ref":"p"}`) // it is served until then
		old.until("ack")
		b.send(`{"type":"join","room":"a"}`)
		b.until("joined")
		if code := old.closed(); code != 4009 {
			t.Errorf("the older socket was closed with %d, want 4009", code)
		}
		for range 70 { // one a second: longer than TakeoverTimeout
			b.until("heartbeat")
		}
		b.send(`{"type":"publish","room":"a","data":2,"ref":"p"}`)
		b.until("ack") // the newer one stays
		testkit.Eventually(t, "the close to be counted", func() bool { return n.metric(`websocket_disconnections_total{reason="replaced"}`) == "1" })
	})
}

// A close with 1000 deletes the session. A close with 1000 on the older of two
// connections, as from a client that has moved, does not.
func TestANormalCloseEndsTheSession(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n, a := startSessionNode(t, nil)
		b, welcome := n.connect("", "")
		secret := welcome["session"].(string)
		testkit.Eventually(t, "the session to be saved", func() bool { return a.saves.Load() > 0 })
		moved, _ := n.connect(secret, "")
		_ = b.ws.Close(websocket.StatusNormalClosure, "moved")
		third, w := n.connect(secret, "")
		if w["resumed"] != true {
			t.Errorf("the end of an older connection ended the session: %v", w)
		}
		_ = moved.ws.CloseNow()
		_ = third.ws.Close(websocket.StatusNormalClosure, "bye")
		testkit.Eventually(t, "the session to be deleted", func() bool {
			late, w := n.connect(secret, "")
			_ = late.ws.Close(websocket.StatusNormalClosure, "bye") // it took the session over, if it came first
			return w["resumed"] == false
		})
	})
}

// A browser ends a connection whose handshake offered subprotocols of which none was
// selected, and says nothing. So such a handshake is refused, with the reason.
func TestAHandshakeThatOffersOtherSubprotocolsIsRefused(t *testing.T) {
	n := startKeyedNode(t, "*:rw", nil)
	token := "bearer." + tokenOf("ann", time.Hour, everyRoom)
	for _, lines := range [][]string{
		{"Sec-WebSocket-Protocol: " + token}, {"Sec-WebSocket-Protocol: graphql-ws, chat"}, {"Sec-WebSocket-Protocol: switchyard.v2"},
		{"Sec-WebSocket-Protocol: session.a", "Sec-WebSocket-Protocol: chat"}, {"Sec-WebSocket-Protocol: switchyard.v1 chat"},
	} {
		status, body := n.rawGet("/ws", "Host: "+n.addr+"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"+strings.Join(lines, "\r\n")+"\r\n")
		var p problem
		if err := json.Unmarshal([]byte(body), &p); err != nil || status != http.StatusBadRequest || p.Code != codeHandshake || !strings.Contains(p.Detail, "switchyard.v1: offer it as well") {
			t.Errorf("%.60q: %d %s, want 400 that names switchyard.v1", lines, status, body)
		}
		if strings.Contains(body, token) {
			t.Errorf("the answer has the token: %s", body)
		}
	}
	if got := n.metric(`websocket_connections_total{result="handshake"}`); got != "5" {
		t.Errorf("%q are counted, want 5", got)
	}
	for _, lines := range [][]string{
		nil, {"Sec-WebSocket-Protocol:"}, {"Sec-WebSocket-Protocol: ,"}, {"Sec-WebSocket-Protocol: chat, switchyard.v1"},
		{"Sec-WebSocket-Protocol: " + token, "Sec-WebSocket-Protocol: switchyard.v1"}, {"Sec-WebSocket-Protocol: Switchyard.V1"},
	} {
		if got := n.handshakeStatus(lines...); got != http.StatusSwitchingProtocols {
			t.Errorf("%.60q: %d, want 101", lines, got)
		}
	}
}

func TestBadSubprotocolsAreRefused(t *testing.T) {
	n, _ := startSessionNode(t, nil)
	for name, offer := range map[string][]string{
		"two sessions":  {"switchyard.v1", "session.a", "session.b"},
		"empty":         {"switchyard.v1", "session."},
		"far too long":  {"switchyard.v1", "session." + strings.Repeat("x", 200)},
		"two tokens":    {"switchyard.v1", "bearer.a", "bearer.b"},
		"a huge token":  {"switchyard.v1", "bearer." + strings.Repeat("x", 9000)},
		"an odd symbol": {"switchyard.v1", "session.a+b"},
	} {
		ws, res, err := websocket.Dial(t.Context(), "ws://"+n.addr+"/ws", &websocket.DialOptions{Subprotocols: offer})
		if err == nil {
			_ = ws.CloseNow()
		}
		if res == nil || res.StatusCode != 400 {
			t.Errorf("%s: %v, want 400", name, res)
		}
	}
}

// A session of many rooms that is resumed again and again waits for its turn, and holds no
// connections that others could have.
func TestResumesOfManyRoomsAreLimited(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n, _ := startSessionNode(t, func(c *Config) {
			trustLoopback(c)
			c.MaxPerUser, c.MaxPerAddress = 100, 1000
		})
		const rooms, atOnce, perSecond = 200, 10_000, 400 // docs/limits.md
		address := http.Header{"X-Forwarded-For": {"198.51.100.1"}}
		dial := func(offer ...string) (*websocket.Conn, *http.Response, error) {
			return websocket.Dial(t.Context(), "ws://"+n.addr+"/ws?rooms=1", &websocket.DialOptions{
				HTTPClient: n.httpClient(), HTTPHeader: address, Subprotocols: append([]string{"switchyard.v1"}, offer...),
			})
		}
		ws, _, err := dial()
		if err != nil {
			t.Fatal(err)
		}
		b := &browser{t, ws}
		secret, _ := b.read()["session"].(string)
		for i := range rooms {
			b.send(`{"type":"join","room":"room-%d"}`, i)
		}
		for range rooms {
			b.until("joined")
		}
		time.Sleep(2 * time.Second) // it is saved
		_ = ws.CloseNow()
		began := time.Now()
		for range 2 * atOnce / rooms {
			ws, _, err := dial("session." + secret)
			if err != nil {
				t.Fatalf("a resume: %v", err)
			}
			go func() {
				for {
					if _, _, err := ws.Read(t.Context()); err != nil {
						return
					}
				}
			}()
			time.Sleep(20 * time.Millisecond) // its rooms are joined
			defer func() { _ = ws.CloseNow() }()
		}
		if took, want := time.Since(began), atOnce/perSecond*time.Second; took < want*9/10 || took > want*12/10 {
			t.Errorf("%d rooms were resumed in %v, want about %v", 2*atOnce, took, want)
		}
		// Clients that go at once leave nothing behind, whatever is owed for them.
		for range 50 {
			if ws, _, err := dial("session." + secret); err == nil {
				_ = ws.CloseNow()
			}
		}
		time.Sleep(10 * time.Second)
		if got := n.metric("websocket_active_connections"); got != "0" {
			t.Errorf("%s connections are held by clients that are gone", got)
		}
	})
}
