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
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"nhooyr.io/websocket"

	"switchyard/internal/testkit"
)

// auditLines are those of an audit log.
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

// Each thing that an operator would ask about later is one line: who, from
// where, what, why.
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
	dial(7, ann).closed() // one too many of ann's
	b.send(`{"type":"auth","token":"%s"}`, tokenOf("bob", time.Hour, everyRoom))
	b.until("error")
	n.call("POST", "/v1/users/ann/disconnect", testKey, `{"for":"1m"}`)
	b.closed()
	dial(8, ann).closed()
	for range 10 {
		get("/v1/rooms", with(9, "Authorization", "Bearer "+testKey))
	}
	n.findOrStartDrain(ScopeNode, "by a test")
	n.Undrain()
	if err := n.audit.close(t.Context()); err != nil {
		t.Fatal(err)
	}

	got := auditLines(t, out)
	for _, want := range []auditLine{
		{Event: auditOrigin, From: addr(1), What: "GET /ws", Given: "https://evil.example", Why: "ALLOWED_ORIGINS"},
		{Event: auditHost, From: addr(2), What: "GET /v1/rooms", Given: "rebound.example", Why: "ALLOWED_HOSTS"},
		{Event: auditKey, From: addr(3), What: "GET /v1/rooms", Why: "API_KEYS"},
		{Event: auditToken, From: addr(4), What: "GET /v1/rooms/a/messages", Why: "expired"},
		{Event: auditRight, Who: "ann", From: addr(5), What: "GET /v1/rooms/b/messages", Why: "right r"},
		{Event: auditToken, From: addr(6), What: "GET /ws", Why: "malformed"},
		{Event: auditRight, Who: "ann", From: addr(7), What: "join secret-room", Why: "right r"},
		{Event: auditLimit, Who: "ann", From: addr(7), What: "publish a", Why: "publishes"},
		{Event: auditLimit, Who: "ann", From: addr(7), What: "GET /ws", Why: "connections"},
		{Event: auditRight, Who: "ann", From: addr(7), What: "auth ", Why: "another user's"},
		{Event: auditRemoved, Who: "api:backend", What: "ann", Why: "1m0s, 1 connections"},
		{Event: auditRight, Who: "ann", From: addr(8), What: "GET /ws", Why: "removed"},
		{Event: auditLimit, Who: "api:backend", From: addr(9), What: "GET /v1/rooms", Why: "RATE_API"},
		{Event: auditDrain, What: "node", Why: "by a test"},
		{Event: auditUndrain, What: "node", Why: "by a test"},
	} {
		found := 0
		for _, l := range got {
			if l.Event == want.Event && l.Who == want.Who && (want.From == "" || l.From == want.From) &&
				l.What == want.What && l.Given == want.Given && strings.Contains(l.Why, want.Why) {
				found++
				if l.Node != "n1" || l.RequestID == "" && l.Event != auditDrain && l.Event != auditUndrain && l.Count == 0 {
					t.Errorf("%+v", l)
				}
			}
		}
		if found == 0 {
			t.Errorf("no line like %+v in\n%s", want, out)
		}
	}
	if strings.Contains(out.String(), "hush") || strings.Contains(out.String(), ann[:40]) {
		t.Errorf("the audit log holds a secret or a message:\n%s", out)
	}
}

// newTestAuditor is an auditor of its own, and what it counts.
func newTestAuditor(t *testing.T, out interface{ Write([]byte) (int, error) }) (*auditor, *auditMetrics) {
	t.Helper()
	m := newAuditMetrics(promauto.With(prometheus.NewRegistry()))
	a := newAuditor(out, "n1", slog.New(slog.DiscardHandler), &m)
	return a, &m
}

// A flood is a few lines and a number, and never more than that.
func TestAFloodDoesNotFloodTheAuditLog(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		out := new(testkit.Logs)
		a, m := newTestAuditor(t, out)
		began := time.Now()
		for i := range 20_000 {
			a.record(&auditLine{Event: auditToken, From: "198.51.100.1", Why: "same", RequestID: fmt.Sprint(i)})
			a.record(&auditLine{Event: auditHost, From: "198.51.100.1", Given: fmt.Sprint("host", i, strings.Repeat("é", maxAuditField))}) // each of its own kind
		}
		seconds := int(time.Since(began)/time.Second) + 2
		a.record(&auditLine{Event: auditRemoved, Who: "api:shop", What: "ann"}) // is not drowned
		if err := a.close(t.Context()); err != nil {
			t.Fatal(err)
		}
		got := auditLines(t, out)
		same, hosts, removed := 0, 0, 0
		single := map[string]int{} // lines that tell of one event
		for _, l := range got {
			if l.Count == 0 {
				single[l.Event]++
			}
			switch l.Event {
			case auditToken:
				same += max(l.Count, 1)
			case auditHost:
				hosts += max(l.Count, 1)
				if len(l.Given) > maxAuditField {
					t.Errorf("a text of %d bytes", len(l.Given))
				}
			case auditRemoved:
				removed++
			}
		}
		dropped := int(testutil.ToFloat64(m.dropped.WithLabelValues(dropQueue)))
		if dropped == 0 && (same != 20_000 || hosts != 20_000) || removed != 1 {
			t.Errorf("lines tell of %d and %d events, want 20,000 each, and of %d removals; %d dropped", same, hosts, removed, dropped)
		}
		if single[auditToken] > seconds*maxSameLines || single[auditHost] > seconds*maxEventLines {
			t.Errorf("in %d s: %v lines of their own", seconds, single)
		}
		if most := seconds * (maxSameLines + 1 + maxEventLines + maxAuditSamples + len(auditEvents)); len(got) > most {
			t.Errorf("%d lines in %d s", len(got), seconds)
		}
		if got := testutil.ToFloat64(m.events.WithLabelValues(auditHost)); got != 20_000 {
			t.Errorf("counted %v events", got)
		}
	})
}

// blockedWriter takes nothing until it is let go.
type blockedWriter struct{ unblock chan struct{} }

func (w *blockedWriter) Write(p []byte) (int, error) { <-w.unblock; return len(p), nil }

// fullDisk takes nothing for a while.
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
		stuck := &blockedWriter{make(chan struct{})}
		a, m := newTestAuditor(t, stuck)
		for i := range 5 * auditQueueSize {
			a.record(&auditLine{Event: auditEvents[i%len(auditEvents)], What: fmt.Sprint(i % 900)})
			a.mu.Lock()
			a.writeSummaries(time.Now()) // as if a second had passed
			a.mu.Unlock()
		}
		if got := testutil.ToFloat64(m.dropped.WithLabelValues(dropQueue)); got < 4*auditQueueSize-100 {
			t.Errorf("%v lines dropped", got)
		}
		if err := a.close(t.Context()); err == nil {
			t.Error("it says that all was written")
		}
		close(stuck.unblock)
		<-a.done

		disk := &fullDisk{}
		disk.full.Store(true)
		b, m := newTestAuditor(t, disk)
		b.record(&auditLine{Event: auditKey, What: "lost"})
		testkit.Eventually(t, "the loss to be counted", func() bool { return testutil.ToFloat64(m.dropped.WithLabelValues(dropWrite)) == 1 })
		disk.full.Store(false)
		b.record(&auditLine{Event: auditKey, What: "written"})
		if err := b.close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := auditLines(t, &disk.out); len(got) != 1 || got[0].What != "written" {
			t.Errorf("%+v", got)
		}
	})
}

// Whatever a name holds, a line is one line of JSON, without a byte that a
// terminal would act on.
func FuzzAuditLine(f *testing.F) {
	for _, s := range []string{"ann", "a\nb", "\x1b[31m", "\u202egnp.exe", "\u009b31m", "\"},{\"event\":\"x", "\xff\xfe", "\U0001f600", "\u2028", strings.Repeat("é", 300)} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, user, given string) {
		user, given = truncate(user, maxAuditField), truncate(given, maxAuditField)
		line := (&auditLine{Event: auditToken, Who: user, Given: given, Why: "why"}).encode()
		if n := bytes.IndexByte(line, '\n'); n != len(line)-1 || len(line) > 8*2*maxAuditField+200 {
			t.Fatalf("%q", line)
		}
		for _, r := range string(line[:len(line)-1]) {
			if !unicode.IsPrint(r) || r == utf8.RuneError && !strings.ContainsRune(user+given, utf8.RuneError) {
				t.Fatalf("%q holds %U", line, r)
			}
		}
		var l auditLine
		if err := json.Unmarshal(line, &l); err != nil || l.Event != auditToken || l.Why != "why" {
			t.Fatalf("%q: %+v %v", line, l, err)
		}
		if utf8.ValidString(user) && l.Who != user {
			t.Fatalf("%q became %q", user, l.Who)
		}
	})
}
