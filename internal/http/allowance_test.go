package http

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"nhooyr.io/websocket"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// fewPublishes allows four publishes at once, and then two a second.
func fewPublishes(c *Config) { c.Rates = Rates{Publish: 2} }

// left returns what a welcome says is left of a limit.
func left(t *testing.T, welcome map[string]any, limit string) float64 {
	t.Helper()
	limits, _ := welcome["limits"].(map[string]any)
	one, _ := limits[limit].(map[string]any)
	n, ok := one["left"].(float64)
	if !ok {
		t.Fatalf("the welcome reports no limit %s: %v", limit, welcome)
	}
	return n
}

// publishUntilRefused publishes until the rate refuses it, and returns the refused
// frame's error.
func (b *browser) publishUntilRefused(room string) (stored int, refusal map[string]any) {
	b.t.Helper()
	for {
		b.send(`{"type":"publish","ref":"p%d","room":%q,"data":%d}`, stored, room, stored)
		for v := b.read(); ; v = b.read() {
			if v["type"] == "error" {
				return stored, v
			}
			if v["type"] == "ack" {
				stored++
				break
			}
		}
	}
}

// A publish that was sent behind one that is refused does not overtake it: it is
// refused, too, until the refused one is sent again. It says so itself, by follows.
func TestNothingOvertakesARefusedPublish(t *testing.T) {
	var clock manualClock
	n := startNode(t, func(c *Config) { fewPublishes(c); c.now = clock.now })
	b := n.dial(nil)
	b.publishUntilRefused("a")
	answer := func(frame string) any {
		t.Helper()
		b.send("%s", frame)
		v := b.read()
		for v["ref"] == nil {
			v = b.read()
		}
		if v["type"] == "error" {
			return v["code"]
		}
		return v["type"]
	}
	second := `{"type":"publish","ref":"2","room":"a","id":"second","follows":true,"data":2}`
	clock.advance(10 * time.Second) // four may be sent again
	if got := answer(second); got != "rate_limited" {
		t.Errorf("the second: %v, want rate_limited, because the first was refused", got)
	}
	if got := answer(`{"type":"publish","ref":"3","room":"b","follows":true,"data":3}`); got != "ack" {
		t.Errorf("in another room: %v", got)
	}
	if got := answer(`{"type":"publish","ref":"1","room":"a","id":"first","data":1}`); got != "ack" {
		t.Errorf("the first, sent again: %v", got)
	}
	if got := answer(second); got != "ack" {
		t.Errorf("the second, sent again: %v", got)
	}
	if got := answer(`{"type":"publish","ref":"4","room":"a","follows":1,"data":3}`); got != "invalid" {
		t.Errorf("follows that is no boolean: %v", got)
	}
}

// A client that does not ask for it, because it does not send refused publishes again,
// is not kept from publishing.
func TestAClientThatGivesARefusedPublishUpGoesOn(t *testing.T) {
	var clock manualClock
	n := startNode(t, func(c *Config) { fewPublishes(c); c.now = clock.now })
	b := n.dial(nil)
	b.publishUntilRefused("a")
	clock.advance(500 * time.Millisecond)
	b.send(`{"type":"publish","ref":"next","room":"a","data":1}`)
	if got := b.until("ack"); got["ref"] != "next" {
		t.Errorf("got %v", got)
	}
}

// The rooms whose last publish was refused are bounded. Beyond the bound none is let by.
func TestRefusedRoomsAreBounded(t *testing.T) {
	var u rateUsage
	room := func(i int) message.Room { return message.Room(fmt.Sprint("r", i)) }
	for i := range maxRefusedRooms + 1 {
		u.noteOutcome(room(i), true)
	}
	if len(u.refusedRooms) > maxRefusedRooms || !u.tooManyRefused {
		t.Errorf("%d rooms are known, too many: %v", len(u.refusedRooms), u.tooManyRefused)
	}
}

// A client that was refused gets no new burst by connecting again.
func TestAReconnectBringsNoNewBurst(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n, a := startSessionNode(t, func(c *Config) { c.Rates = Rates{Publish: 2, History: 1, Bytes: 1000, Join: 10} })
		b, welcome := n.connect("", "")
		secret := welcome["session"].(string)
		testkit.Eventually(t, "the session to be saved", func() bool { return a.saves.Load() > 0 })
		if stored, _ := b.publishUntilRefused("a"); stored != 4 {
			t.Fatalf("%d were stored at once, want 4", stored)
		}
		b.send(`{"type":"history","ref":"h","room":"a"}`)
		b.until("history")
		_ = b.ws.CloseNow()
		b, welcome = n.connect(secret, "")
		if welcome["resumed"] != true || left(t, welcome, "publish") > 0 || left(t, welcome, "history") > 1 || left(t, welcome, "bytes") > 1900 || left(t, welcome, "join") != 20 {
			t.Errorf("after a reconnect: %v", welcome["limits"])
		}
		if stored, _ := b.publishUntilRefused("a"); stored > 0 {
			t.Errorf("%d more were stored", stored)
		}
		// The old connection is still open: a takeover.
		b, welcome = n.connect(secret, "")
		if left(t, welcome, "publish") > 0 {
			t.Errorf("beside the first connection: %v", welcome["limits"])
		}
		_ = b.ws.CloseNow()
		time.Sleep(2 * time.Second) // the burst is there again
		if b, welcome = n.connect(secret, ""); left(t, welcome, "publish") != 4 {
			t.Errorf("two seconds later: %v", welcome["limits"])
		}
		if stored, _ := b.publishUntilRefused("a"); stored != 4 {
			t.Errorf("two seconds later %d were stored", stored)
		}
	})
}

// A hundred clients share an address. Those with a session owe what is theirs. What
// others leave behind is a burst at most, which the next newcomer takes over, alone.
func TestAHundredClientsBehindOneAddressDoNotPayForOne(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		const clients, burst = 100, 2
		n, a := startSessionNode(t, func(c *Config) {
			trustLoopback(c)
			c.Rates, c.MaxHandshakeRate = Rates{Publish: burst / 2}, 10_000
		})
		connect := func(secret string) (*browser, map[string]any) {
			opts := fromAddress("198.51.100.1")
			opts.Subprotocols = []string{"switchyard.v1"}
			if secret != "" {
				opts.Subprotocols = append(opts.Subprotocols, "session."+secret)
			}
			b := n.open(opts)
			return b, b.read()
		}
		var secrets []string
		for range clients {
			_, welcome := connect("")
			if left(t, welcome, "publish") != burst {
				t.Fatalf("a newcomer beside others begins with %v", welcome["limits"])
			}
			secrets = append(secrets, welcome["session"].(string))
		}
		testkit.Eventually(t, "the sessions to be saved", func() bool { return a.saves.Load() >= clients })
		var floods []*browser
		for range 3 {
			b, _ := connect("")
			b.publishUntilRefused("a")
			floods = append(floods, b)
		}
		for _, b := range floods { // of the three bursts, one is owed together
			_ = b.ws.Close(websocket.StatusNormalClosure, "")
		}
		testkit.Eventually(t, "the address to owe it", func() bool {
			n.allowances.mu.Lock()
			defer n.allowances.mu.Unlock()
			return n.allowances.closed == len(floods) && len(n.allowances.addresses) == 1
		})
		for _, secret := range secrets {
			if _, welcome := connect(secret); welcome["resumed"] != true || left(t, welcome, "publish") != burst {
				t.Fatalf("a client with a session pays for another: %v", welcome)
			}
		}
		if _, welcome := connect(""); left(t, welcome, "publish") == burst {
			t.Errorf("the next newcomer begins with %v, want what the address owes", welcome["limits"])
		}
		if _, welcome := connect(""); left(t, welcome, "publish") != burst {
			t.Errorf("the newcomer after that begins with %v, want all of it", welcome["limits"])
		}
	})
}

// A client in a thousand rooms moves twice within ten seconds, and all its joins are
// answered, though it has used up its bytes.
func TestAThousandRoomsAreResumedTwiceAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		rooms := many(250, 1000)
		n, _ := startSessionNode(t, func(c *Config) {
			c.MaxRooms, c.Rates = rooms, Rates{Publish: 1000, Join: 1, History: 10, Bytes: 60 * rooms}
			c.Heartbeat = time.Minute
		})
		join := func(b *browser) {
			t.Helper()
			for i := range rooms {
				b.send(`{"type":"join","ref":"j","room":"room-%d"}`, i)
				if got := b.until("joined"); got["ref"] != "j" {
					t.Fatalf("join %d: %v", i, got)
				}
			}
		}
		b, welcome := n.connect("", "")
		secret := welcome["session"].(string)
		join(b)
		for range 2 {
			time.Sleep(4 * time.Second)
			big := fmt.Sprintf(`{"type":"signal","room":"other","data":"%0*d"}`, 50*rooms, 0)
			for range 3 {
				b.send("%s", big)
			}
			b.until("error")
			_ = b.ws.CloseNow()
			if b, welcome = n.connect(secret, ""); welcome["resumed"] != true {
				t.Fatalf("the session was not resumed: %v", welcome)
			}
			join(b)
		}
	})
}

// What closed connections owe is forgotten once it has passed, and is bounded.
func TestAllowancesOfClosedConnectionsAreForgotten(t *testing.T) {
	rates := Rates{Publish: 2}
	all := newAllowances(rates.frameRates(10))
	all.max = 1000
	limit := all.limits[ratePublish]
	flood := func(clients int, every time.Duration) {
		for i := range clients {
			now := time.Duration(i) * every
			network := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32)
			a := all.open(message.SessionID(fmt.Sprint(i, every)), network, false, now)
			a.take(ratePublish, limit, now, 4)
			all.close(a, now)
		}
	}
	flood(100_000, 10*time.Millisecond) // each owes two seconds
	if n := len(all.sessions) + len(all.addresses); n > 1000 || all.closed != len(all.sessions) {
		t.Errorf("%d sessions, %d of them closed, and %d addresses are known; 200 owe something", len(all.sessions), all.closed, len(all.addresses))
	}
	flood(10_000, 0)
	if n := len(all.sessions) + len(all.addresses); n > 1000 {
		t.Errorf("%d are known, want at most 1,000", n)
	}
}
