package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"switchyard/bench/report"
)

// A scaling is the table of one command, and its plot, if any: how the service behaves
// when something grows.
type scaling struct {
	command, title, variable string // variable is what grows, the first column's header
	columns                  []column
	plots                    []curve
}

type column struct {
	header string
	value  func(*report.Run) float64
}

// A curve is a value over the variable, of the runs that have word in their names.
type curve struct {
	name, word, unit string
	value            func(*report.Run) float64
}

func deliveryLatency(q func(*report.Latency) float64) func(*report.Run) float64 {
	return func(r *report.Run) float64 { return latencyAt(r.Delivery, q) }
}

func ackLatency(q func(*report.Latency) float64) func(*report.Run) float64 {
	return func(r *report.Run) float64 { return latencyAt(r.Ack, q) }
}

func p50(l *report.Latency) float64        { return l.P50 }
func p99(l *report.Latency) float64        { return l.P99 }
func p999(l *report.Latency) float64       { return l.P999 }
func maxLatency(l *report.Latency) float64 { return l.Max }

func perSecond(r *report.Run) float64  { return r.Rate }
func megabytes(r *report.Run) float64  { return float64(r.RSS) / 1e6 }
func kibEach(r *report.Run) float64    { return float64(r.RSS) / 1024 / float64(max(r.Connections, 1)) }
func connects(r *report.Run) float64   { return r.Connects }
func goroutines(r *report.Run) float64 { return float64(r.Goroutines) }

var scalings = []scaling{
	{"latency", "Latency below saturation", "load, of what one by one saturates", []column{
		{"deliveries/s", perSecond}, {"delivery p50 ms", deliveryLatency(p50)}, {"p99", deliveryLatency(p99)}, {"p99.9", deliveryLatency(p999)}, {"longest", deliveryLatency(maxLatency)},
		{"ack p50 ms", ackLatency(p50)}, {"p99", ackLatency(p99)}, {"p99.9", ackLatency(p999)},
	}, nil},
	{"fan", "Members of one room", "members", []column{
		{"k deliveries a core-second", perCore}, {"deliveries/s", perSecond}, {"delivery p50 ms", deliveryLatency(p50)}, {"p99", deliveryLatency(p99)},
	}, []curve{{"one message under way", "", "k deliveries a core-second", perCore}}},
	{"rooms", "Rooms", "rooms, and publishes/s", []column{
		{"stored/s", perSecond}, {"ack p50 ms", ackLatency(p50)}, {"p99", ackLatency(p99)},
	}, []curve{{"p50 at 5,000/s", "at 5000", "ack, ms", ackLatency(p50)}, {"p99 at 5,000/s", "at 5000", "ack, ms", ackLatency(p99)}}},
	{"idle", "Idle connections of one node", "connections", []column{
		{"MB", megabytes}, {"KiB each", kibEach}, {"connects/s", connects},
	}, []curve{{"resident size", "", "MB", megabytes}}},
	{"nodes", "Nodes, all on one core, 1,000 members of one room", "nodes, and load", []column{
		{"k deliveries a core-second", perCore}, {"delivery p50 ms", deliveryLatency(p50)}, {"p99", deliveryLatency(p99)},
	}, []curve{{"one message under way", "window", "k deliveries a core-second", perCore}}},
	{"stored", "Stored messages of a room", "asked", []column{
		{"p50 ms", ackLatency(p50)}, {"p99", ackLatency(p99)},
	}, []curve{
		{"publish, p50", "publish", "ms", ackLatency(p50)}, {"join with after, p50", "join", "ms", ackLatency(p50)},
		{"page of history, p50", "history", "ms", ackLatency(p50)},
	}},
	{"publish", "Where publishes go, both cores, 1,024 under way", "publishes into", []column{
		{"stored/s", perSecond}, {"ack p50 ms", ackLatency(p50)}, {"p99", ackLatency(p99)},
	}, nil},
	{"churn", "Connections that came and went", "connections", []column{
		{"connects/s", connects}, {"MB, all gone", megabytes}, {"heap MB", func(r *report.Run) float64 { return float64(r.Heap) / 1e6 }},
		{"goroutines", goroutines}, {"descriptors", func(r *report.Run) float64 { return float64(r.Descriptors) }},
	}, []curve{
		{"resident size", "", "MB, all gone", megabytes},
		{"heap", "", "MB, all gone", func(r *report.Run) float64 { return float64(r.Heap) / 1e6 }},
	}},
}

// The tables are between these marks of bench/GROWTH.md.
const tablesBegin, tablesEnd = "<!-- made by `make bench VERB=write` -->\n", "<!-- to here -->\n"

// writeScaling writes the tables and plots of the kept runs into bench/GROWTH.md.
func (r *runner) writeScaling(ctx context.Context) error {
	page := filepath.Join(r.opts.root, "bench", "GROWTH.md")
	text, err := os.ReadFile(page)
	if err != nil {
		return fmt.Errorf("results: %w", err)
	}
	before, rest, ok := strings.Cut(string(text), tablesBegin)
	_, after, there := strings.Cut(rest, tablesEnd)
	if !ok || !there {
		return errors.New("results: bench/GROWTH.md has lost the marks between which tables are written")
	}
	var out strings.Builder
	fmt.Fprintf(&out, "%s, last written at commit %s.\n", machineName(), r.commitName(ctx))
	for i := range scalings {
		if err := r.writeScalingTable(&out, &scalings[i]); err != nil {
			return err
		}
	}
	return os.WriteFile(page, []byte(before+tablesBegin+out.String()+tablesEnd+after), 0o644)
}

// writeScalingTable writes one table and its plot.
func (r *runner) writeScalingTable(out *strings.Builder, s *scaling) error {
	lines, err := r.readResults(s.command)
	if err != nil || len(lines) == 0 {
		return err
	}
	fmt.Fprintf(out, "\n### %s\n\n| %s |", s.title, s.variable)
	for _, c := range s.columns {
		fmt.Fprintf(out, " %s |", c.header)
	}
	out.WriteString("\n|---|" + strings.Repeat("---|", len(s.columns)) + "\n")
	for i := range lines {
		fmt.Fprintf(out, "| %s |", lines[i].Test)
		for _, c := range s.columns {
			if v := c.value(&lines[i]); v != 0 {
				fmt.Fprintf(out, " %s |", fourDigits(v))
			} else {
				out.WriteString(" – |")
			}
		}
		out.WriteString("\n")
	}
	if len(s.plots) == 0 {
		return nil
	}
	name := "plots/" + s.command + ".svg"
	fmt.Fprintf(out, "\n![%s](%s)\n", s.title, name)
	path := filepath.Join(r.opts.root, "bench", name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("results: %w", err)
	}
	return os.WriteFile(path, []byte(drawPlot(s, lines)), 0o644)
}

// fourDigits returns a number with four significant digits, without an exponent.
func fourDigits(v float64) string {
	if v >= 1000 {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'g', 4, 64)
}
