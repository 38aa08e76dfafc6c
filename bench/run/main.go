// Command run compares the service with its peers on this machine: it builds them, starts
// them in turn on core 0 with the load on core 1, and writes the results. See README.md.
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

// A command is one of this program.
type command struct {
	name string
	help string
	run  func(*runner, context.Context) error
}

// commands has all commands. The first one is the default.
var commands = []command{
	{"table", "compares the service with its peers; writes RESULTS.md", (*runner).runTable},
	{"latency", "delivery and ack at 10, 50 and 80 % of saturation", (*runner).latency},
	{"crowd", "95,000 connections over five nodes, all in one room", (*runner).manyConnections},
	{"idle", "1,000 to 19,000 idle connections on one node", (*runner).idle},
	{"churn", "opens and closes a million connections", (*runner).churn},
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
	flag.StringVar(&o.out, "out", "results", "the folder of raw lines and profiles")
	flag.IntVar(&o.rounds, "rounds", 3, "table: how often each test is run")
	flag.BoolVar(&o.quick, "quick", false, "one round of short runs, for a first look")
	flag.BoolVar(&o.appendRuns, "append", false, "table: keep earlier rounds")
	flag.StringVar(&o.only, "only", "", "table: only tests with this in their name")
	flag.BoolVar(&o.realtime, "realtime", false, "run all programs with real-time priority, for a machine that others use")
	flag.StringVar(&o.servers, "who", "", "table: only servers with this in their name")
	flag.StringVar(&o.programs, "programs", "", "a folder with the built programs")
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
	fmt.Fprintln(os.Stderr, "usage: run [flags] [command]")
	for _, v := range commands {
		fmt.Fprintf(os.Stderr, "  %-8s %s\n", v.name, v.help)
	}
	flag.PrintDefaults()
}

// runCommand makes a runner, runs one command with it and stops all programs.
func runCommand(ctx context.Context, o options, v command) error {
	r, err := newRunner(ctx, o)
	if err != nil {
		return err
	}
	defer r.close()
	return v.run(r, ctx)
}
