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
	name     string
	on       string // the contestants, by name
	together bool   // the floor puts together what came together
	named    bool   // clients have tokens
	both     bool   // the server may use both cores, as its database does
	signals  bool   // ours publishes signals
	hold     bool   // it is about connections: nothing is published
	args     []string
}

func (t *test) cores() string {
	if t.both {
		return ""
	}
	return "0"
}

// budgets are those of the table, in its order.
var budgets = []test{
	{name: "fan-out, 1 under way", on: "floor centrifuge " + ours,
		args: []string{"-scenario", "fanout", "-n", "1000", "-window", "1"}},
	{name: "fan-out, 16 under way", on: "floor centrifuge " + ours, together: true,
		args: []string{"-scenario", "fanout", "-n", "1000", "-window", "16"}},
	{name: "rooms of 10, unstored", on: "floor centrifuge " + ours, signals: true,
		args: []string{"-scenario", "rooms", "-rooms", "1000", "-members", "10", "-window", "64"}},
	{name: "rooms of 10, stored", on: ours,
		args: []string{"-scenario", "rooms", "-rooms", "1000", "-members", "10", "-window", "64"}},
	{name: "30 k/s in one room", on: "floor centrifuge " + ours,
		args: []string{"-scenario", "fanout", "-n", "1000", "-rate", "30"}},
	{name: "echo, unstored", on: "floor centrifuge " + ours, signals: true,
		args: []string{"-scenario", "rooms", "-rooms", "200", "-members", "1", "-window", "200"}},
	{name: "idle connections", on: "floor centrifuge " + ours, named: true, hold: true,
		args: []string{"-n", "8000", "-rooms", "800"}},
	{name: "publishes, two cores", on: ours, both: true,
		args: []string{"-scenario", "publish", "-n", "1000", "-rooms", "1000", "-window", "1024"}},
	{name: "publishes at 15 k/s", on: ours, both: true,
		args: []string{"-scenario", "publish", "-n", "1000", "-rooms", "1000", "-rate", "15000"}},
}

// table runs every test on every contestant, in rounds, and writes RESULTS.md.
func (b *bench) table(ctx context.Context) error {
	if !b.opts.again {
		b.forget("table")
	}
	rounds := b.opts.rounds
	if b.opts.quick {
		rounds = 1
	}
	for range rounds {
		for i := range budgets {
			t := &budgets[i]
			if !strings.Contains(t.name, b.opts.only) {
				continue
			}
			for _, c := range contestants {
				if !strings.Contains(t.on, c.name) || !strings.Contains(c.name, b.opts.who) {
					continue
				}
				if err := b.try(ctx, t, c); err != nil {
					return err
				}
			}
		}
	}
	return b.write(ctx)
}

// try runs one test on one contestant.
func (b *bench) try(ctx context.Context, t *test, c contestant) error {
	target, err := c.start(ctx, b, t)
	if err != nil {
		return err
	}
	defer target.process.stop()
	protocol := c.protocol
	if t.signals && c.name == ours {
		protocol = "signal"
	}
	args := append([]string{"-protocol", protocol}, target.args()...)
	if t.named && c.name == ours {
		args = append(args, "-secret", tokenSecret)
	}
	args = append(args, t.args...)
	length := "5s"
	if b.opts.quick {
		length = "2s"
	}
	args = append(args, "-for", length)
	if b.opts.profile && target.admin != "" {
		defer b.profile(ctx, target, t.name)()
	}
	run, err := b.measure(ctx, t, target, args)
	if err != nil {
		return err
	}
	run.Server, run.Test = c.name, t.name
	return b.keep("table", &run)
}

func (b *bench) measure(ctx context.Context, t *test, target *target, args []string) (report.Run, error) {
	if !t.hold {
		return b.drive(ctx, args...)
	}
	// Some come and go first: what the server makes once is not the connections'.
	if _, err := b.drive(ctx, append(args, "-scenario", "churn", "-count", "200")...); err != nil {
		return report.Run{}, err
	}
	before := report.RSS(target.process.pid())
	h, run, err := b.hold(ctx, args...)
	if err != nil {
		return run, err
	}
	defer h.quit()
	time.Sleep(4 * time.Second) // it is to be idle
	run.RSS = report.RSS(target.process.pid()) - before
	return run, nil
}

// profile takes a processor profile of a target from the second second on; the
// function that it returns waits for it.
func (b *bench) profile(ctx context.Context, t *target, name string) (wait func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		time.Sleep(2 * time.Second)
		out := filepath.Join(b.opts.out, strings.NewReplacer(" ", "-", ",", "", "/", "-").Replace(name)+".pprof")
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
