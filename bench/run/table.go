package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"switchyard/bench/report"
)

// A test is a row of the table.
type test struct {
	name            string
	candidates      string // their names
	coalesce        bool   // the floor combines frames that came together
	withTokens      bool   // clients have tokens
	bothCores       bool   // the server may use both cores, as its database does
	signals         bool   // our service sends signals
	connectionsOnly bool   // nothing is published
	args            []string
}

func (t *test) cores() string {
	if t.bothCores {
		return ""
	}
	return "0"
}

// tableTests has the tests of the table, in its order.
var tableTests = []test{
	{name: "fan-out, 1 under way", candidates: "floor centrifuge " + serviceName,
		args: []string{"-scenario", "fanout", "-n", "1000", "-window", "1"}},
	{name: "fan-out, 16 under way", candidates: "floor centrifuge " + serviceName, coalesce: true,
		args: []string{"-scenario", "fanout", "-n", "1000", "-window", "16"}},
	{name: "rooms of 10, unstored", candidates: "floor centrifuge " + serviceName, signals: true,
		args: []string{"-scenario", "rooms", "-rooms", "1000", "-members", "10", "-window", "64"}},
	{name: "rooms of 10, stored", candidates: serviceName,
		args: []string{"-scenario", "rooms", "-rooms", "1000", "-members", "10", "-window", "64"}},
	{name: "30 k/s in one room", candidates: "floor centrifuge " + serviceName,
		args: []string{"-scenario", "fanout", "-n", "1000", "-rate", "30"}},
	{name: "echo, unstored", candidates: "floor centrifuge " + serviceName, signals: true,
		args: []string{"-scenario", "rooms", "-rooms", "200", "-members", "1", "-window", "200"}},
	{name: "idle connections", candidates: "floor centrifuge " + serviceName, withTokens: true, connectionsOnly: true,
		args: []string{"-n", "8000", "-rooms", "800"}},
	{name: "publishes, two cores", candidates: serviceName, bothCores: true,
		args: []string{"-scenario", "publish", "-n", "1000", "-rooms", "1000", "-window", "1024"}},
	{name: "publishes at 15 k/s", candidates: serviceName, bothCores: true,
		args: []string{"-scenario", "publish", "-n", "1000", "-rooms", "1000", "-rate", "15000"}},
}

// runTable runs every test on its candidates, in rounds, and writes RESULTS.md.
func (r *runner) runTable(ctx context.Context) error {
	if !r.opts.appendRuns {
		r.removeResults("table")
	}
	rounds := r.opts.rounds
	if r.opts.quick {
		rounds = 1
	}
	for range rounds {
		for i := range tableTests {
			t := &tableTests[i]
			if !strings.Contains(t.name, r.opts.only) {
				continue
			}
			for _, c := range candidates {
				if !strings.Contains(t.candidates, c.name) || !strings.Contains(c.name, r.opts.servers) {
					continue
				}
				if err := r.runTest(ctx, t, c); err != nil {
					return err
				}
			}
		}
	}
	return r.writeResults(ctx)
}

// runTest runs one test on one candidate.
func (r *runner) runTest(ctx context.Context, t *test, c candidate) error {
	target, err := c.start(ctx, r, t)
	if err != nil {
		return err
	}
	defer target.process.stop()
	protocol := c.protocol
	if t.signals && c.name == serviceName {
		protocol = "signal"
	}
	args := append([]string{"-protocol", protocol}, target.args()...)
	if t.withTokens && c.name == serviceName {
		args = append(args, "-secret", tokenSecret)
	}
	args = append(args, t.args...)
	length := "5s"
	if r.opts.quick {
		length = "2s"
	}
	args = append(args, "-for", length)
	if r.opts.profile && target.admin != "" {
		defer r.profile(ctx, target, t.name)()
	}
	run, err := r.measure(ctx, t, target, args)
	if err != nil {
		return err
	}
	run.Server, run.Test = c.name, t.name
	return r.appendResult("table", &run)
}

func (r *runner) measure(ctx context.Context, t *test, target *target, args []string) (report.Run, error) {
	if !t.connectionsOnly {
		return r.runDriver(ctx, args...)
	}
	// Some connections come and go first: memory that the server allocates once is not that
	// of the connections.
	if _, err := r.runDriver(ctx, append(args, "-scenario", "churn", "-count", "200")...); err != nil {
		return report.Run{}, err
	}
	before := report.RSS(target.process.pid())
	h, run, err := r.holdConnections(ctx, args...)
	if err != nil {
		return run, err
	}
	defer h.quit()
	time.Sleep(4 * time.Second) // until the server is idle
	run.RSS = report.RSS(target.process.pid()) - before
	return run, nil
}

// profile takes a processor profile of a target after two seconds. The function that it
// returns waits for the end of that.
func (r *runner) profile(ctx context.Context, t *target, name string) (wait func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		time.Sleep(2 * time.Second)
		out := filepath.Join(r.opts.out, strings.NewReplacer(" ", "-", ",", "", "/", "-").Replace(name)+".pprof")
		if err := fetch(ctx, "http://"+t.admin+"/debug/pprof/profile?seconds=3", out); err != nil {
			fmt.Fprintln(os.Stderr, "profile:", err)
		}
	}()
	return func() { <-done }
}

func fetch(ctx context.Context, url, to string) error {
	profile, err := get(ctx, url)
	if err != nil {
		return err
	}
	return os.WriteFile(to, []byte(profile), 0o644)
}
