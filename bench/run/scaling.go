package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"switchyard/bench/report"
)

// measureLoad measures one load on our service and keeps the result.
func (r *runner) measureLoad(ctx context.Context, command, name string, t *target, args ...string) (report.Run, error) {
	run, err := r.runDriver(ctx, append(append([]string{"-protocol", "switchyard"}, t.args()...), args...)...)
	if err != nil {
		return run, err
	}
	run.Server, run.Test = serviceName, name
	return run, r.appendResult(command, &run)
}

// startSingleNode starts one node on core 0.
func (r *runner) startSingleNode(ctx context.Context) (*target, error) {
	url, err := r.database(ctx)
	if err != nil {
		return nil, err
	}
	return r.startService(ctx, url, "0", false)
}

// latency finds the saturation of a load, and measures the latency below it.
func (r *runner) latency(ctx context.Context) error {
	r.removeResults("latency")
	for _, workload := range []struct {
		name string
		fan  float64
		args []string
	}{
		{"one room of 1,000", 1000, []string{"-scenario", "fanout", "-n", "1000"}},
		{"1,000 rooms of 10", 10, []string{"-scenario", "rooms", "-rooms", "1000", "-members", "10"}},
	} {
		t, err := r.startSingleNode(ctx)
		if err != nil {
			return err
		}
		// With 16 publishes under way frames coalesce, and the rate is higher than an open
		// loop can reach: with few under way it can be scaled down.
		saturated, err := r.measureLoad(ctx, "latency", workload.name+", saturated", t, append(workload.args, "-window", "4", "-for", "4s")...)
		if err != nil {
			return err
		}
		for _, percent := range []int{10, 50, 80} {
			rate := saturated.Rate / workload.fan * float64(percent) / 100
			name := fmt.Sprintf("%s, %d %%", workload.name, percent)
			if _, err := r.measureLoad(ctx, "latency", name, t, append(workload.args, "-rate", fmt.Sprintf("%.2f", rate), "-for", "8s")...); err != nil {
				return err
			}
		}
		t.process.stop()
	}
	return nil
}

// idle opens more and more connections to one node.
func (r *runner) idle(ctx context.Context) error {
	r.removeResults("idle")
	for _, n := range []int{1000, 4000, 8000, 13000, 19000} {
		t, err := r.startSingleNode(ctx)
		if err != nil {
			return err
		}
		args := append(t.args(), "-n", strconv.Itoa(n), "-rooms", strconv.Itoa(n/10))
		if _, err := r.runDriver(ctx, append(args, "-scenario", "churn", "-count", "200")...); err != nil {
			return err
		}
		before := report.RSS(t.process.pid())
		h, run, err := r.holdConnections(ctx, args...)
		if err != nil {
			return err
		}
		time.Sleep(4 * time.Second)
		run.RSS, run.Server, run.Test = report.RSS(t.process.pid())-before, serviceName, strconv.Itoa(n)
		fmt.Printf("%d: %.1f KiB each\n", n, float64(run.RSS)/1024/float64(n))
		h.quit()
		t.process.stop()
		if err := r.appendResult("idle", &run); err != nil {
			return err
		}
	}
	return nil
}

// churn opens and closes connections, and records what the node retains.
func (r *runner) churn(ctx context.Context) error {
	r.removeResults("churn")
	total := 1000000
	if r.opts.quick {
		total = 50000
	}
	t, err := r.startSingleNode(ctx)
	if err != nil {
		return err
	}
	for done := 0; done < total; done += total / 10 {
		run, err := r.runDriver(ctx, append([]string{"-protocol", "switchyard"}, append(t.args(), "-scenario", "churn",
			"-count", strconv.Itoa(total/10), "-rooms", "1000", "-patience", "5m")...)...)
		if err != nil {
			return err
		}
		time.Sleep(12 * time.Second) // an empty topic lives for ten seconds
		if err := recordRetained(ctx, t, &run); err != nil {
			return err
		}
		run.Server, run.Test = serviceName, strconv.Itoa(done+total/10)
		if err := r.appendResult("churn", &run); err != nil {
			return err
		}
		fmt.Printf("  RSS %.1f MB, heap %.2f MB, %d goroutines, %d descriptors\n", float64(run.RSS)/1e6, float64(run.Heap)/1e6, run.Goroutines, run.Descriptors)
	}
	return nil
}

// recordRetained collects a node's garbage, and records the resources that are in use.
func recordRetained(ctx context.Context, t *target, run *report.Run) error {
	if _, err := get(ctx, "http://"+t.admin+"/debug/pprof/heap?gc=1"); err != nil {
		return err
	}
	metrics, err := get(ctx, "http://"+t.addr+"/metrics")
	if err != nil {
		return err
	}
	values, err := gauges(metrics, "go_memstats_heap_alloc_bytes", "go_goroutines")
	if err != nil {
		return err
	}
	pid := t.process.pid()
	run.RSS, run.Descriptors, run.Heap, run.Goroutines = report.RSS(pid), report.Descriptors(pid), values[0], values[1]
	return nil
}

// gauges reads some gauges of a page of metrics, 0 for one that is not there.
func gauges(page string, names ...string) ([]int64, error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(page))
	if err != nil {
		return nil, fmt.Errorf("read a node's metrics: %w", err)
	}
	values := make([]int64, len(names))
	for i, name := range names {
		for _, m := range families[name].GetMetric() {
			values[i] += int64(m.GetGauge().GetValue())
		}
	}
	return values, nil
}

// scaleMembers measures rooms with more and more members.
func (r *runner) scaleMembers(ctx context.Context) error {
	r.removeResults("fan")
	t, err := r.startSingleNode(ctx)
	if err != nil {
		return err
	}
	for _, n := range []int{10, 100, 1000, 10000} {
		if _, err := r.measureLoad(ctx, "fan", strconv.Itoa(n), t, "-scenario", "fanout", "-n", strconv.Itoa(n), "-window", "1",
			"-prefix", fmt.Sprintf("fan%d.", n)); err != nil {
			return err
		}
	}
	return nil
}

// scaleRooms spreads the same publishes over more and more rooms.
func (r *runner) scaleRooms(ctx context.Context) error {
	r.removeResults("rooms")
	t, err := r.startSingleNode(ctx)
	if err != nil {
		return err
	}
	for _, n := range []int{10, 100, 1000, 10000, 100000} {
		prefix := fmt.Sprintf("grow%d.", n)
		for _, rate := range []string{"0", "5000"} {
			if _, err := r.measureLoad(ctx, "rooms", fmt.Sprintf("%d at %s", n, rate), t, "-scenario", "publish", "-n", "1000", "-rooms", strconv.Itoa(n),
				"-window", "1000", "-rate", rate, "-prefix", prefix, "-for", "5s"); err != nil {
				return err
			}
		}
	}
	return nil
}

// scaleNodes spreads one room's members over more and more nodes, all on core 0.
func (r *runner) scaleNodes(ctx context.Context) error {
	r.removeResults("nodes")
	for _, n := range []int{1, 2, 3, 5} {
		targets, err := r.startNodes(ctx, n, "0")
		if err != nil {
			return err
		}
		for _, load := range [][]string{{"-window", "1"}, {"-rate", "30"}} {
			if _, err := r.measureLoad(ctx, "nodes", fmt.Sprintf("%d, %s", n, load[0][1:]), combinedTarget(targets), append([]string{"-scenario", "fanout", "-n", "1000"}, load...)...); err != nil {
				return err
			}
		}
		for _, t := range targets {
			t.process.stop()
		}
	}
	return nil
}

// combinedTarget returns several nodes as one target.
func combinedTarget(targets []*target) *target {
	all := &target{process: targets[0].process, backingPids: targets[0].backingPids}
	var addrs []string
	for _, t := range targets {
		addrs = append(addrs, t.addr)
		all.extraPids = append(all.extraPids, t.process.pid())
	}
	all.addr = strings.Join(addrs, ",")
	return all
}

// comparePublishing compares many rooms with one, on one node and on two, with both cores.
func (r *runner) comparePublishing(ctx context.Context) error {
	r.removeResults("publish")
	for _, n := range []int{1, 2} {
		targets, err := r.startNodes(ctx, n, "")
		if err != nil {
			return err
		}
		t := combinedTarget(targets)
		for _, rooms := range []string{"1000", "1"} {
			if _, err := r.measureLoad(ctx, "publish", fmt.Sprintf("%d nodes, %s rooms", n, rooms), t, "-scenario", "publish", "-n", "1000",
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
