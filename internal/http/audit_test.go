package http

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"nhooyr.io/websocket"

	"switchyard/internal/drain"
	"switchyard/internal/testkit"
)

// auditLines parses an audit log.
func auditLines(t testing.TB, out *testkit.Logs) (all []auditLine) {
	t.Helper()
	for line := range strings.Lines(out.String()) {
		var l auditLine
		d := json.NewDecoder(strings.NewReader(line))
		d.DisallowUnknownFields()
		if err := d.Decode(&l); err != nil || l.Audit != "v1" {
			t.Fatalf("%q: %v", line, err)
		}
		if _, err := time.Parse(time.RFC3339, l.Time); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		all = append(all, l)
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
	if err := n.audit.close(t.Context()); err != nil {
		t.Fatal(err)
	}

	got := auditLines(t, out)
	for _, want := range []auditLine{
		{Event: auditOrigin, From: addr(1), Subject: "GET /ws", Given: "https://evil.example", Reason: "ALLOWED_ORIGINS"},
		{Event: auditHost, From: addr(2), Subject: "GET /v1/rooms", Given: "rebound.example", Reason: "ALLOWED_HOSTS"},
		{Event: auditKey, From: addr(3), Subject: "GET /v1/rooms", Reason: "API_KEYS"},
		{Event: auditToken, From: addr(4), Subject: "GET /v1/rooms/a/messages", Reason: "expired"},
		{Event: auditRight, Actor: "ann", From: addr(5), Subject: "GET /v1/rooms/b/messages", Reason: "right r"},
		{Event: auditToken, From: addr(6), Subject: "GET /ws", Reason: "malformed"},
		{Event: auditRight, Actor: "ann", From: addr(7), Subject: "join secret-room", Reason: "right r"},
		{Event: auditLimit, Actor: "ann", From: addr(7), Subject: "publish a", Reason: "publishes"},
		{Event: auditLimit, Actor: "ann", From: addr(7), Subject: "GET /ws", Reason: "connections"},
		{Event: auditRight, Actor: "ann", From: addr(7), Subject: "auth ", Reason: "another user's"},
		{Event: auditRemoved, Actor: "api:backend", Subject: "ann", Reason: "1m0s, 1 connections"},
		{Event: auditRight, Actor: "ann", From: addr(8), Subject: "GET /ws", Reason: "removed"},
		{Event: auditLimit, Actor: "api:backend", From: addr(9), Subject: "GET /v1/rooms", Reason: "RATE_API"},
		{Event: auditDrain, Subject: "node", Reason: "by a test"},
		{Event: auditUndrain, Subject: "node", Reason: "by a test"},
	} {
		found := 0
		for _, l := range got {
			if l.Event == want.Event && l.Actor == want.Actor && (want.From == "" || l.From == want.From) &&
				l.Subject == want.Subject && l.Given == want.Given && strings.Contains(l.Reason, want.Reason) {
				found++
				if l.Node != "n1" || l.RequestID == "" && l.Event != auditDrain && l.Event != auditUndrain && l.Count == 0 {
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

// newTestAuditor returns an auditor and its metrics.
func newTestAuditor(t *testing.T, out interface{ Write([]byte) (int, error) }) (*auditor, *auditMetrics) {
	t.Helper()
	m := newAuditMetrics(promauto.With(prometheus.NewRegistry()))
	a := newAuditor(out, "n1", slog.New(slog.DiscardHandler), &m)
	return a, &m
}

// A flood in one second is a few lines and a number: five lines of a kind and 100 of
// an event, as docs/limits.md says.
func TestAFloodDoesNotFloodTheAuditLog(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		const sameLines, eventLines, textBytes = 5, 100, 256
		events := many(5000, 20_000)
		out := new(testkit.Logs)
		a, m := newTestAuditor(t, out)
		for i := range events { // all within one second: a bubble's clock stands while it runs
			a.record(&auditLine{Event: auditToken, From: "198.51.100.1", Reason: "same", RequestID: fmt.Sprint(i)})
			a.record(&auditLine{Event: auditHost, From: "198.51.100.1", Given: fmt.Sprint("host", i, strings.Repeat("é", textBytes))}) // each different
		}
		a.record(&auditLine{Event: auditRemoved, Actor: "api:shop", Subject: "ann"}) // counted beside the flood
		synctest.Wait()                                                              // the writer has written these
		if err := a.close(t.Context()); err != nil {
			t.Fatal(err)
		}
		lines, counts := map[string]int{}, map[string]int{} // by event: lines about one event, and all that they count
		for _, l := range auditLines(t, out) {
			if l.Count == 0 {
				lines[l.Event]++
			}
			counts[l.Event] += max(l.Count, 1)
			if len(l.Given) > textBytes {
				t.Errorf("a text has %d bytes, want at most %d", len(l.Given), textBytes)
			}
		}
		if lines[auditToken] != sameLines || lines[auditHost] != eventLines {
			t.Errorf("lines by event: %v, want %d of a kind and %d of an event", lines, sameLines, eventLines)
		}
		if counts[auditToken] != events || counts[auditHost] != events || counts[auditRemoved] != 1 {
			t.Errorf("the lines count %v events, want %d of each, and one removal", counts, events)
		}
		if got := int(testutil.ToFloat64(m.events.WithLabelValues(auditHost))); got != events {
			t.Errorf("the metric counts %v events, want %d", got, events)
		}
	})
}

// blockedWriter blocks until unblock is closed.
type blockedWriter struct{ unblock chan struct{} }

func (w *blockedWriter) Write(p []byte) (int, error) { <-w.unblock; return len(p), nil }

// fullDisk fails while full is set.
type fullDisk struct {
	full atomic.Bool
	out  testkit.Logs
}

func (w *fullDisk) Write(p []byte) (int, error) {
	if w.full.Load() {
		return 0, errors.New("no space left on device")
	}
	return w.out.Write(p)
}

// A reader of the log that hangs, or a full disk, costs lines and nothing else.
func TestTheAuditLogNeverBlocks(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		const queued, lines = 1024, 3000
		stuck := &blockedWriter{make(chan struct{})}
		a, m := newTestAuditor(t, stuck)
		a.record(&auditLine{Event: auditEvents[0], Subject: "being written"})
		synctest.Wait()
		for i := range lines {
			time.Sleep(time.Second) // so that no line is suppressed
			a.record(&auditLine{Event: auditEvents[i%len(auditEvents)], Subject: fmt.Sprint(i)})
		}
		if got := testutil.ToFloat64(m.dropped.WithLabelValues(dropQueue)); got != lines-queued {
			t.Errorf("%v lines dropped, want %d", got, lines-queued)
		}
		if err := a.close(t.Context()); err == nil {
			t.Error("close returns nil although lines were not written")
		}
		close(stuck.unblock)
		<-a.done

		disk := &fullDisk{}
		disk.full.Store(true)
		b, m := newTestAuditor(t, disk)
		b.record(&auditLine{Event: auditKey, Subject: "lost"})
		testkit.Eventually(t, "the loss to be counted", func() bool { return testutil.ToFloat64(m.dropped.WithLabelValues(dropWrite)) == 1 })
		disk.full.Store(false)
		b.record(&auditLine{Event: auditKey, Subject: "written"})
		if err := b.close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := auditLines(t, &disk.out); len(got) != 1 || got[0].Subject != "written" {
			t.Errorf("got %+v", got)
		}
	})
}

// Whatever a name contains, a line is one line of JSON, without a byte that a
// terminal would interpret.
func FuzzAuditLine(f *testing.F) {
	for _, s := range []string{"ann", "a\nb", "\x1b[31m", "\u202egnp.exe", "\u009b31m", "\"},{\"event\":\"x", "\xff\xfe", "\U0001f600", "\u2028", strings.Repeat("é", 300)} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, user, given string) {
		user, given = truncate(user, maxAuditField), truncate(given, maxAuditField)
		line := (&auditLine{Event: auditToken, Actor: user, Given: given, Reason: "why"}).encode()
		if n := bytes.IndexByte(line, '\n'); n != len(line)-1 || len(line) > 8*2*maxAuditField+200 {
			t.Fatalf("%q", line)
		}
		for _, r := range string(line[:len(line)-1]) {
			if !unicode.IsPrint(r) || r == utf8.RuneError && !strings.ContainsRune(user+given, utf8.RuneError) {
				t.Fatalf("%q contains %U", line, r)
			}
		}
		var l auditLine
		if err := json.Unmarshal(line, &l); err != nil || l.Event != auditToken || l.Reason != "why" {
			t.Fatalf("%q: %+v %v", line, l, err)
		}
		if utf8.ValidString(user) && l.Actor != user {
			t.Fatalf("%q became %q", user, l.Actor)
		}
	})
}
