package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"switchyard/bench/report"
)

// one measures one load on ours and keeps it.
func (b *bench) one(ctx context.Context, verb, name string, t *target, args ...string) (report.Run, error) {
	run, err := b.drive(ctx, append(append([]string{"-protocol", "switchyard"}, t.args()...), args...)...)
	if err != nil {
		return run, err
	}
	run.Server, run.Test = ours, name
	return run, b.keep(verb, &run)
}

// alone starts one node on core 0.
func (b *bench) alone(ctx context.Context) (*target, error) {
	url, err := b.database(ctx)
	if err != nil {
		return nil, err
	}
	return b.service(ctx, url, "0", false)
}

// latency finds what saturates, and measures below it.
func (b *bench) latency(ctx context.Context) error {
	b.forget("latency")
	for _, shape := range []struct {
		name string
		fan  float64
		args []string
	}{
		{"one room of 1,000", 1000, []string{"-scenario", "fanout", "-n", "1000"}},
		{"1,000 rooms of 10", 10, []string{"-scenario", "rooms", "-rooms", "1000", "-members", "10"}},
	} {
		t, err := b.alone(ctx)
		if err != nil {
			return err
		}
		// With 16 under way frames coalesce, and the rate is one that no open
		// loop reaches: what one by one can do is what is to be shared out.
		full, err := b.one(ctx, "latency", shape.name+", saturated", t, append(shape.args, "-window", "4", "-for", "4s")...)
		if err != nil {
			return err
		}
		for _, part := range []int{10, 50, 80} {
			rate := full.Rate / shape.fan * float64(part) / 100
			name := fmt.Sprintf("%s, %d %%", shape.name, part)
			if _, err := b.one(ctx, "latency", name, t, append(shape.args, "-rate", fmt.Sprintf("%.2f", rate), "-for", "8s")...); err != nil {
				return err
			}
		}
		t.process.stop()
	}
	return nil
}

// idle holds more and more connections on one node.
func (b *bench) idle(ctx context.Context) error {
	b.forget("idle")
	for _, n := range []int{1000, 4000, 8000, 13000, 19000} {
		t, err := b.alone(ctx)
		if err != nil {
			return err
		}
		args := append(t.args(), "-n", strconv.Itoa(n), "-rooms", strconv.Itoa(n/10))
		if _, err := b.drive(ctx, append(args, "-scenario", "churn", "-count", "200")...); err != nil {
			return err
		}
		before := report.RSS(t.process.pid())
		h, run, err := b.hold(ctx, args...)
		if err != nil {
			return err
		}
		time.Sleep(4 * time.Second)
		run.RSS, run.Server, run.Test = report.RSS(t.process.pid())-before, ours, strconv.Itoa(n)
		fmt.Printf("%d: %.1f KiB each\n", n, float64(run.RSS)/1024/float64(n))
		h.quit()
		t.process.stop()
		if err := b.keep("idle", &run); err != nil {
			return err
		}
	}
	return nil
}

// churn opens and closes connections, and looks at what stays behind.
func (b *bench) churn(ctx context.Context) error {
	b.forget("churn")
	total := 1000000
	if b.opts.quick {
		total = 50000
	}
	t, err := b.alone(ctx)
	if err != nil {
		return err
	}
	for done := 0; done < total; done += total / 10 {
		run, err := b.drive(ctx, append([]string{"-protocol", "switchyard"}, append(t.args(), "-scenario", "churn",
			"-count", strconv.Itoa(total/10), "-rooms", "1000", "-patience", "5m")...)...)
		if err != nil {
			return err
		}
		time.Sleep(12 * time.Second) // an empty topic lives for ten
		if err := leftovers(ctx, t, &run); err != nil {
			return err
		}
		run.Server, run.Test = ours, strconv.Itoa(done+total/10)
		if err := b.keep("churn", &run); err != nil {
			return err
		}
		fmt.Printf("  RSS %.1f MB, heap %.2f MB, %d goroutines, %d descriptors\n", float64(run.RSS)/1e6, float64(run.Heap)/1e6, run.Goroutines, run.Descriptors)
	}
	return nil
}

// leftovers collects the garbage and notes what a node holds on to.
func leftovers(ctx context.Context, t *target, run *report.Run) error {
	if _, err := get(ctx, "http://"+t.admin+"/debug/pprof/heap?gc=1"); err != nil {
		return err
	}
	metrics, err := get(ctx, "http://"+t.addr+"/metrics")
	if err != nil {
		return err
	}
	pid := t.process.pid()
	run.RSS, run.Descriptors = report.RSS(pid), report.Descriptors(pid)
	run.Heap, run.Goroutines = int64(metric(metrics, "go_memstats_heap_alloc_bytes")), int64(metric(metrics, "go_goroutines"))
	return nil
}

func metric(text, name string) float64 {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			v, _ := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			return v
		}
	}
	return 0
}

// fan grows one room.
func (b *bench) fan(ctx context.Context) error {
	b.forget("fan")
	t, err := b.alone(ctx)
	if err != nil {
		return err
	}
	for _, n := range []int{10, 100, 1000, 10000} {
		if _, err := b.one(ctx, "fan", strconv.Itoa(n), t, "-scenario", "fanout", "-n", strconv.Itoa(n), "-window", "1",
			"-prefix", fmt.Sprintf("fan%d.", n)); err != nil {
			return err
		}
	}
	return nil
}

// roomsGrow spreads the same publishes over more and more rooms.
func (b *bench) roomsGrow(ctx context.Context) error {
	b.forget("rooms")
	t, err := b.alone(ctx)
	if err != nil {
		return err
	}
	for _, n := range []int{10, 100, 1000, 10000, 100000} {
		prefix := fmt.Sprintf("grow%d.", n)
		for _, rate := range []string{"0", "5000"} {
			if _, err := b.one(ctx, "rooms", fmt.Sprintf("%d at %s", n, rate), t, "-scenario", "publish", "-n", "1000", "-rooms", strconv.Itoa(n),
				"-window", "1000", "-rate", rate, "-prefix", prefix, "-for", "5s"); err != nil {
				return err
			}
		}
	}
	return nil
}

// nodes spreads one room's members over more and more nodes, all on core 0.
func (b *bench) nodes(ctx context.Context) error {
	b.forget("nodes")
	for _, n := range []int{1, 2, 3, 5} {
		targets, err := b.fleet(ctx, n, "0")
		if err != nil {
			return err
		}
		for _, load := range [][]string{{"-window", "1"}, {"-rate", "30"}} {
			if _, err := b.one(ctx, "nodes", fmt.Sprintf("%d, %s", n, load[0][1:]), together(targets), append([]string{"-scenario", "fanout", "-n", "1000"}, load...)...); err != nil {
				return err
			}
		}
		for _, t := range targets {
			t.process.stop()
		}
	}
	return nil
}

// together is several nodes as one target.
func together(targets []*target) *target {
	all := &target{process: targets[0].process, beside: targets[0].beside}
	var addrs []string
	for _, t := range targets {
		addrs = append(addrs, t.addr)
		all.others = append(all.others, t.process.pid())
	}
	all.addr = strings.Join(addrs, ",")
	return all
}

// publishing compares where publishes go, on both cores.
func (b *bench) publishing(ctx context.Context) error {
	b.forget("publish")
	for _, n := range []int{1, 2} {
		targets, err := b.fleet(ctx, n, "")
		if err != nil {
			return err
		}
		t := together(targets)
		for _, rooms := range []string{"1000", "1"} {
			if _, err := b.one(ctx, "publish", fmt.Sprintf("%d nodes, %s rooms", n, rooms), t, "-scenario", "publish", "-n", "1000",
				"-rooms", rooms, "-window", "1024", "-prefix", "hot", "-for", "5s"); err != nil {
				return err
			}
		}
		for _, t := range targets {
			t.process.stop()
		}
	}
	return nil
}
