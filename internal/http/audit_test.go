package http

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"nhooyr.io/websocket"

	"switchyard/internal/audit"
	"switchyard/internal/drain"
	"switchyard/internal/testkit"
)

// auditLines parses an audit log.
func auditLines(t testing.TB, out *testkit.Logs) (all []audit.Line) {
	t.Helper()
	for text := range strings.Lines(out.String()) {
		var line audit.Line
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		all = append(all, line)
	}
	return all
}

// Each event that an operator may ask about later is one line: who, from where,
// what, why.
func TestTheAuditLogRecordsRefusals(t *testing.T) {
	out := new(testkit.Logs)
	var clock manualClock
	n := startKeyedNode(t, "", func(c *Config) {
		trustLoopback(c)
		c.Audit, c.MaxPerUser, c.MaxPerAddress, c.AllowedHosts, c.now = out, 1, 3, []string{"127.0.0.1"}, clock.now
		c.Rates.Publish, c.Rates.API, c.AuthQueryToken = 1, 3, true
	})
	addr := func(last int) string { return fmt.Sprint("198.51.100.", last) }
	with := func(last int, more ...string) http.Header {
		h := http.Header{"X-Forwarded-For": {addr(last)}}
		for i := 0; i < len(more); i += 2 {
			h.Set(more[i], more[i+1])
		}
		return h
	}
	dial := func(last int, token string) *browser {
		return n.open(&websocket.DialOptions{HTTPHeader: with(last, "Authorization", "Bearer "+token)})
	}
	get := func(path string, h http.Header) { n.request("GET", path, h, strings.NewReader("")) }
	hush := "hush-hush-hush-hush"
	ann := tokenOf("ann", time.Hour, `{"a":"rw"}`)

	n.handshakeStatus("X-Forwarded-For: "+addr(1), "Origin: https://evil.example")
	get("/v1/rooms", with(2, "Host", "rebound.example"))
	get("/v1/rooms?after=x&token="+hush, with(3, "Authorization", "Bearer "+hush))
	get("/v1/rooms/a/messages", with(4, "Authorization", "Bearer "+tokenOf("ann", -time.Hour, everyRoom)))
	get("/v1/rooms/b/messages", with(5, "Authorization", "Bearer "+ann))
	dial(6, hush).closed()
	b := dial(7, ann)
	b.welcome()
	b.send(`{"type":"join","room":"secret-room"}`)
	b.until("error")
	for range 3 {
		b.send(`{"type":"publish","room":"a","data":"%s"}`, hush)
	}
	b.until("error")
	dial(7, ann).closed() // one connection too many of ann's
	b.send(`{"type":"auth","token":"%s"}`, tokenOf("bob", time.Hour, everyRoom))
	b.until("error")
	n.call("POST", "/v1/users/ann/disconnect", testKey, `{"for":"1m"}`)
	b.closed()
	dial(8, ann).closed()
	for range 10 {
		get("/v1/rooms", with(9, "Authorization", "Bearer "+testKey))
	}
	n.drain.Start(drain.ScopeNode, "by a test")
	n.drain.Undrain()
	if err := n.audit.Close(t.Context()); err != nil {
		t.Fatal(err)
	}

	got := auditLines(t, out)
	for _, want := range []audit.Line{
		{Event: audit.OriginRefused, From: addr(1), Subject: "GET /ws", Given: "https://evil.example", Reason: "ALLOWED_ORIGINS: this service is at http://" + n.addr},
		{Event: audit.HostRefused, From: addr(2), Subject: "GET /v1/rooms", Given: "rebound.example", Reason: "ALLOWED_HOSTS: the request is for rebound.example"},
		{Event: audit.KeyRefused, From: addr(3), Subject: "GET /v1/rooms", Reason: "API_KEYS"},
		{Event: audit.TokenRefused, From: addr(4), Subject: "GET /v1/rooms/a/messages", Reason: "expired"},
		{Event: audit.RightRefused, Actor: "ann", From: addr(5), Subject: "GET /v1/rooms/b/messages", Reason: "right r"},
		{Event: audit.TokenRefused, From: addr(6), Subject: "GET /ws", Reason: "malformed"},
		{Event: audit.RightRefused, Actor: "ann", From: addr(7), Subject: "join secret-room", Reason: "right r"},
		{Event: audit.LimitReached, Actor: "ann", From: addr(7), Subject: "publish a", Reason: "publishes"},
		{Event: audit.LimitReached, Actor: "ann", From: addr(7), Subject: "GET /ws", Reason: "connections"},
		{Event: audit.RightRefused, Actor: "ann", From: addr(7), Subject: "auth ", Reason: "another user's"},
		{Event: audit.UserBanned, Actor: "api:backend", Subject: "ann", Reason: "1m0s, 1 connections"},
		{Event: audit.RightRefused, Actor: "ann", From: addr(8), Subject: "GET /ws", Reason: "removed"},
		{Event: audit.LimitReached, Actor: "api:backend", From: addr(9), Subject: "GET /v1/rooms", Reason: "RATE_API"},
		{Event: audit.DrainBegun, Subject: "node", Reason: "by a test"},
		{Event: audit.DrainCanceled, Subject: "node", Reason: "by a test"},
	} {
		found := 0
		for _, l := range got {
			if l.Event == want.Event && l.Actor == want.Actor && (want.From == "" || l.From == want.From) &&
				l.Subject == want.Subject && l.Given == want.Given && strings.Contains(l.Reason, want.Reason) {
				found++
				if l.Node != "n1" || l.RequestID == "" && l.Event != audit.DrainBegun && l.Event != audit.DrainCanceled && l.Count == 0 {
					t.Errorf("%+v", l)
				}
			}
		}
		if found == 0 {
			t.Errorf("no line matches %+v in\n%s", want, out)
		}
	}
	if strings.Contains(out.String(), "hush") || strings.Contains(out.String(), ann[:40]) {
		t.Errorf("the audit log contains a secret or a message:\n%s", out)
	}
}
