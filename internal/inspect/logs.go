package inspect

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"switchyard/internal/stack"
)

// A logLine has the keys of the service's log that this package reads.
type logLine struct {
	Time     time.Time `json:"time"`
	Level    string    `json:"level"`
	Msg      string    `json:"msg"`
	Error    string    `json:"error"`
	Code     int       `json:"code"`
	Reason   string    `json:"reason"`
	Remote   string    `json:"remote"`
	Duration string    `json:"duration"`
}

// maxLine bounds a line of the log, in bytes. A longer one is counted and not
// parsed.
const maxLine = 64 << 10

// startupBanner begins the line that a node prints for people at its start.
var startupBanner = []byte("Switchyard is at ")

// readLines calls handle for each line of JSON that the service wrote, and counts
// other lines.
func readLines(r io.Reader, handle func(logLine)) (other int, err error) {
	lines := bufio.NewReaderSize(r, maxLine)
	for {
		b, err := lines.ReadSlice('\n')
		long := err == bufio.ErrBufferFull //nolint:errorlint // as bufio documents
		for err == bufio.ErrBufferFull {   //nolint:errorlint // as bufio documents
			_, err = lines.ReadSlice('\n')
		}
		if b = bytes.TrimSpace(b); len(b) > 0 && !bytes.HasPrefix(b, startupBanner) {
			var l logLine
			if long || json.Unmarshal(b, &l) != nil || l.Msg == "" {
				other++
			} else {
				handle(l)
			}
		}
		if err == io.EOF {
			return other, nil
		}
		if err != nil {
			return other, fmt.Errorf("read the log: %w", err)
		}
	}
}

// eachLine reads the log of all nodes since a moment.
func eachLine(ctx context.Context, s Stack, since time.Time, handle func(logLine)) (other int, err error) {
	reader, writer := io.Pipe()
	go func() { _ = writer.CloseWithError(s.Logs(ctx, since, writer, nodeServices...)) }()
	defer func() { _ = reader.Close() }()
	return readLines(reader, handle)
}

// An ErrorKind counts the log lines with the same level and message.
type ErrorKind struct {
	Level       string    `json:"level"`
	Message     string    `json:"says"`
	Count       int       `json:"count"`
	First, Last time.Time `json:",omitzero"`
	// Example is the error of the newest line.
	Example string `json:"example,omitempty"`
}

// Errors summarizes the errors in the log and in the metrics.
type Errors struct {
	Since time.Time   `json:"since"`
	Kinds []ErrorKind `json:"kinds"`
	// Other counts lines that are in no kind: those that the service did not write
	// as JSON, such as a panic's, and those beyond maxKinds.
	Other int `json:"other_lines"`
	// Codes counts the errors that were sent to clients, by code.
	Codes []Count `json:"codes"`
	// MetricsError says why Codes are missing.
	MetricsError string `json:"untold,omitempty"`
}

// A Count is a name and how often it occurred.
type Count struct {
	Name  string  `json:"name"`
	Count float64 `json:"count"`
}

// ReadErrors summarizes warnings and errors since a moment. Without Prometheus (p
// is nil) it has only what the log says.
func ReadErrors(ctx context.Context, s Stack, p *stack.Prometheus, since time.Time) (*Errors, error) {
	out, err := readErrorLog(ctx, s, since, time.Time{})
	if err != nil || p == nil {
		return out, err
	}
	if out.Codes, err = increases(ctx, p, "websocket_errors_total", "type", time.Since(since)); err != nil {
		out.MetricsError = err.Error()
	}
	return out, nil
}

// readErrorLog summarizes the warnings and errors of the log from since until
// the moment until, or to its end if that is zero.
func readErrorLog(ctx context.Context, s Stack, since, until time.Time) (*Errors, error) {
	out := &Errors{Since: since.UTC()}
	kinds := map[string]*ErrorKind{}
	beyondMax := 0 // lines of kinds beyond maxKinds
	other, err := eachLine(ctx, s, since, func(l logLine) {
		if l.Level != "WARN" && l.Level != "ERROR" || !until.IsZero() && l.Time.After(until) {
			return
		}
		k := kinds[l.Level+l.Msg]
		if k == nil {
			if len(kinds) >= maxKinds {
				beyondMax++
				return
			}
			k = &ErrorKind{Level: l.Level, Message: l.Msg, First: l.Time}
			kinds[l.Level+l.Msg] = k
		}
		k.Count++
		k.Last, k.Example = l.Time, cmp.Or(l.Error, k.Example)
	})
	if err != nil {
		return nil, err
	}
	out.Other = other + beyondMax
	for _, k := range kinds {
		out.Kinds = append(out.Kinds, *k)
	}
	slices.SortFunc(out.Kinds, func(a, b ErrorKind) int {
		return cmp.Or(strings.Compare(a.Level, b.Level), cmp.Compare(b.Count, a.Count), strings.Compare(a.Message, b.Message))
	})
	return out, nil
}

// maxKinds bounds the kinds of errors that are kept apart.
const maxKinds = 1000

// increases returns how much a counter rose over a span for each value of a
// label, the largest first, without those that did not rise.
func increases(ctx context.Context, p *stack.Prometheus, metric, label string, span time.Duration) ([]Count, error) {
	samples, err := p.Query(ctx, fmt.Sprintf("sum by (%s) (increase(%s[%ds]))", label, metric, max(int(span.Seconds()), 60)))
	if err != nil {
		return nil, err
	}
	var out []Count
	for _, s := range samples {
		if s.Value >= 0.5 {
			out = append(out, Count{s.Labels[label], s.Value})
		}
	}
	slices.SortFunc(out, func(a, b Count) int { return cmp.Or(cmp.Compare(b.Count, a.Count), strings.Compare(a.Name, b.Name)) })
	return out, nil
}

func (e *Errors) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Since %s the nodes logged ", e.Since.Format(time.RFC3339))
	if len(e.Kinds) == 0 {
		b.WriteString("no errors or warnings.\n")
	} else {
		fmt.Fprintf(&b, "%d kinds of errors and warnings:\n", len(e.Kinds))
		var rows [][]string
		for _, k := range e.Kinds {
			rows = append(rows, []string{k.Level, fmt.Sprint(k.Count), k.First.UTC().Format("01-02 15:04:05"), k.Last.UTC().Format("01-02 15:04:05"), k.Message, truncate(k.Example, 120)})
		}
		writeTable(&b, []string{"LEVEL", "COUNT", "FIRST", "LAST", "MESSAGE", "NEWEST ERROR"}, rows)
	}
	if e.Other > 0 {
		fmt.Fprintf(&b, "%d other lines: docker compose logs app_blue app_green shows them.\n", e.Other)
	}
	switch {
	case e.MetricsError != "":
		fmt.Fprintf(&b, "The errors sent to clients are unknown: %s\n", e.MetricsError)
	case len(e.Codes) > 0:
		b.WriteString("Errors sent to clients:\n")
		var rows [][]string
		for _, c := range e.Codes {
			rows = append(rows, []string{c.Name, fmt.Sprintf("%.0f", c.Count)})
		}
		writeTable(&b, []string{"CODE", "COUNT"}, rows)
	}
	return b.String()
}

// truncate joins the words of s by single spaces and cuts it to n characters.
func truncate(s string, n int) string {
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}
