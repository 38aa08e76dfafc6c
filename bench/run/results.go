package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"switchyard/bench/report"
)

// A figure is a row of RESULTS.md: one value of the runs of one test.
type figure struct {
	label         string
	test          string
	unit          string
	value         func(*report.Run) float64
	required      float64
	goal          float64
	lowerIsBetter bool
}

func perCore(r *report.Run) float64 { return r.PerCore / 1e3 }

func latencyAt(l *report.Latency, q func(*report.Latency) float64) float64 {
	if l == nil {
		return 0
	}
	return q(l)
}

var figures = []figure{
	{"fan-out to 1,000, one message under way", "fan-out, 1 under way", "k deliveries a core-second", perCore, 200, 290, false},
	{"fan-out to 1,000, 16 under way", "fan-out, 16 under way", "k deliveries a core-second", perCore, 1200, 2300, false},
	{"1,000 rooms of 10, everyone publishes, signals", "rooms of 10, unstored", "k deliveries a core-second", perCore, 70, 120, false},
	{"the same, stored", "rooms of 10, stored", "k deliveries a core-second", perCore, 0, 0, false},
	{"echo, unstored: one's own signal", "echo, unstored", "k round trips a core-second", perCore, 67.5, 94.5, false},
	{"30 k deliveries/s in one room, p50", "30 k/s in one room", "ms", func(r *report.Run) float64 {
		return latencyAt(r.Delivery, func(l *report.Latency) float64 { return l.P50 })
	}, 0, 0, true},
	{"30 k deliveries/s in one room, p99", "30 k/s in one room", "ms", func(r *report.Run) float64 {
		return latencyAt(r.Delivery, func(l *report.Latency) float64 { return l.P99 })
	}, 15, 8, true},
	{"idle connection, with a token, in a room", "idle connections", "KiB of RSS", func(r *report.Run) float64 {
		return float64(r.RSS) / 1024 / float64(max(r.Connections, 1))
	}, 20, 15, true},
	{"connect and join", "idle connections", "k a core-second", perCore, 9, 14, false},
	{"stored publishes, two cores with PostgreSQL", "publishes, two cores", "k/s", func(r *report.Run) float64 { return r.Rate / 1e3 }, 30, 50, false},
	{"ack at 15 k stored publishes/s, p50", "publishes at 15 k/s", "ms", func(r *report.Run) float64 {
		return latencyAt(r.Ack, func(l *report.Latency) float64 { return l.P50 })
	}, 0, 0, true},
	{"ack at 15 k stored publishes/s, p99", "publishes at 15 k/s", "ms", func(r *report.Run) float64 {
		return latencyAt(r.Ack, func(l *report.Latency) float64 { return l.P99 })
	}, 15, 0, true},
}

// calibration has the floor's results, in thousands a core-second by test, on the machine
// where the required values were set. The first one is the middle of 258 to 335.
var calibration = map[string]float64{"fan-out, 1 under way": 297, "fan-out, 16 under way": 2500, "rooms of 10, unstored": 139}

// relativeSpeeds returns the speeds of this machine's core relative to the one where the
// required values were set, by each test of the floor in calibration, in ascending order.
func relativeSpeeds(lines []report.Run) []float64 {
	var all []float64
	for i := range figures {
		f := &figures[i]
		then := calibration[f.test]
		if now, runs := median(lines, "floor", f); then > 0 && runs > 0 {
			all = append(all, now/then)
		}
	}
	slices.Sort(all)
	return all
}

// requiredAtSpeed returns the required value for a core of this relative speed, 0 if the
// figure is not one of a core-second.
func (f *figure) requiredAtSpeed(speed float64) float64 {
	if !strings.HasSuffix(f.unit, "a core-second") {
		return 0
	}
	return f.required * speed
}

// writeResults writes RESULTS.md, and the tables of GROWTH.md, from the raw lines.
func (r *runner) writeResults(ctx context.Context) error {
	return errors.Join(r.writeTable(ctx), r.writeScaling(ctx))
}

func (r *runner) writeTable(ctx context.Context) error {
	lines, err := r.readResults("table")
	if err != nil || len(lines) == 0 {
		return err
	}
	var out strings.Builder
	fmt.Fprintf(&out, "# Results\n\nMade by `make bench`; do not edit. [README.md](README.md) says what each row does.\n\n")
	fmt.Fprintf(&out, "%s, commit %s. %s.\n\n", time.Now().UTC().Format(time.DateOnly), r.commitName(ctx), machineName())
	out.WriteString("Medians; in brackets how many runs. 128-byte payloads, ours stored in PostgreSQL (a flush takes 1 ms) unless it says signal\n" +
		"or unstored; the peer keeps its in memory. A core-second is one of the server's own processor time.\n\n")
	speeds := relativeSpeeds(lines)
	var medianSpeed float64
	if n := len(speeds); n > 0 {
		medianSpeed = speeds[n/2]
		fmt.Fprintf(&out, "By the floor's tests a core here does %.2f to %.2f of what one did where the budgets were set. *Must here* is a must of so much\n"+
			"a core-second times the middle one, %.2f; latencies and what PostgreSQL takes part in are left as they are.\n\n", speeds[0], speeds[n-1], medianSpeed)
	}
	out.WriteString("| what | unit | floor | centrifuge | ours | must | must here | aims at | ours / floor | ours / centrifuge |\n|---|---|---|---|---|---|---|---|---|---|\n")
	for i := range figures {
		f := &figures[i]
		var cells [3]float64
		fmt.Fprintf(&out, "| %s | %s |", f.label, f.unit)
		for j, c := range candidates {
			v, n := median(lines, c.name, f)
			if cells[j] = v; n == 0 {
				out.WriteString(" – |")
				continue
			}
			fmt.Fprintf(&out, " %.4g (%d) |", v, n)
		}
		fmt.Fprintf(&out, " %s | %s | %s | %s | %s |\n", f.formatBound(f.required, cells[2]), f.formatBound(f.requiredAtSpeed(medianSpeed), cells[2]), f.formatBound(f.goal, cells[2]),
			ratio(cells[2], cells[0]), ratio(cells[2], cells[1]))
	}
	out.WriteString("\n" + caveats(lines))
	return os.WriteFile(filepath.Join(r.opts.root, "bench", "RESULTS.md"), []byte(out.String()), 0o644)
}

// formatBound returns a bound and whether v meets it.
func (f *figure) formatBound(bound, v float64) string {
	switch {
	case bound == 0:
		return "–"
	case v == 0:
		return fmt.Sprintf("%.4g", bound)
	case f.lowerIsBetter == (v <= bound) || v == bound:
		return fmt.Sprintf("%.4g, met", bound)
	}
	return fmt.Sprintf("%.4g, **not met**", bound)
}

func ratio(a, b float64) string {
	if a == 0 || b == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f", a/b)
}

// median returns the median of a figure over all runs of a server, and their number.
func median(lines []report.Run, server string, f *figure) (float64, int) {
	var all []float64
	for i := range lines {
		if lines[i].Server == server && lines[i].Test == f.test {
			all = append(all, f.value(&lines[i]))
		}
	}
	if len(all) == 0 {
		return 0, 0
	}
	slices.Sort(all)
	return (all[(len(all)-1)/2] + all[len(all)/2]) / 2, len(all)
}

// caveats says what limits the significance of the runs.
func caveats(lines []report.Run) string {
	bad, worst := 0, report.Run{}
	var otherLoad []float64
	for _, r := range lines {
		if r.Lost != 0 || r.Duplicated != 0 || r.OutOfOrder != 0 || r.ClosedByServer != 0 || r.Failed != 0 {
			bad++
		}
		otherLoad = append(otherLoad, r.OtherLoad)
		if r.Steal > worst.Steal {
			worst = r
		}
	}
	slices.SortFunc(otherLoad, cmp.Compare)
	return fmt.Sprintf("Of %d runs %d lost, doubled, swapped or cut something. Others took %.0f %% of the machine in the median run and %.0f %% in the\n"+
		"worst, the hypervisor at most %.0f %%: they warm no caches for us, so compare ratios of one session, not figures of two.\n",
		len(lines), bad, 100*otherLoad[len(otherLoad)/2], 100*otherLoad[len(otherLoad)-1], 100*worst.Steal)
}

// commitName returns the name of the measured commit.
func (r *runner) commitName(ctx context.Context) string {
	cmd := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty", "--abbrev=9")
	cmd.Dir = r.opts.root
	out, err := cmd.Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

func machineName() string {
	info, _ := os.ReadFile("/proc/cpuinfo")
	model := "an unknown processor"
	for line := range strings.Lines(string(info)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return fmt.Sprintf("%s, %d cores, Linux %s, %s", model, runtime.NumCPU(), strings.TrimSpace(string(kernel)), runtime.Version())
}
