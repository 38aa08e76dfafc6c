package http

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"nhooyr.io/websocket"

	"switchyard/internal/admission"
	"switchyard/internal/protocol"
	"switchyard/internal/ratelimit"
	"switchyard/internal/testkit"
)

func TestTooManyConnectionsOfAUser(t *testing.T) {
	n := startKeyedNode(t, "*:rw", func(c *Config) { c.MaxPerUser = 2 })
	ann := withToken(tokenOf("ann", time.Hour, everyRoom))
	first := n.dial(ann)
	n.dial(ann)
	if got := n.dialRejected(ann); got != 4103 {
		t.Errorf("the third is closed with %d", got)
	}
	pending := n.dial(nil) // anonymous connections belong to no user and are not counted
	for range 3 {
		n.dial(nil)
	}
	n.dial(withToken(tokenOf("bob", time.Hour, everyRoom)))
	_ = first.ws.Close(websocket.StatusNormalClosure, "")
	testkit.Eventually(t, "a free slot", func() bool { return n.admission.CountOf("ann") == 1 })
	n.dial(ann)
	if got := n.metric(`websocket_connections_total{result="too_many_user"}`); got != "1" {
		t.Errorf("counted %q times", got)
	}
	pending.send(`{"type":"join","room":"a"}`)
	pending.until("joined")
}

// One user can't take all handshakes, from however many addresses.
func TestAUserConnectsAtALimitedRate(t *testing.T) {
	var clock manualClock
	n := startKeyedNode(t, "", func(c *Config) { c.MaxPerUser, c.MaxHandshakeRate, c.now = 20, 250, clock.now })
	ann, bob := tokenOf("ann", time.Hour, everyRoom), tokenOf("bob", time.Hour, everyRoom)
	connect := func(token string) int {
		return n.handshakeStatus("Authorization: Bearer " + token)
	}
	connects := func() (n int) {
		for status := connect(ann); status != http.StatusTooManyRequests; status = connect(ann) {
			if n++; status != http.StatusSwitchingProtocols {
				t.Fatalf("a handshake: %d", status)
			}
		}
		return n
	}
	if got := connects(); got != 40 {
		t.Errorf("a user connects %d times at once, want twice MAX_CONNECTIONS_PER_USER", got)
	}
	if got := connect(bob); got != http.StatusSwitchingProtocols {
		t.Errorf("another user: %d", got)
	}
	clock.advance(time.Second)
	if got := connects(); got != 5 {
		t.Errorf("a user connects %d times a second, want a fiftieth of MAX_HANDSHAKE_RATE", got)
	}
	if got := n.metric(`websocket_connections_total{result="rate_limited"}`); got != "2" {
		t.Errorf("%q are counted", got)
	}
	b := n.open(nil)
	b.send(`{"type":"auth","token":"%s"}`, ann)
	if got := b.until("error"); got["code"] != "rate_limited" {
		t.Errorf("by a frame: %v", got)
	}
	if got := b.closed(); got != 4103 {
		t.Errorf("by a frame: closed with %d", got)
	}
}

// A user that comes by an auth frame is counted as well.
func TestTooManyConnectionsOfAUserByFrame(t *testing.T) {
	n := startKeyedNode(t, "", func(c *Config) { c.MaxPerUser = 1 })
	ann := tokenOf("ann", time.Hour, everyRoom)
	n.dial(withToken(ann))
	b := n.open(nil)
	b.send(`{"type":"auth","token":"%s"}`, ann)
	if got := b.until("error"); got["code"] != "unavailable" || got["retry_after_ms"] != 1000.0 || !strings.Contains(got["message"].(string), "MAX_CONNECTIONS_PER_USER") {
		t.Errorf("%v", got)
	}
	if got := b.closed(); got != 4103 {
		t.Errorf("closed with %d", got)
	}
	// It is no fault of the service: the trigger of a deploy and the error budget count
	// unavailable.
	if faults, limits := n.metric(`websocket_errors_total{type="unavailable"}`), n.metric(`websocket_errors_total{type="rate_limited"}`); faults != "" && faults != "0" || limits != "1" {
		t.Errorf("counted %q times as unavailable and %q times as rate_limited", faults, limits)
	}
}

// A user whose connections over the limit are so many that they are refused over HTTP is not
// counted as a fault of the service, either.
func TestTooManyConnectionsOfAUserOverHTTP(t *testing.T) {
	u := &authenticator{bans: noBans{}, connects: ratelimit.NewKeyed(ratelimit.Limit{}), now: func() time.Duration { return 0 }}
	c := admission.NewCounter(admission.Limits{Connections: 3, PerUser: 1})
	if _, _, err := u.admitUser("ann", c.Admit(netip.Prefix{})); err != nil {
		t.Fatal(err)
	}
	slot := c.Admit(netip.Prefix{})
	code, result, err := u.admitUser("ann", slot)
	if code != 4103 || result != resultTooManyOfUser || !errors.Is(slot.RejectOrError(code, result, err), errTooManyOfUser) {
		t.Errorf("%d, %s, %v", code, result, err)
	}
}

// Each code of the wire has an HTTP status, also one that no HTTP call returns today: the
// status 0 would end the request with a panic.
func TestEveryErrorCodeHasAnHTTPStatus(t *testing.T) {
	for _, code := range []string{
		protocol.CodeMalformed, protocol.CodeInvalid, protocol.CodeUnknownType, protocol.CodeTooLarge, protocol.CodeConflict, protocol.CodeUnauthorized,
		protocol.CodeForbidden, protocol.CodeRateLimited, protocol.CodeTooManyRooms, protocol.CodeUnavailable, protocol.CodeInternal, "of the future",
	} {
		if p := problemFor(&protocol.Error{Code: code, Message: "x"}); p.Status < 400 || p.Status > 599 || p.Code != code {
			t.Errorf("%s: %+v", code, p)
		}
	}
}

// noBans are the bans of a service without any.
type noBans struct{}

// Ban implements Bans.
func (noBans) Ban(context.Context, string, time.Duration) error { return nil }

// Banned implements Bans.
func (noBans) Banned(string) (time.Duration, bool) { return 0, false }

// The publishes of a user on all nodes count against one limit.
func TestPublishesCountAgainstTheUsersLimit(t *testing.T) {
	l := &fakeLimits{}
	n := startKeyedNode(t, "*:rw", func(c *Config) { c.UserLimits = l })
	b := n.dial(withToken(tokenOf("ann", time.Hour, everyRoom)))
	b.send(`{"type":"publish","room":"a","data":1}`)
	b.until("ack")
	l.wait.Store(int64(1500 * time.Millisecond))
	b.send(`{"type":"signal","ref":"s","room":"a","data":1}`)
	if got := b.until("error"); got["code"] != "rate_limited" || got["retry_after_ms"] != 1500.0 || got["ref"] != "s" {
		t.Errorf("%v", got)
	}
	b.send(`{"type":"join","room":"a"}`) // does not count against the user's limit
	b.until("joined")
	anonymous := n.dial(nil) // has no user and no such limit
	anonymous.send(`{"type":"publish","room":"a","data":1}`)
	anonymous.until("ack")
	if got := l.calls.Load(); got != 2 {
		t.Errorf("AllowPublish was called %d times, want 2", got)
	}
}

// The reads of a user count against one limit, over the socket and over HTTP, and those of
// anonymous clients by their address.
func TestReadsCountAgainstTheLimitOfTheirReader(t *testing.T) {
	l := &fakeLimits{}
	n := startKeyedNode(t, "*:rw", func(c *Config) { trustLoopback(c); c.UserLimits = l })
	ann := tokenOf("ann", time.Hour, everyRoom)
	b, anonymous := n.dial(withToken(ann)), n.dial(fromAddress("198.51.100.7"))
	read := `{"type":"history","ref":"h","room":"a"}`
	b.send("%s", read)
	b.until("history")
	anonymous.send("%s", read)
	anonymous.until("history")
	if res, body := n.call("GET", "/v1/rooms/a/messages", ann, ""); res.StatusCode != 200 {
		t.Fatalf("%s %s", res.Status, body)
	}
	n.call("GET", "/v1/rooms/a/messages", testKey, "") // an API key has its own rate
	if got, want := l.readers(), []string{"u:ann", "a:198.51.100.7/32", "u:ann"}; !slices.Equal(got, want) {
		t.Errorf("reads were counted for %q, want %q", got, want)
	}
	l.wait.Store(int64(1500 * time.Millisecond))
	for _, c := range []*browser{b, anonymous} {
		c.send("%s", read)
		if got := c.until("error"); got["code"] != "rate_limited" || got["retry_after_ms"] != 1500.0 || got["ref"] != "h" {
			t.Errorf("%v", got)
		}
	}
	if res, body := n.call("GET", "/v1/rooms/a/messages", ann, ""); res.StatusCode != 429 || res.Header.Get("Retry-After") != "2" {
		t.Errorf("over HTTP: %s %s", res.Status, body)
	}
}

// fakeLimits returns wait for every publish of ann's, and counts the calls.
type fakeLimits struct {
	wait, calls atomic.Int64
	mu          sync.Mutex
	reads       []string
}

func (l *fakeLimits) AllowRead(reader string) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reads = append(l.reads, reader)
	return time.Duration(l.wait.Load())
}

func (l *fakeLimits) ChargeRead(string, int) {}

func (l *fakeLimits) readers() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.reads)
}

func (l *fakeLimits) AllowPublish(user string, bytes int) time.Duration {
	if user != "ann" || bytes == 0 {
		return time.Hour
	}
	l.calls.Add(1)
	return time.Duration(l.wait.Load())
}
