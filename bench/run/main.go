// Command run holds the service beside its peers on this machine: it builds
// them, starts them in turn on core 0 with the load on core 1, and writes what
// came out of it. See README.md.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
)

type options struct {
	root, out    string
	rounds       int
	quick, again bool
	only, who    string
	profile      bool
	realtime     bool
	kept         string
}

// A verb is something that can be run.
type verb struct {
	name string
	does string
	run  func(*bench, context.Context) error
}

// verbs are all of them; the first is the default.
var verbs = []verb{
	{"table", "the budgets beside the peers; writes RESULTS.md", (*bench).table},
	{"latency", "delivery and ack at 10, 50 and 80 % of saturation", (*bench).latency},
	{"crowd", "95,000 connections over five nodes, all in one room", (*bench).crowd},
	{"idle", "1,000 to 19,000 idle connections on one node", (*bench).idle},
	{"churn", "a million connections come and go", (*bench).churn},
	{"fan", "fan-out to 10 to 10,000 members", (*bench).fan},
	{"rooms", "10 to 100,000 rooms", (*bench).roomsGrow},
	{"nodes", "1 to 5 nodes", (*bench).nodes},
	{"stored", "1,000 to 10,000,000 stored messages", (*bench).stored},
	{"publish", "the ways to publish: many rooms, one hot room, from two nodes", (*bench).publishing},
	{"write", "RESULTS.md and the plots again, from the raw lines", (*bench).write},
}

func main() {
	var o options
	flag.StringVar(&o.root, "root", "..", "the repository")
	flag.StringVar(&o.out, "out", "results", "where raw lines and plots go")
	flag.IntVar(&o.rounds, "rounds", 3, "how often everything is run")
	flag.BoolVar(&o.quick, "quick", false, "one round of short runs, for a first look")
	flag.BoolVar(&o.again, "append", false, "table: keep the rounds that are there")
	flag.StringVar(&o.only, "only", "", "table: these tests alone, by a part of their name")
	flag.BoolVar(&o.realtime, "realtime", false, "everything of ours by real-time priority, on a machine that others use")
	flag.StringVar(&o.who, "who", "", "table: these servers alone, by a part of their name")
	flag.StringVar(&o.kept, "programs", "", "a folder with the programs, already built")
	flag.BoolVar(&o.profile, "profile", false, "table: keep a processor profile of each run of ours")
	flag.Usage = usage
	flag.Parse()
	name := verbs[0].name
	if flag.NArg() > 0 {
		name = flag.Arg(0)
	}
	i := slices.IndexFunc(verbs, func(v verb) bool { return v.name == name })
	if i < 0 {
		usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := play(ctx, o, verbs[i]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func usage() {
	fmt.Fprintln(os.Stderr, "usage: run [flags] [verb]")
	for _, v := range verbs {
		fmt.Fprintf(os.Stderr, "  %-8s %s\n", v.name, v.does)
	}
	flag.PrintDefaults()
}

// play makes a bench, runs one verb on it and takes everything down again.
func play(ctx context.Context, o options, v verb) error {
	b, err := newBench(ctx, o)
	if err != nil {
		return err
	}
	defer b.close()
	return v.run(b, ctx)
}
