package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"switchyard/internal/load"
)

// planFlags are the flags that verify and load share.
type planFlags struct {
	plan      load.Plan
	tokenFile string
	json      bool
}

func (f *planFlags) add(c *cobra.Command, defaults load.Plan) {
	p, flags := &f.plan, c.Flags()
	flags.StringArrayVar(&p.URLs, "url", []string{"ws://localhost:8000/ws"}, "URL of a node or of the balancer; repeatable")
	flags.StringVar(&f.tokenFile, "token-file", "", "file with one token in each line; clients use them in turn")
	flags.IntVar(&p.Clients, "clients", defaults.Clients, "connections, 1 to 15000")
	flags.IntVar(&p.Rooms, "rooms", defaults.Rooms, "rooms, at most as many as clients")
	flags.IntVar(&p.Publishers, "publishers", 0, "how many of the clients publish (default all)")
	flags.Float64Var(&p.Rate, "rate", defaults.Rate, "messages a second of all publishers together, up to 1000000; 0: as fast as acks arrive")
	flags.IntVar(&p.Window, "window", 1, "with --rate 0, publishes of a client in flight, 1 to 1024")
	flags.IntVar(&p.Size, "size", 128, "bytes of data in a message, 24 to 1048576")
	flags.DurationVar(&p.Duration, "duration", defaults.Duration, "how long to publish, 1ms to 24h")
	flags.DurationVar(&p.RampUp, "ramp-up", 0, "the time over which clients connect, up to 1h")
	flags.DurationVar(&p.Settle, "settle", 30*time.Second, "how long to wait at the end for outstanding acks and deliveries, up to 1h")
	flags.StringVar(&p.Prefix, "prefix", "", "prefix of the rooms' names (default a random one)")
	flags.BoolVar(&f.json, "json", false, "print JSON")
}

// start starts a run of the plan. An error about a bound names the flag.
func (f *planFlags) start(c *cobra.Command) (*load.Run, error) {
	for name, n := range map[string]int{"clients": f.plan.Clients, "rooms": f.plan.Rooms, "size": f.plan.Size, "window": f.plan.Window} {
		if n == 0 { // a Plan would use its default
			return nil, fmt.Errorf("--%s must be 1 or more, not 0", name)
		}
	}
	if !c.Flags().Changed("rooms") {
		f.plan.Rooms = min(f.plan.Rooms, f.plan.Clients)
	}
	if f.plan.Duration < time.Millisecond {
		return nil, fmt.Errorf("--duration must be 1ms to 24h, not %v", f.plan.Duration)
	}
	if f.tokenFile != "" {
		tokens, err := os.ReadFile(f.tokenFile)
		if err != nil {
			return nil, fmt.Errorf("--token-file: %w", err)
		}
		if f.plan.Tokens = strings.Fields(string(tokens)); len(f.plan.Tokens) == 0 {
			return nil, fmt.Errorf("--token-file: %s has no token", f.tokenFile)
		}
	}
	run, err := load.Start(c.Context(), f.plan)
	var bound *load.BoundError
	if errors.As(err, &bound) {
		return nil, fmt.Errorf("--%w", bound)
	}
	return run, err
}

// showProgress prints the progress of a run if stderr is a terminal, and returns
// when the run is over.
func showProgress(run *load.Run, stderr io.Writer) {
	terminal := isTerminal(stderr)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-run.Done():
			if terminal {
				fmt.Fprint(stderr, "\r\033[K")
			}
			return
		case <-tick.C:
			if terminal {
				fmt.Fprintf(stderr, "\r\033[K%s", progressLine(run.Progress()))
			}
		}
	}
}

// progressLine returns a run's progress in one line, usually of at most 79 columns.
func progressLine(p load.Progress) string {
	doing := "publishing"
	if p.Ending {
		doing = "settling"
	}
	s := fmt.Sprintf("%s %.0f s: %d published, %d acked, %d delivered", doing, p.Elapsed.Seconds(), p.Published, p.Acked, p.Delivered)
	if p.Failed > 0 {
		s += fmt.Sprintf(", %d failed", p.Failed)
	}
	if p.Reconnects > 0 {
		s += fmt.Sprintf(", %d reconnects", p.Reconnects)
	}
	if p.Moves > 0 {
		s += fmt.Sprintf(", %d moves", p.Moves)
	}
	return s
}

// isTerminal reports whether w is a character device, as terminals are.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
