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
	root, out         string
	rounds            int
	quick, appendRuns bool
	only, servers     string
	profile           bool
	realtime          bool
	programs          string
}

// A command is something that can be run.
type command struct {
	name string
	help string
	run  func(*runner, context.Context) error
}

// commands are all of them; the first is the default.
var commands = []command{
	{"table", "the budgets beside the peers; writes RESULTS.md", (*runner).runTable},
	{"latency", "delivery and ack at 10, 50 and 80 % of saturation", (*runner).latency},
	{"crowd", "95,000 connections over five nodes, all in one room", (*runner).manyConnections},
	{"idle", "1,000 to 19,000 idle connections on one node", (*runner).idle},
	{"churn", "a million connections come and go", (*runner).churn},
	{"fan", "fan-out to 10 to 10,000 members", (*runner).scaleMembers},
	{"rooms", "10 to 100,000 rooms", (*runner).scaleRooms},
	{"nodes", "1 to 5 nodes", (*runner).scaleNodes},
	{"stored", "1,000 to 10,000,000 stored messages", (*runner).stored},
	{"publish", "the ways to publish: many rooms, one hot room, from two nodes", (*runner).comparePublishing},
	{"write", "RESULTS.md and the plots again, from the raw lines", (*runner).writeResults},
}

func main() {
	var o options
	flag.StringVar(&o.root, "root", "..", "the repository")
	flag.StringVar(&o.out, "out", "results", "where raw lines and plots go")
	flag.IntVar(&o.rounds, "rounds", 3, "how often everything is run")
	flag.BoolVar(&o.quick, "quick", false, "one round of short runs, for a first look")
	flag.BoolVar(&o.appendRuns, "append", false, "table: keep the rounds that are there")
	flag.StringVar(&o.only, "only", "", "table: these tests alone, by a part of their name")
	flag.BoolVar(&o.realtime, "realtime", false, "everything of ours by real-time priority, on a machine that others use")
	flag.StringVar(&o.servers, "who", "", "table: these servers alone, by a part of their name")
	flag.StringVar(&o.programs, "programs", "", "a folder with the programs, already built")
	flag.BoolVar(&o.profile, "profile", false, "table: keep a processor profile of each run of ours")
	flag.Usage = usage
	flag.Parse()
	name := commands[0].name
	if flag.NArg() > 0 {
		name = flag.Arg(0)
	}
	i := slices.IndexFunc(commands, func(v command) bool { return v.name == name })
	if i < 0 {
		usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := runCommand(ctx, o, commands[i]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func usage() {
	fmt.Fprintln(os.Stderr, "usage: run [flags] [verb]")
	for _, v := range commands {
		fmt.Fprintf(os.Stderr, "  %-8s %s\n", v.name, v.help)
	}
	flag.PrintDefaults()
}

// runCommand makes a bench, runs one verb on it and takes everything down again.
func runCommand(ctx context.Context, o options, v command) error {
	r, err := newRunner(ctx, o)
	if err != nil {
		return err
	}
	defer r.close()
	return v.run(r, ctx)
}
