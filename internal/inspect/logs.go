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
)

// A logLine is one line of the service's log, as far as it matters here.
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

// maxLine bounds a line that is read; the rest of a longer one is passed over.
const maxLine = 64 << 10

// startupBanner is how a node says for people where it is, once.
var startupBanner = []byte("Switchyard is at ")

// readLines calls take for each line that is one of the service's JSON, and
// counts those that are not.
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

// An ErrorKind is log lines that say the same.
type ErrorKind struct {
	Level       string    `json:"level"`
	Message     string    `json:"says"`
	Count       int       `json:"count"`
	First, Last time.Time `json:",omitzero"`
	// Example is the error of the newest one.
	Example string `json:"example,omitempty"`
}

// Errors is what the log and the metrics tell of errors.
type Errors struct {
	Since time.Time   `json:"since"`
	Kinds []ErrorKind `json:"kinds"`
	// Other counts lines that are none of the service's, such as a panic's.
	Other int `json:"other_lines"`
	// Codes are what clients were told, by code or close reason.
	Codes []Count `json:"codes"`
	// MetricsError says why Codes are missing.
	MetricsError string `json:"untold,omitempty"`
}

// A Count is how often something was.
type Count struct {
	Name  string  `json:"name"`
	Count float64 `json:"count"`
}

// ReadErrors gathers warnings and errors since a moment. p may be nil.
func ReadErrors(ctx context.Context, s Stack, p *Prometheus, since time.Time) (*Errors, error) {
	out := &Errors{Since: since.UTC()}
	kinds := map[string]*ErrorKind{}
	var err error
	out.Other, err = eachLine(ctx, s, since, func(l logLine) {
		if l.Level != "WARN" && l.Level != "ERROR" {
			return
		}
		k := kinds[l.Level+l.Msg]
		if k == nil {
			if len(kinds) >= maxKinds {
				out.Other++
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
	for _, k := range kinds {
		out.Kinds = append(out.Kinds, *k)
	}
	slices.SortFunc(out.Kinds, func(a, b ErrorKind) int {
		return cmp.Or(strings.Compare(a.Level, b.Level), cmp.Compare(b.Count, a.Count), strings.Compare(a.Message, b.Message))
	})
	if p == nil {
		return out, nil
	}
	out.Codes, err = p.increases(ctx, "websocket_errors_total", "type", time.Since(since))
	if err != nil {
		out.MetricsError = err.Error()
	}
	return out, nil
}

// maxKinds bounds what is told apart.
const maxKinds = 1000

// increases asks how much each series of a counter rose, by a label; the
// largest first, those that did not rise left out.
func (p *Prometheus) increases(ctx context.Context, metric, label string, span time.Duration) ([]Count, error) {
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
		b.WriteString("no error and no warning.\n")
	} else {
		fmt.Fprintf(&b, "%d kinds of errors and warnings:\n", len(e.Kinds))
		var rows [][]string
		for _, k := range e.Kinds {
			rows = append(rows, []string{k.Level, fmt.Sprint(k.Count), k.First.UTC().Format("01-02 15:04:05"), k.Last.UTC().Format("01-02 15:04:05"), k.Message, truncate(k.Example, 120)})
		}
		writeTable(&b, []string{"LEVEL", "COUNT", "FIRST", "LAST", "SAYS", "NEWEST ERROR"}, rows)
	}
	if e.Other > 0 {
		fmt.Fprintf(&b, "%d lines were not told apart: docker compose logs app_blue app_green shows them.\n", e.Other)
	}
	switch {
	case e.MetricsError != "":
		fmt.Fprintf(&b, "What clients were told is not known: %s\n", e.MetricsError)
	case len(e.Codes) > 0:
		b.WriteString("Clients were told:\n")
		var rows [][]string
		for _, c := range e.Codes {
			rows = append(rows, []string{c.Name, fmt.Sprintf("%.0f", c.Count)})
		}
		writeTable(&b, []string{"CODE", "COUNT"}, rows)
	}
	return b.String()
}

// truncate cuts text that is too long for a table.
func truncate(s string, n int) string {
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}
