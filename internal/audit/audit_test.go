package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"switchyard/internal/testkit"
)

var longStorms = flag.Bool("storm.long", false, "run the tests of large numbers with their full numbers, as make storms does")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// parseLines parses an audit log.
func parseLines(t testing.TB, out *testkit.Logs) (all []Line) {
	t.Helper()
	for line := range strings.Lines(out.String()) {
		var l Line
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

// newTestLog returns a log and its metrics.
func newTestLog(t *testing.T, out io.Writer) (*Log, *metrics) {
	t.Helper()
	l := New(out, "n1", slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	return l, l.metrics
}

// A flood in one second is a few lines and a number: five lines of a kind and 100 of
// an event, as docs/limits.md says.
func TestAFloodDoesNotFloodTheAuditLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const sameLines, eventLines, textBytes = 5, 100, 256
		events := 5000
		if *longStorms {
			events = 20_000
		}
		out := new(testkit.Logs)
		a, m := newTestLog(t, out)
		for i := range events { // all within one second: a bubble's clock stands while it runs
			a.Record(&Line{Event: TokenRefused, From: "198.51.100.1", Reason: "same", RequestID: fmt.Sprint(i)})
			a.Record(&Line{Event: HostRefused, From: "198.51.100.1", Given: fmt.Sprint("host", i, strings.Repeat("é", textBytes))}) // each different
		}
		a.Record(&Line{Event: UserBanned, Actor: "api:shop", Subject: "ann"}) // counted beside the flood
		synctest.Wait()                                                       // the writer has written these
		if err := a.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		lines, counts := map[Event]int{}, map[Event]int{} // by event: lines about one event, and all that they count
		for _, l := range parseLines(t, out) {
			if l.Count == 0 {
				lines[l.Event]++
			}
			counts[l.Event] += max(l.Count, 1)
			if len(l.Given) > textBytes {
				t.Errorf("a text has %d bytes, want at most %d", len(l.Given), textBytes)
			}
		}
		if lines[TokenRefused] != sameLines || lines[HostRefused] != eventLines {
			t.Errorf("lines by event: %v, want %d of a kind and %d of an event", lines, sameLines, eventLines)
		}
		if counts[TokenRefused] != events || counts[HostRefused] != events || counts[UserBanned] != 1 {
			t.Errorf("the lines count %v events, want %d of each, and one removal", counts, events)
		}
		if got := int(testutil.ToFloat64(m.events.WithLabelValues(string(HostRefused)))); got != events {
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
	synctest.Test(t, func(t *testing.T) {
		const queued, lines = 1024, 3000
		stuck := &blockedWriter{make(chan struct{})}
		a, m := newTestLog(t, stuck)
		a.Record(&Line{Event: events[0], Subject: "being written"})
		synctest.Wait()
		for i := range lines {
			time.Sleep(time.Second) // so that no line is suppressed
			a.Record(&Line{Event: events[i%len(events)], Subject: fmt.Sprint(i)})
		}
		if got := testutil.ToFloat64(m.dropped.WithLabelValues(dropQueue)); got != lines-queued {
			t.Errorf("%v lines dropped, want %d", got, lines-queued)
		}
		if err := a.Close(t.Context()); err == nil {
			t.Error("close returns nil although lines were not written")
		}
		close(stuck.unblock)
		<-a.done

		disk := &fullDisk{}
		disk.full.Store(true)
		b, m := newTestLog(t, disk)
		b.Record(&Line{Event: KeyRefused, Subject: "lost"})
		testkit.Eventually(t, "the loss to be counted", func() bool { return testutil.ToFloat64(m.dropped.WithLabelValues(dropWrite)) == 1 })
		disk.full.Store(false)
		b.Record(&Line{Event: KeyRefused, Subject: "written"})
		if err := b.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := parseLines(t, &disk.out); len(got) != 1 || got[0].Subject != "written" {
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
		user, given = truncate(user, maxField), truncate(given, maxField)
		line := (&Line{Event: TokenRefused, Actor: user, Given: given, Reason: "why"}).encode()
		if n := bytes.IndexByte(line, '\n'); n != len(line)-1 || len(line) > 8*2*maxField+200 {
			t.Fatalf("%q", line)
		}
		for _, r := range string(line[:len(line)-1]) {
			if !unicode.IsPrint(r) || r == utf8.RuneError && !strings.ContainsRune(user+given, utf8.RuneError) {
				t.Fatalf("%q contains %U", line, r)
			}
		}
		var l Line
		if err := json.Unmarshal(line, &l); err != nil || l.Event != TokenRefused || l.Reason != "why" {
			t.Fatalf("%q: %+v %v", line, l, err)
		}
		if utf8.ValidString(user) && l.Actor != user {
			t.Fatalf("%q became %q", user, l.Actor)
		}
	})
}
