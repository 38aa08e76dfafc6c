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

// The events of the audit log: a closed set.
const (
	auditToken   = "token_refused"
	auditKey     = "key_refused"
	auditOrigin  = "origin_refused"
	auditHost    = "host_refused"
	auditRight   = "right_refused"
	auditLimit   = "limit_reached"
	auditRemoved = "user_removed"
	auditDrain   = "drain_begun"
	auditUndrain = "drain_taken_back"
)

var auditEvents = []string{auditToken, auditKey, auditOrigin, auditHost, auditRight, auditLimit, auditRemoved, auditDrain, auditUndrain}

const (
	// maxSameLines is how many lines that differ in nothing but time and request
	// are written in a second, maxEventLines how many of one event. The rest is
	// counted, and told at the second's end.
	maxSameLines  = 5
	maxEventLines = 100
	// maxAuditSamples bounds how many kinds of lines are told apart in a second.
	maxAuditSamples = 1000
	// auditQueueSize is how many lines wait for the writer.
	auditQueueSize = 1024
	// maxAuditField bounds each text of a line, in bytes.
	maxAuditField = 256
	// auditCloseTimeout bounds what the last lines may take.
	auditCloseTimeout = time.Second
)

// Why a line is missing.
const (
	dropQueue = "queue_full"
	dropWrite = "write_failed"
)

// An auditLine is one line of the audit log. It holds no secret and no message.
type auditLine struct {
	Time  string `json:"time"`
	Audit string `json:"audit"` // always "v1": tells it from lines of the log
	Node  string `json:"node"`
	Event string `json:"event"`
	// Who is the user, or api:<name> of the key; left out when nobody knows.
	Who string `json:"who,omitempty"`
	// From is the client's address.
	From string `json:"from,omitempty"`
	// What was asked for, or done to whom.
	What string `json:"what,omitempty"`
	// Given is the origin or the host that was refused.
	Given     string `json:"given,omitempty"`
	Why       string `json:"why,omitempty"`
	RequestID string `json:"request_id,omitempty"`
	// Count is of how many more like this the line tells.
	Count int `json:"count,omitempty"`
}

// samplingKey is what two lines have in common of which only the number is told.
func (l *auditLine) samplingKey() auditLine {
	k := *l
	k.RequestID = ""
	return k
}

// A sampleCount is how many of a kind a second had, and of how many of them no
// line tells.
type sampleCount struct{ seen, suppressed int }

// An auditor writes the audit log. It never makes anybody wait: what the writer
// does not take in time is dropped and counted. Safe for concurrent use.
type auditor struct {
	node    string
	out     io.Writer // nil: only counts
	log     *slog.Logger
	metrics *auditMetrics
	queue   chan []byte
	once    sync.Once
	stop    chan struct{}
	done    chan struct{} // closed when the last line is written

	mu sync.Mutex
	// Protects following.
	second         int64 // the rest is about
	samples        map[auditLine]sampleCount
	writtenByEvent map[string]int // lines, by event
	overflow       map[string]int // beyond maxAuditSamples, by event
}

func newAuditor(out io.Writer, node string, log *slog.Logger, m *auditMetrics) *auditor {
	a := &auditor{
		node: node, out: out, log: log, metrics: m,
		queue: make(chan []byte, auditQueueSize), stop: make(chan struct{}), done: make(chan struct{}),
		samples: map[auditLine]sampleCount{}, writtenByEvent: map[string]int{}, overflow: map[string]int{},
	}
	if out == nil {
		close(a.done)
		return a
	}
	go a.loop()
	return a
}

// record takes an event. The line's texts are cut to their bound.
func (a *auditor) record(l *auditLine) {
	a.metrics.events.WithLabelValues(l.Event).Inc()
	if a.out == nil {
		return
	}
	for _, text := range []*string{&l.Who, &l.From, &l.What, &l.Given, &l.Why} {
		*text = truncate(*text, maxAuditField)
	}
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if now.Unix() != a.second {
		a.writeSummaries(now)
		a.second = now.Unix()
	}
	key := l.samplingKey()
	n, known := a.samples[key]
	if !known && len(a.samples) >= maxAuditSamples {
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
	a.samples[key] = n
}

// writeSummaries writes what the last second had more of than lines. Caller holds mu.
func (a *auditor) writeSummaries(now time.Time) {
	for key, n := range a.samples {
		if n.suppressed > 0 {
			key.Count = n.suppressed
			a.enqueue(&key, now)
		}
	}
	for event, n := range a.overflow {
		a.enqueue(&auditLine{Event: event, Why: "more kinds than are told apart in a second", Count: n}, now)
	}
	clear(a.samples)
	clear(a.writtenByEvent)
	clear(a.overflow)
}

// enqueue hands a line to the writer. Caller holds mu.
func (a *auditor) enqueue(l *auditLine, now time.Time) {
	l.Time, l.Audit, l.Node = now.UTC().Format(protocol.TimeLayout), "v1", a.node
	select {
	case a.queue <- l.encode():
	default:
		a.metrics.dropped.WithLabelValues(dropQueue).Inc()
	}
}

// loop writes lines until stop closes, and then what is left.
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

// close writes what is left, for a second at most or until ctx ends. Nothing is
// noted after it.
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

// encode is the line as one line of JSON. What does not print is escaped, so
// that nothing in a name can end the line, colour a terminal or turn its text
// around.
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

// truncate returns text of at most n bytes and of whole characters.
func truncate(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
