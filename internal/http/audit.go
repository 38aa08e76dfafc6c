package http

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"switchyard/internal/protocol"
)

// The events of the audit log, a closed set.
const (
	auditToken   = "token_refused"
	auditKey     = "key_refused"
	auditOrigin  = "origin_refused"
	auditHost    = "host_refused"
	auditRight   = "right_refused"
	auditLimit   = "limit_reached"
	auditRemoved = "user_removed" // a ban; the name is older, and stays
	auditDrain   = "drain_begun"
	auditUndrain = "drain_taken_back" // the name is older, and stays
)

var auditEvents = []string{auditToken, auditKey, auditOrigin, auditHost, auditRight, auditLimit, auditRemoved, auditDrain, auditUndrain}

const (
	// maxSameLines bounds the lines of one second that differ only in time and
	// request id. maxEventLines bounds the lines of one event and second. Further
	// lines are counted and summarized at the end of the second.
	maxSameLines  = 5
	maxEventLines = 100
	// maxDistinctLines bounds the different lines that are counted separately in a
	// second.
	maxDistinctLines = 1000
	// auditQueueSize bounds the lines that wait for the writer.
	auditQueueSize = 1024
	// maxAuditField bounds each text of a line, in bytes.
	maxAuditField = 256
	// auditCloseTimeout bounds the time to write the last lines at shutdown.
	auditCloseTimeout = time.Second
)

// Why a line was dropped: the values of the label reason of audit_dropped_total.
const (
	dropQueue = "queue_full"
	dropWrite = "write_failed"
)

// An auditLine is one line of the audit log. It contains no secret and no message.
type auditLine struct {
	Time  string `json:"time"`
	Audit string `json:"audit"` // always "v1"; distinguishes it from lines of the log
	Node  string `json:"node"`
	Event string `json:"event"`
	// Actor is the user, or api:<name> for an API key; empty if unknown.
	Actor string `json:"who,omitempty"`
	// From is the client's address.
	From string `json:"from,omitempty"`
	// Subject is the request, or the banned user.
	Subject string `json:"what,omitempty"`
	// Given is the refused origin or host.
	Given     string `json:"given,omitempty"`
	Reason    string `json:"why,omitempty"`
	RequestID string `json:"request_id,omitempty"`
	// Count is the number of similar lines that this line summarizes.
	Count int `json:"count,omitempty"`
}

// countKey returns the line without what differs between similar lines.
func (l *auditLine) countKey() auditLine {
	k := *l
	k.RequestID = ""
	return k
}

// A lineCount counts the similar lines of one second, and how many of them were
// not written.
type lineCount struct{ seen, suppressed int }

// An auditor writes the audit log. It never blocks its callers: lines for which the
// writer is too slow are dropped and counted. It is safe for concurrent use.
type auditor struct {
	node    string
	out     io.Writer // nil: lines are only counted
	log     *slog.Logger
	metrics *auditMetrics
	queue   chan []byte
	once    sync.Once
	stop    chan struct{}
	done    chan struct{} // closed when the last line is written

	// mu protects the fields below.
	mu             sync.Mutex
	second         int64 // the second that the counts below are for
	counts         map[auditLine]lineCount
	writtenByEvent map[string]int // lines written in this second, by event
	overflow       map[string]int // lines beyond maxDistinctLines, by event
}

func newAuditor(out io.Writer, node string, log *slog.Logger, m *auditMetrics) *auditor {
	a := &auditor{
		node: node, out: out, log: log, metrics: m,
		queue: make(chan []byte, auditQueueSize), stop: make(chan struct{}), done: make(chan struct{}),
		counts: map[auditLine]lineCount{}, writtenByEvent: map[string]int{}, overflow: map[string]int{},
	}
	if out == nil {
		close(a.done)
		return a
	}
	go a.loop()
	return a
}

// record writes an event, unless the limits of this second are reached. It
// truncates the line's texts.
func (a *auditor) record(l *auditLine) {
	a.metrics.events.WithLabelValues(l.Event).Inc()
	if a.out == nil {
		return
	}
	for _, text := range []*string{&l.Actor, &l.From, &l.Subject, &l.Given, &l.Reason} {
		*text = truncate(*text, maxAuditField)
	}
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if now.Unix() != a.second {
		a.writeSummaries(now)
		a.second = now.Unix()
	}
	key := l.countKey()
	n, known := a.counts[key]
	if !known && len(a.counts) >= maxDistinctLines {
		a.overflow[l.Event]++
		return
	}
	n.seen++
	if n.seen <= maxSameLines && a.writtenByEvent[l.Event] < maxEventLines {
		a.writtenByEvent[l.Event]++
		a.enqueue(l, now)
	} else {
		n.suppressed++
	}
	a.counts[key] = n
}

// writeSummaries writes how many lines of the last second were not written. Caller
// holds mu.
func (a *auditor) writeSummaries(now time.Time) {
	for key, n := range a.counts {
		if n.suppressed > 0 {
			key.Count = n.suppressed
			a.enqueue(&key, now)
		}
	}
	for event, n := range a.overflow {
		a.enqueue(&auditLine{Event: event, Reason: "more different lines than are counted separately in a second", Count: n}, now)
	}
	clear(a.counts)
	clear(a.writtenByEvent)
	clear(a.overflow)
}

// enqueue passes a line to the writer, or drops it if the queue is full. Caller
// holds mu.
func (a *auditor) enqueue(l *auditLine, now time.Time) {
	l.Time, l.Audit, l.Node = now.UTC().Format(protocol.TimeLayout), "v1", a.node
	select {
	case a.queue <- l.encode():
	default:
		a.metrics.dropped.WithLabelValues(dropQueue).Inc()
	}
}

// loop writes lines until stop closes, and then the remaining ones.
func (a *auditor) loop() {
	defer close(a.done)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	failing := false
	writeLine := func(line []byte) {
		_, err := a.out.Write(line)
		if err != nil {
			a.metrics.dropped.WithLabelValues(dropWrite).Inc()
		}
		if failed := err != nil; failed != failing {
			failing = failed
			a.log.Warn("the audit log", "can_be_written", !failed, "error", err)
		}
	}
	for {
		select {
		case line := <-a.queue:
			writeLine(line)
		case now := <-tick.C:
			a.mu.Lock()
			if now.Unix() != a.second {
				a.writeSummaries(now)
			}
			a.mu.Unlock()
		case <-a.stop:
			a.mu.Lock()
			a.writeSummaries(time.Now())
			a.mu.Unlock()
			for {
				select {
				case line := <-a.queue:
					writeLine(line)
				default:
					return
				}
			}
		}
	}
}

// close writes the remaining lines, for at most auditCloseTimeout or until ctx
// ends. Lines recorded after it are lost.
func (a *auditor) close(ctx context.Context) error {
	if a.out == nil {
		return nil
	}
	a.once.Do(func() { close(a.stop) })
	ctx, cancel := context.WithTimeout(ctx, auditCloseTimeout)
	defer cancel()
	select {
	case <-a.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("writing the last lines of the audit log: %w", ctx.Err())
	}
}

// encode returns the line as one line of JSON. It escapes characters that do not
// print, so that no name can end the line, color a terminal or reverse
// its text.
func (l *auditLine) encode() []byte {
	b, err := json.Marshal(l)
	if err != nil {
		panic(err) // strings and a number always encode
	}
	var out strings.Builder
	for _, r := range string(b) {
		switch {
		case r >= 0x20 && r < 0x7f || r >= 0x80 && unicode.IsPrint(r):
			out.WriteRune(r)
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			fmt.Fprintf(&out, `\u%04x\u%04x`, hi, lo)
		default:
			fmt.Fprintf(&out, `\u%04x`, r)
		}
	}
	out.WriteByte('\n')
	return []byte(out.String())
}

// truncate returns at most n bytes of s, without cutting a character.
func truncate(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
