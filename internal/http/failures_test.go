package http

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// forged returns a token whose signature is wrong.
func forged() string {
	token := tokenOf("ann", time.Hour, everyRoom)
	dot := strings.LastIndexByte(token, '.') + 1
	// The last character stands for four bits, the rest of which must be zero: A is.
	return token[:dot] + strings.Map(func(c rune) rune {
		if c == 'A' {
			return 'B'
		}
		return 'A'
	}, token[dot:len(token)-1]) + "A"
}

// Whoever sends forged tokens through one door is checked through none for a while. Other
// addresses are not affected.
func TestForgedTokensOfAnAddressAreBounded(t *testing.T) {
	var clock manualClock
	n := startKeyedNode(t, "", func(c *Config) { trustLoopback(c); c.now = clock.now })
	const attacker, neighbor = "198.51.100.1", "198.51.100.2"
	const atOnce, perSecond = 50, 5 // docs/limits.md
	good := tokenOf("ann", time.Hour, everyRoom)
	headers := func(addr, token string) []string {
		return []string{"X-Forwarded-For: " + addr, "Authorization: Bearer " + token}
	}
	call := func(addr, token string) int {
		status, _ := n.rawGet("/v1/rooms/a/messages", "Host: 127.0.0.1\r\n"+strings.Join(headers(addr, token), "\r\n")+"\r\n")
		return status
	}
	late := n.open(fromAddress(attacker)) // without a token yet
	for i := range atOnce {
		if got := call(attacker, forged()); got != 401 {
			t.Fatalf("forged token %d: %d", i, got)
		}
	}
	for range 2 { // what is refused unchecked costs nothing
		if got := call(attacker, good); got != 429 {
			t.Errorf("a call of the address: %d", got)
		}
		if got := n.handshakeStatus(headers(attacker, good)...); got != 429 {
			t.Errorf("a handshake of the address: %d", got)
		}
		late.send(`{"type":"auth","token":%q}`, good)
		if got := late.read(); got["code"] != "rate_limited" || got["retry_after_ms"] != 200.0 {
			t.Errorf("an auth frame of the address: %v", got)
		}
	}
	if got := call(neighbor, good); got != 200 {
		t.Errorf("a call of a neighbor: %d", got)
	}
	if got := n.handshakeStatus(headers(neighbor, good)...); got != 101 {
		t.Errorf("a handshake of a neighbor: %d", got)
	}
	clock.advance(time.Second / perSecond)
	if got := call(attacker, good); got != 200 {
		t.Errorf("a call after the wait: %d", got)
	}
	late.send(`{"type":"auth","token":%q}`, good)
	late.welcome()
	if got := n.metric(`websocket_connections_total{result="rate_limited"}`); got != "2" {
		t.Errorf("%q handshakes are counted", got)
	}
}

func TestForgedTokensInAllAreBounded(t *testing.T) {
	var clock manualClock
	f := newFailureLimit(clock.now)
	network := func(i int) netip.Prefix { return netip.MustParsePrefix(fmt.Sprintf("198.51.%d.%d/32", i/256, i%256)) }
	const atOnce = 1000           // docs/limits.md
	var behindAProxy netip.Prefix // not counted by address
	f.record(behindAProxy)
	for i := 1; i < atOnce; i++ {
		if wait := f.wait(behindAProxy); wait > 0 {
			t.Fatalf("after %d: wait %v", i, wait)
		}
		f.record(network(i))
	}
	for name, network := range map[string]netip.Prefix{"one that failed": network(atOnce - 1), "clients behind a proxy": behindAProxy} {
		if wait := f.wait(network); wait != 10*time.Millisecond {
			t.Errorf("%s: wait %v, want 10ms", name, wait)
		}
	}
	if wait := f.wait(network(atOnce)); wait != 0 {
		t.Errorf("an address without a failure waits %v", wait)
	}
	clock.advance(200 * time.Millisecond)
	if wait := f.wait(behindAProxy); wait != 0 {
		t.Errorf("later: wait %v", wait)
	}
}

// The check of a token costs more than a request: those of one address are bounded, good ones
// as well, through whatever door they come.
func TestTokensOfAnAddressAreCheckedAtALimitedRate(t *testing.T) {
	var clock manualClock
	n := startKeyedNode(t, "", func(c *Config) {
		trustLoopback(c)
		c.MaxPerAddress, c.MaxHandshakeRate, c.now = 30, 250, clock.now
	})
	const atOnce, perSecond = 2 * 50, 50 // docs/limits.md: a fifth of the handshakes, which are more than the connections
	good := tokenOf("ann", time.Hour, everyRoom)
	call := func(addr string) int {
		status, _ := n.rawGet("/v1/rooms/a/messages", "Host: 127.0.0.1\r\nX-Forwarded-For: "+addr+"\r\nAuthorization: Bearer "+good+"\r\n")
		return status
	}
	checked := func() (checked int) {
		for call("198.51.100.1") == 200 {
			checked++
		}
		return checked
	}
	b := n.open(fromAddress("198.51.100.1"))
	b.send(`{"type":"auth","token":%q}`, good)
	b.until("authenticated")
	if got := checked(); got != atOnce-1 {
		t.Errorf("%d calls are checked beside a frame, want %d", got, atOnce-1)
	}
	b.send(`{"type":"auth","token":%q}`, good)
	if got := b.until("error"); got["code"] != "rate_limited" {
		t.Errorf("a frame: %v", got)
	}
	if got := call("198.51.100.2"); got != 200 {
		t.Errorf("another address: %d", got)
	}
	clock.advance(time.Second)
	if got := checked(); got != perSecond {
		t.Errorf("%d calls are checked a second later, want %d", got, perSecond)
	}
}
