package http

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"nhooyr.io/websocket"

	"switchyard/internal/ratelimit"
	"switchyard/internal/testkit"
)

// fromAddress is the handshake of an address behind a trusted proxy.
func fromAddress(addr string) *websocket.DialOptions {
	return &websocket.DialOptions{HTTPHeader: http.Header{"X-Forwarded-For": {addr}}}
}

// A manualClock stands still until the test advances it, so that rates are exact.
type manualClock struct{ at atomic.Int64 }

func (c *manualClock) now() time.Duration      { return time.Duration(c.at.Load()) + time.Hour }
func (c *manualClock) advance(d time.Duration) { c.at.Add(int64(d)) }

// trustLoopback makes loopback a trusted proxy.
func trustLoopback(c *Config) { c.TrustedProxies = prefixes(loopback) }

func TestTooManyConnectionsOfAnAddress(t *testing.T) {
	n := startNode(t, func(c *Config) { trustLoopback(c); c.MaxPerAddress = 2 })
	first := n.dial(fromAddress("198.51.100.1"))
	n.dial(fromAddress("198.51.100.1"))
	if got := n.dialRejected(fromAddress("198.51.100.1")); got != 4103 {
		t.Errorf("the third is closed with %d", got)
	}
	if got := n.dialRejected(fromAddress("127.0.0.1, 198.51.100.1")); got != 4103 {
		t.Errorf("with an invented address: closed with %d", got)
	}
	n.dial(fromAddress("198.51.100.2")) // a neighbor is not affected
	n.dial(fromAddress("2001:db8:1:1::1"))
	n.dial(fromAddress("2001:db8:1:1:ffff::2"))
	if got := n.dialRejected(fromAddress("2001:db8:1:1:1:2:3:4")); got != 4103 {
		t.Errorf("the third of a /64 is closed with %d", got)
	}
	n.dial(fromAddress("2001:db8:1:2::1"))
	_ = first.ws.Close(websocket.StatusNormalClosure, "")
	const open = 6 // were admitted, before one of them closed
	testkit.Eventually(t, "a free slot", func() bool { return n.admission.Count() == open-1 })
	n.dial(fromAddress("198.51.100.1"))
	if got := n.metric(`websocket_connections_total{result="too_many_address"}`); got != "3" {
		t.Errorf("counted %q times", got)
	}
}

// connectsUntil performs handshakes with these header lines until one is answered with
// status, and returns how many were not.
func (n *node) connectsUntil(status int, lines ...string) int {
	n.t.Helper()
	for i := range 1000 {
		if n.handshakeStatus(lines...) == status {
			return i
		}
	}
	n.t.Fatalf("no handshake was answered with %d", status)
	return 0
}

// One address can't take all handshakes that the node accepts.
func TestAnAddressConnectsAtALimitedRate(t *testing.T) {
	var clock manualClock
	n := startNode(t, func(c *Config) { trustLoopback(c); c.MaxPerAddress, c.MaxHandshakeRate, c.now = 30, 100, clock.now })
	const from = "X-Forwarded-For: 198.51.100.1"
	if got := n.connectsUntil(http.StatusTooManyRequests, from); got != 60 {
		t.Errorf("an address connects %d times at once, want twice MAX_CONNECTIONS_PER_IP", got)
	}
	if got := n.handshakeStatus("X-Forwarded-For: 198.51.100.2"); got != http.StatusSwitchingProtocols {
		t.Errorf("its neighbor: %d", got)
	}
	clock.advance(time.Second)
	if got := n.connectsUntil(http.StatusTooManyRequests, from); got != 10 {
		t.Errorf("an address connects %d times a second, want a tenth of MAX_HANDSHAKE_RATE", got)
	}
	if got := n.metric(`websocket_connections_total{result="rate_limited"}`); got != "2" {
		t.Errorf("%q are counted", got)
	}
}

// An address that was quiet for long may connect often at once, and leaves half of what the
// node allows to others.
func TestAnAddressLeavesHandshakesToOthers(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n := startNode(t, func(c *Config) { trustLoopback(c); c.MaxPerAddress, c.MaxHandshakeRate = 1000, 100 })
		if got := n.connectsUntil(http.StatusServiceUnavailable, "X-Forwarded-For: 198.51.100.1"); got < 50 || got > 51 {
			t.Errorf("an address has %d of 100 handshakes", got)
		}
		if got := n.connectsUntil(http.StatusServiceUnavailable, "X-Forwarded-For: 198.51.100.2"); got < 49 {
			t.Errorf("its neighbor has %d", got)
		}
		time.Sleep(time.Second)
		if got := n.connectsUntil(http.StatusServiceUnavailable, "X-Forwarded-For: 198.51.100.1"); got < 50 || got > 51 {
			t.Errorf("the address has %d of 100 handshakes a second later", got)
		}
	})
}

// A peer on loopback that is no trusted proxy may stand for any number of clients.
// Its connections are not counted by address.
func TestInternalPeersAreNotCountedByAddress(t *testing.T) {
	n := startNode(t, func(c *Config) { c.MaxPerAddress = 1 })
	n.dial(nil)
	n.dial(fromAddress("198.51.100.1")).send(`{"type":"join","room":"a"}`)
}

// Every count is released, however a connection ends.
func TestEveryAdmissionSlotIsReleased(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n := startKeyedNode(t, "", func(c *Config) {
			trustLoopback(c)
			c.MaxPerAddress, c.MaxConnections, c.MaxPerUser, c.maxRejecting = 2, 3, 2, fewRejecting
		})
		for i := range 6 {
			opts := fromAddress(fmt.Sprintf("198.51.100.%d", 1+i%2))
			if i%2 == 0 {
				opts.HTTPHeader.Set("Authorization", "Bearer "+tokenOf("ann", time.Hour, everyRoom))
			}
			b := n.open(opts)
			switch i % 3 {
			case 0:
				_ = b.ws.Close(websocket.StatusNormalClosure, "")
			case 1:
				_ = b.ws.CloseNow()
			}
		}
		for range 4 {
			n.handshakeStatus("X-Forwarded-For: 198.51.100.9") // cut right after the upgrade
			n.handshakeStatus("X-Forwarded-For: 198.51.100.9", "Sec-WebSocket-Version: 12")
		}
		if err := n.drain.CloseClients(t.Context()); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, "all connections to end", func() bool { return n.admission.Count() == 0 })
		if left := n.expiry.Advance(time.Now().Add(24 * time.Hour)); len(left) > 0 {
			t.Errorf("%d connections that ended are still on the timer wheel", len(left))
		}
		network := netip.MustParsePrefix("198.51.100.1/32")
		var results []string
		for range 3 {
			slot := n.admission.Admit(network)
			results = append(results, slot.Result())
			defer slot.Release(nil)
			if slot.CloseCode() == 0 && !slot.AssignUser("ann") {
				t.Error("connections of ann that ended are still counted")
			}
		}
		if got := strings.Join(results, " "); got != "ok ok too_many_address" {
			t.Errorf("an address was then admitted with %s, want the full limit", got)
		}
		another, rejected := n.admission.Admit(netip.Prefix{}), 1 // the third of the address
		defer another.Release(nil)
		for {
			slot := n.admission.Admit(netip.Prefix{})
			if slot == nil {
				break
			}
			defer slot.Release(nil)
			rejected++
		}
		if another.CloseCode() != 0 || rejected != fewRejecting {
			t.Errorf("then the node admitted the next as %q and rejected %d; want ok and %d", another.Result(), rejected, fewRejecting)
		}
	})
}

// Rejected connections get a close code while they are few, and use no slot. Beyond
// a bound they are refused before the upgrade.
func TestRejectedConnectionsTakeNoSlot(t *testing.T) {
	n := startNode(t, func(c *Config) {
		trustLoopback(c)
		c.MaxPerAddress, c.MaxConnections, c.maxRejecting = 1, 3, fewRejecting
	})
	n.dial(fromAddress("198.51.100.1"))
	for range fewRejecting {
		n.rawHandshake("", "X-Forwarded-For: 198.51.100.1") // reads nothing, so that its close waits
	}
	header := upgradeHeader("X-Forwarded-For", "198.51.100.1")
	if res, _ := n.request("GET", "/ws", header, strings.NewReader("")); res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("one more is answered with %d", res.StatusCode)
	}
	n.dial(fromAddress("198.51.100.2"))
	n.dial(fromAddress("198.51.100.3"))
}

// The frames of a rejected connection are ignored.
func TestFramesAfterACloseAreIgnored(t *testing.T) {
	n := startNode(t, func(c *Config) { c.MaxConnections = 1 })
	b := n.dial(nil)
	c, br := n.rawHandshake(testkit.MaskedFrame(0x81, `{"type":"publish","room":"a","data":1}`) + testkit.MaskedFrame(0x88, "\x03\xe8"))
	if _, err := io.ReadAll(br); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	b.send(`{"type":"history","room":"a"}`)
	if got := b.until("history"); len(got["messages"].([]any)) != 0 {
		t.Errorf("a rejected connection has published: %v", got)
	}
}

// Each rate refuses what is over it, says when to retry, and keeps the
// connection open. The other rates are not affected.
func TestRatesOfAConnection(t *testing.T) {
	big := `{"type":"signal","room":"a","data":"` + strings.Repeat("x", 900) + `"}`
	for _, tt := range []struct {
		name          string
		rates         Rates
		frame, other  string
		burst         int
		answer, limit string
	}{
		{"publishes", Rates{Publish: 2}, `{"type":"publish","room":"a","data":1}`, `{"type":"history","room":"b"}`, 4, "ack", "publishes"},
		{"signals count as publishes", Rates{Publish: 2}, `{"type":"signal","room":"a","data":1}`, `{"type":"history","room":"b"}`, 4, "", "publishes"},
		{"bytes", Rates{Bytes: 1000}, big, `{"type":"history","room":"b"}`, 2, "", "bytes"},
		{"joins", Rates{Join: 2}, `{"type":"join","room":"a"}`, `{"type":"publish","room":"b","data":1}`, 5, "joined", "frames"},
		{"unknown types", Rates{Join: 2}, `{"type":"dance"}`, `{"type":"publish","room":"b","data":1}`, 5, "error", "frames"},
		{"history", Rates{History: 2}, `{"type":"history","room":"a"}`, `{"type":"publish","room":"b","data":1}`, 4, "history", "reads"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var clock manualClock
			n := startNode(t, func(c *Config) { c.Rates, c.MaxRooms, c.now = tt.rates, 5, clock.now })
			b := n.dial(nil)
			for range tt.burst {
				b.send("%s", tt.frame)
				if tt.answer != "" {
					b.until(tt.answer)
				}
			}
			b.send(`%s,"ref":"over"}`, strings.TrimSuffix(tt.frame, "}"))
			got := b.until("error")
			wait, _ := got["retry_after_ms"].(float64)
			if got["code"] != "rate_limited" || got["ref"] != "over" || wait < 1 || wait > 1000 || !strings.Contains(got["message"].(string), tt.limit) {
				t.Fatalf("got %v", got)
			}
			if tt.limit != "bytes" {
				b.send("%s", tt.other)
				for kind := b.read()["type"]; kind != "history" && kind != "ack"; kind = b.read()["type"] {
					if kind == "error" {
						t.Fatal("another rate is affected")
					}
				}
			}
			clock.advance(time.Duration(wait) * time.Millisecond)
			b.send(`%s,"ref":"late"}`, strings.TrimSuffix(tt.frame, "}"))
			b.send(`{"type":"leave","ref":"end"}`)
			for v := b.read(); v["ref"] != "end"; v = b.read() {
				if v["ref"] == "late" && v["code"] == "rate_limited" {
					t.Errorf("refused after retry_after_ms: %v", v)
				}
			}
			if n.metric(`websocket_errors_total{type="rate_limited"}`) == "" {
				t.Error("the refusal is not counted")
			}
		})
	}
}

// MAX_ROOMS joins at once are a client that resumes, not an attack.
func TestAResumeOfEveryRoomIsNotRateLimited(t *testing.T) {
	rooms := many(200, 1000)
	n := startNode(t, func(c *Config) { c.Rates.Join, c.MaxRooms = 1, rooms })
	b := n.dial(nil)
	for i := range rooms {
		b.send(`{"type":"join","room":"r%d"}`, i)
		if got := b.until("joined"); got["room"] != fmt.Sprint("r", i) {
			t.Fatalf("join %d: %v", i, got)
		}
	}
}

// The report of a move has no answer, so a client can't know when it was counted: it
// takes no join of a client that then joins as many rooms as it may. A second report is
// none.
func TestTheReportOfAMoveTakesNoJoin(t *testing.T) {
	var clock manualClock
	n := startNode(t, func(c *Config) { c.Rates.Join, c.MaxRooms, c.now = 1, 5, clock.now })
	for _, tt := range []struct {
		reports, joins int
	}{{1, 5}, {2, 4}} {
		b := n.dial(nil)
		for i := range tt.reports {
			b.send(`{"type":"moved","ref":"moved-%d","from":"node-9","handshake_ms":1}`, i)
		}
		for i := range tt.joins {
			b.send(`{"type":"join","room":"r%d"}`, i)
			if got := b.read(); got["type"] != "joined" {
				t.Fatalf("%d reports, join %d: %v", tt.reports, i, got)
			}
		}
		b.send(`{"type":"join","ref":"over","room":"r0"}`)
		if got := b.until("error"); got["ref"] != "over" || got["code"] != "rate_limited" {
			t.Errorf("%d reports, one join too many: %v", tt.reports, got)
		}
	}
}

func TestCallsOfAKeyAreLimited(t *testing.T) {
	var clock manualClock
	n := startNode(t, func(c *Config) { c.Rates.API, c.now = 2, clock.now })
	for range 4 {
		if res, body := n.call("GET", "/v1/rooms", testKey, ""); res.StatusCode != http.StatusOK {
			t.Fatalf("%d %s", res.StatusCode, body)
		}
	}
	res, body := n.call("POST", "/v1/rooms/a/messages", testKey, `{"data":1}`)
	if res.StatusCode != http.StatusTooManyRequests || res.Header.Get("Retry-After") != "1" || !strings.Contains(body, `"code":"rate_limited"`) || !strings.Contains(body, "RATE_API") {
		t.Errorf("over the rate: %d %v %s", res.StatusCode, res.Header, body)
	}
	if res, _ := n.call("GET", "/v1/rooms", testKey+"2", ""); res.StatusCode != http.StatusOK {
		t.Errorf("another key: %d", res.StatusCode)
	}
	if res, _ := n.call("GET", "/readyz", "", ""); res.StatusCode != http.StatusOK {
		t.Errorf("a probe: %d", res.StatusCode)
	}
	clock.advance(500 * time.Millisecond)
	if res, _ := n.call("POST", "/v1/rooms/a/messages", testKey, `{"data":1}`); res.StatusCode != http.StatusCreated {
		t.Errorf("half a second later: %d", res.StatusCode)
	}
}

// A client may ignore 1,000 refusals without a pause between them; the next one closes
// it. A second without a refusal forgives them.
func TestAThousandIgnoredRefusalsCloseTheConnection(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n := startNode(t, func(c *Config) { c.Rates.Publish = 1 })
		b := n.dial(nil)
		refuse := func(times int) {
			t.Helper()
			for range times {
				b.send(`{"type":"signal","room":"a","data":1}`)
				if got := b.until("error"); got["code"] != "rate_limited" {
					t.Fatalf("got %v", got)
				}
			}
		}
		for range 2 { // the burst
			b.send(`{"type":"signal","room":"a","data":1}`)
		}
		refuse(1000)
		time.Sleep(1001 * time.Millisecond)
		b.send(`{"type":"signal","room":"a","data":1}`) // allowed again
		refuse(1000)
		b.send(`{"type":"signal","room":"a","data":1}`)
		if code := b.closed(); code != 4129 {
			t.Errorf("closed with %d, want 4129", code)
		}
	})
}

// Connections that are no WebSocket are bounded by internal/admission, and those over a
// bound are counted.
func TestRefusedHTTPConnectionsAreCounted(t *testing.T) {
	n := startNode(t, nil)
	const perAddress, reserved = 256, 16
	for i := range perAddress + reserved + 1 {
		n.public.ConnContext(t.Context(), &peerConn{port: i})
	}
	if got := n.metric("http_connections_refused_total"); got != "1" {
		t.Errorf("counted %q", got)
	}
}

// A peerConn is a connection of one public address.
type peerConn struct {
	net.Conn
	port int
}

func (c *peerConn) RemoteAddr() net.Addr {
	return &net.TCPAddr{IP: net.IPv4(198, 51, 100, 1), Port: c.port}
}

func (c *peerConn) Close() error { return nil }

// A reader is slowed at twice the rates, so that rate_limited comes first. A rate
// without a limit leaves frames without one.
func TestAReaderIsSlowedAtTwiceTheRates(t *testing.T) {
	for _, tt := range []struct {
		rates         Rates
		frames, bytes ratelimit.Limit
	}{
		{Rates{Publish: 20, Bytes: 1000, Join: 20, History: 10}, ratelimit.Limit{PerSecond: 100, Burst: 205}, ratelimit.Limit{PerSecond: 2000, Burst: 4000}},
		{Rates{Publish: 1}, ratelimit.Limit{}, ratelimit.Limit{}},
	} {
		if frames, bytes := tt.rates.readLimits(5); frames != tt.frames || bytes != tt.bytes {
			t.Errorf("%+v: frames %+v, bytes %+v", tt.rates, frames, bytes)
		}
	}
}

// Pings over their rate are answered later, in order, and the connection stays
// open. Other frames wait behind them.
func TestAFloodOfPingsIsAnsweredAtALimitedRate(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n := startNode(t, func(c *Config) { c.Rates = Rates{Publish: 100, Bytes: 1 << 20, Join: 100, History: 10} })
		var flood strings.Builder
		const pings = 115
		for i := range pings {
			flood.WriteString(testkit.MaskedFrame(0x89, fmt.Sprintf("%03d", i)))
		}
		began := time.Now()
		_, br := n.rawHandshake(flood.String() + testkit.MaskedFrame(0x81, `{"type":"join","room":"after"}`))
		for i := range pings {
			op, payload := readFrame(t, br)
			for op != 0x8A { // skips the welcome, heartbeats and the service's pings
				op, payload = readFrame(t, br)
			}
			if payload != fmt.Sprintf("%03d", i) {
				t.Fatalf("answer %d is %q", i, payload)
			}
		}
		if took := time.Since(began); took < time.Second {
			t.Errorf("%d pings were answered in %v, want at least a second", pings, took)
		}
		for {
			if _, payload := readFrame(t, br); strings.Contains(payload, `"joined"`) {
				break
			}
		}
	})
}
