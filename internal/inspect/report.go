package inspect

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"switchyard/internal/checks"
	"switchyard/internal/stack"
)

// A Report describes what happened from From to To, for the record of a deploy or
// an incident.
type Report struct {
	Title    string
	From, To time.Time
	// Class is P0 to P3 for an incident; empty for a deploy.
	Class string
	// HistoryFile has one line of JSON for each past deploy. It need not exist.
	HistoryFile string
}

// pointsPerPlot is how many points a series of a plot has.
const pointsPerPlot = 300

var plots = []struct{ file, title, expr, unit string }{
	{"connections", "Open connections, by color", `sum by (color) (websocket_active_connections)`, ""},
	{"published", "Messages published per second", `sum by (color) (rate(websocket_messages_received_total{type="publish"}[1m]))`, ""},
	{"delivered", "Messages sent to clients per second", `sum by (color) (rate(websocket_messages_sent_total[1m]))`, ""},
	{"ack", "Time to ack, p99", `histogram_quantile(0.99, sum by (le, color) (rate(websocket_publish_duration_seconds_bucket[1m])))`, "s"},
	{"delivery", "Time to delivery, p99", `histogram_quantile(0.99, sum by (le, color) (rate(websocket_delivery_duration_seconds_bucket[1m])))`, "s"},
	{"errors", "Errors per second, by type", `sum by (type) (rate(websocket_errors_total[1m])) > 0`, ""},
	{"ends", "Connections ended per second, by reason", `sum by (reason) (rate(websocket_disconnections_total[1m])) > 0`, ""},
	{"memory", "Resident memory of nodes, by color", `sum by (color) (process_resident_memory_bytes{job="websocket-app"})`, "B"},
}

// Write writes report.md and its plots into a folder, which it creates, and
// returns the path of report.md. Where Prometheus does not answer, the report says
// so instead of the values.
func (r *Report) Write(ctx context.Context, s Stack, p *stack.Prometheus, folder string) (path string, err error) {
	if !r.From.Before(r.To) {
		return "", fmt.Errorf("--from %s must be before --to %s", r.From.Format(time.RFC3339), r.To.Format(time.RFC3339))
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return "", fmt.Errorf("--out: %w", err)
	}
	deploys, err := r.readDeploys()
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n\n", r.Title)
	fmt.Fprintf(&b, "From %s to %s (%v), written %s.\n\n", r.From.UTC().Format(time.RFC3339), r.To.UTC().Format(time.RFC3339), round(r.To.Sub(r.From)), time.Now().UTC().Format(time.RFC3339))
	if r.Class != "" {
		fmt.Fprintf(&b, "Class: **%s**. Lead: … Declared: … Resolved: …\n\n", r.Class)
	}
	b.WriteString("## Effect on users\n\n")
	r.writeSummary(ctx, p, &b)
	b.WriteString("## Deploys\n\n")
	markers := r.writeDeploys(deploys, &b)
	b.WriteString("## Alerts\n\n")
	r.writeAlerts(ctx, p, &b)
	b.WriteString("## Measurements\n\n")
	if err := r.writePlots(ctx, p, folder, markers, &b); err != nil {
		return "", err
	}
	b.WriteString("## Errors in the log output of nodes\n\n")
	r.writeErrors(ctx, s, &b)
	if r.Class != "" {
		b.WriteString(postmortemTemplate)
	}
	path = filepath.Join(folder, "report.md")
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		return "", fmt.Errorf("--out: %w", err)
	}
	return path, nil
}

// postmortemTemplate is the part of an incident's report that people fill in.
const postmortemTemplate = `## What happened

- Detected by (alert, user, chance) at:
- First step that helped, at:
- Back to normal at:

## Why

- What broke:
- Why no check caught it before:
- What went well:

## Action items

| action | owner | due |
|---|---|---|
| | | |
`

var totals = []struct{ name, expr, unit string }{
	{"most connections at once", `max_over_time(sum(websocket_active_connections)%s)`, ""},
	{"handshakes accepted", `sum(increase(websocket_connections_total{result="ok"}%s))`, ""},
	{"handshakes rejected", `sum(increase(websocket_connections_total{result!="ok"}%s)) or vector(0)`, ""},
	{"published", `sum(increase(websocket_messages_received_total{type="publish"}%s)) or vector(0)`, ""},
	{"sent to clients", `sum(increase(websocket_messages_sent_total%s))`, ""},
	{"server errors (internal, unavailable)", `sum(increase(websocket_errors_total{type=~"internal|unavailable"}%s)) or vector(0)`, ""},
	{"5xx answers of pages and of the HTTP API", `sum(increase(http_requests_total{code=~"5..",route!="/readyz"}%s)) or vector(0)`, ""},
	{"ack, p99", `histogram_quantile(0.99, sum by (le) (rate(websocket_publish_duration_seconds_bucket%s)))`, "s"},
	{"delivery, p99", `histogram_quantile(0.99, sum by (le) (rate(websocket_delivery_duration_seconds_bucket%s)))`, "s"},
	{"clients moved", `sum(increase(websocket_moves_total{result="moved"}%s)) or vector(0)`, ""},
	{"clients lost while moving", `sum(increase(websocket_moves_total{result="lost"}%s)) or vector(0)`, ""},
	{"gap repairs (holes filled from the log)", `sum(increase(websocket_repairs_total%s)) or vector(0)`, ""},
}

func (r *Report) writeSummary(ctx context.Context, p *stack.Prometheus, b *strings.Builder) {
	span := fmt.Sprintf("[%ds]", max(int(r.To.Sub(r.From).Seconds()), 60))
	b.WriteString("| measurement | value |\n|---|---|\n")
	for _, t := range totals {
		s := span
		if strings.HasPrefix(t.expr, "max_over_time") {
			s = strings.TrimSuffix(span, "]") + ":15s]"
		}
		value, ok, err := p.QueryValue(ctx, fmt.Sprintf(t.expr, s), r.To)
		switch {
		case err != nil:
			fmt.Fprintf(b, "| %s | unknown: %s |\n", t.name, strings.ReplaceAll(err.Error(), "|", "/"))
			if errors.Is(err, stack.ErrNoPrometheus) {
				b.WriteString("\n")
				return
			}
		case !ok:
			fmt.Fprintf(b, "| %s | – |\n", t.name)
		default:
			fmt.Fprintf(b, "| %s | %s |\n", t.name, checks.FormatValue(value, t.unit))
		}
	}
	b.WriteString("\n")
}

// A pastDeploy has the keys of a line of the history that a report shows.
type pastDeploy struct {
	ID      string    `json:"id"`
	Outcome string    `json:"outcome"`
	Color   string    `json:"color"`
	Image   any       `json:"image"`
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended"`
	Reason  string    `json:"reason"`
}

// image returns the reference of the deployed image; entries that earlier
// releases wrote have it as a string.
func (p pastDeploy) image() string {
	if m, ok := p.Image.(map[string]any); ok {
		for _, k := range []string{"ref", "Ref"} {
			if s, ok := m[k].(string); ok {
				return s
			}
		}
	}
	s, _ := p.Image.(string)
	return s
}

// readDeploys returns the deploys that overlap the span.
func (r *Report) readDeploys() (out []pastDeploy, err error) {
	f, err := os.Open(r.HistoryFile)
	if errors.Is(err, fs.ErrNotExist) || r.HistoryFile == "" {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read past deploys: %w", err)
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var d pastDeploy
		if json.Unmarshal(lines.Bytes(), &d) != nil {
			continue // a command that was killed left half a line
		}
		if d.Ended.After(r.From) && d.Started.Before(r.To) {
			out = append(out, d)
		}
	}
	return out, lines.Err()
}

func (r *Report) writeDeploys(deploys []pastDeploy, b *strings.Builder) (markers []Marker) {
	if len(deploys) == 0 {
		b.WriteString("None in this span.\n\n")
		return nil
	}
	b.WriteString("| began | took | id | image | outcome | live afterwards | reason |\n|---|---|---|---|---|---|---|\n")
	for _, d := range deploys {
		fmt.Fprintf(b, "| %s | %v | %s | %s | %s | %s | %s |\n", d.Started.UTC().Format(time.RFC3339), round(d.Ended.Sub(d.Started)), d.ID, d.image(), d.Outcome, d.Color, strings.ReplaceAll(d.Reason, "|", "/"))
		markers = append(markers, Marker{d.Started, d.ID + " began"}, Marker{d.Ended, d.ID + " " + d.Outcome})
	}
	b.WriteString("\n")
	return markers
}

func (r *Report) writeAlerts(ctx context.Context, p *stack.Prometheus, b *strings.Builder) {
	fired, err := p.QueryRange(ctx, `max by (alertname, severity) (ALERTS{alertstate="firing",alertname!="Watchdog"})`, r.From, r.To, pointsPerPlot)
	switch {
	case err != nil:
		fmt.Fprintf(b, "Unknown: %v\n\n", err)
		return
	case len(fired) == 0:
		b.WriteString("None fired.\n\n")
		return
	}
	slices.SortFunc(fired, func(x, y stack.Series) int {
		return cmp.Or(x.Times[0].Compare(y.Times[0]), strings.Compare(x.Labels["alertname"], y.Labels["alertname"]))
	})
	b.WriteString("| alert | severity | from | to |\n|---|---|---|---|\n")
	for _, f := range fired {
		fmt.Fprintf(b, "| %s | %s | %s | %s |\n", f.Labels["alertname"], f.Labels["severity"],
			f.Times[0].UTC().Format(time.RFC3339), f.Times[len(f.Times)-1].UTC().Format(time.RFC3339))
	}
	b.WriteString("\n")
}

func (r *Report) writePlots(ctx context.Context, p *stack.Prometheus, folder string, markers []Marker, b *strings.Builder) error {
	for _, q := range plots {
		series, err := p.QueryRange(ctx, q.expr, r.From, r.To, pointsPerPlot)
		if err != nil {
			fmt.Fprintf(b, "%s: unknown: %v\n\n", q.title, err)
			if errors.Is(err, stack.ErrNoPrometheus) {
				return nil
			}
			continue
		}
		if len(series) == 0 {
			fmt.Fprintf(b, "%s: nothing in this span.\n\n", q.title)
			continue
		}
		name := q.file + ".svg"
		if err := os.WriteFile(filepath.Join(folder, name), []byte(plot(q.title, q.unit, series, r.From, r.To, markers)), 0o644); err != nil {
			return fmt.Errorf("--out: %w", err)
		}
		fmt.Fprintf(b, "![%s](%s)\n\n", q.title, name)
	}
	return nil
}

func (r *Report) writeErrors(ctx context.Context, s Stack, b *strings.Builder) {
	e, err := readErrorLog(ctx, s, r.From, r.To)
	switch {
	case err != nil:
		fmt.Fprintf(b, "Unknown: %s\n\n", strings.ReplaceAll(err.Error(), "\n", "; "))
		return
	case len(e.Kinds) == 0:
		b.WriteString("None.\n\n")
		return
	}
	b.WriteString("| level | count | first | last | message | newest error |\n|---|---|---|---|---|---|\n")
	for _, k := range e.Kinds {
		fmt.Fprintf(b, "| %s | %d | %s | %s | %s | %s |\n", k.Level, k.Count, k.First.UTC().Format(time.RFC3339), k.Last.UTC().Format(time.RFC3339),
			strings.ReplaceAll(k.Message, "|", "/"), strings.ReplaceAll(truncate(k.Example, 160), "|", "/"))
	}
	b.WriteString("\n")
}
