package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"switchyard/internal/checks"
	"switchyard/internal/inspect"
	"switchyard/internal/stack"
)

// inspectFlags are the flags of the commands that inspect a stack.
type inspectFlags struct {
	repositoryFlags
	prometheus string
	asJSON     bool
	since      time.Duration
}

func (f *inspectFlags) add(c *cobra.Command, since time.Duration) {
	f.repositoryFlags.add(c)
	flags := c.Flags()
	flags.StringVar(&f.prometheus, "prometheus", "", "address of Prometheus (default its container's)")
	flags.BoolVar(&f.asJSON, "json", false, "print JSON")
	if since > 0 {
		flags.DurationVar(&f.since, "since", since, "the span to inspect, 1m to 720h")
	}
}

// open returns the stack and its Prometheus. When that is nil, prometheusErr says
// why.
func (f *inspectFlags) open(ctx context.Context) (s *stack.Stack, p *stack.Prometheus, prometheusErr, err error) {
	if f.since != 0 && (f.since < time.Minute || f.since > 720*time.Hour) {
		return nil, nil, nil, fmt.Errorf("--since must be 1m to 720h, not %v", f.since)
	}
	if s, err = stack.Open(f.dir, f.file, f.project); err != nil {
		return nil, nil, nil, err
	}
	if f.prometheus != "" {
		p, err = stack.NewPrometheus(strings.TrimSuffix(f.prometheus, "/"))
		return s, p, nil, err
	}
	p, prometheusErr = s.Prometheus().Resolve(ctx)
	return s, p, prometheusErr, nil
}

func checkCommand() *cobra.Command {
	f := new(inspectFlags)
	r := &inspect.DailyReport{}
	c := &cobra.Command{
		Use:   "check",
		Short: "daily report on one page: services, system, last night, errors, backups",
		Long: `Check runs all checks that an operator makes in the morning, and prints one page.
Each line is marked ok, look (unusual, and no user is affected yet) or BAD.

It exits with 0 when no line is BAD, with 1 when one is, and with 2 when it could not
run.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, p, prometheusErr, err := f.open(c.Context())
			if err != nil {
				return err
			}
			r.Stack, r.Prometheus, r.PrometheusErr, r.Lookback = s, p, prometheusErr, f.since
			if v, err := f.repositoryFlags.open(c.Context(), c.ErrOrStderr()); err == nil {
				r.Backups = v
			} else {
				fmt.Fprintf(c.ErrOrStderr(), "%s: %v\n", c.CommandPath(), err)
			}
			page := r.Run(c.Context())
			if err := printAs(c, f.asJSON, page); err != nil {
				return err
			}
			if page.Worst() == inspect.StatusFail {
				return errFailed
			}
			return nil
		},
	}
	f.add(c, 12*time.Hour)
	flags := c.Flags()
	flags.DurationVar(&r.MaxBackupAge, "max-backup-age", checks.MaxBackupAge, "how old the newest backup may be")
	flags.DurationVar(&r.MaxProofAge, "max-proof-age", checks.MaxVerificationAge, "how old the newest proof of a backup may be")
	flags.DurationVar(&r.MaxWALAge, "max-wal-age", checks.MaxWALAge, "how old the newest segment of the WAL archive may be")
	return c
}

func topCommand() *cobra.Command {
	f := new(inspectFlags)
	var once bool
	var every time.Duration
	w := &inspect.Watcher{}
	c := &cobra.Command{
		Use:   "top",
		Short: "live: nodes, connections, slow clients, queues and the busiest rooms",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if every < time.Second || every > time.Hour {
				return fmt.Errorf("--every must be 1s to 1h, not %v", every)
			}
			if w.MaxRooms < 1 || w.MaxRooms > 1000 {
				return fmt.Errorf("--rooms must be 1 to 1000, not %d", w.MaxRooms)
			}
			s, p, prometheusErr, err := f.open(c.Context())
			if err != nil {
				return err
			}
			if p == nil {
				return prometheusErr
			}
			w.Stack, w.Prometheus = s, p
			return watchTop(c, f, w, every, once)
		},
	}
	f.add(c, 0)
	c.Flags().BoolVar(&once, "once", false, "print one snapshot after one period, and exit")
	c.Flags().DurationVar(&every, "every", 2*time.Second, "period, 1s to 1h")
	c.Flags().IntVar(&w.MaxRooms, "rooms", 15, "rooms to print, 1 to 1000")
	return c
}

// watchTop prints a snapshot each period until it is interrupted.
func watchTop(c *cobra.Command, f *inspectFlags, w *inspect.Watcher, every time.Duration, once bool) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for n := 0; ; n++ {
		now, err := w.Snapshot(c.Context())
		if c.Context().Err() != nil {
			return nil
		}
		if err != nil {
			return printFailure(c, err)
		}
		if !once || n == 1 { // the first snapshot has no rates of rooms
			if !f.asJSON && isTerminal(c.OutOrStdout()) {
				fmt.Fprint(c.OutOrStdout(), "\x1b[H\x1b[2J")
			}
			if err := printAs(c, f.asJSON, now); err != nil {
				return err
			}
			if once {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-c.Context().Done():
			return nil
		}
	}
}

// inspectCommand returns a command that reads the stack once and prints the answer.
func inspectCommand(use, short string, since time.Duration, read func(context.Context, *inspectFlags, *stack.Stack, *stack.Prometheus) (fmt.Stringer, error)) *cobra.Command {
	f := new(inspectFlags)
	c := &cobra.Command{
		Use: use, Short: short, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, p, prometheusErr, err := f.open(c.Context())
			if err != nil {
				return err
			}
			if prometheusErr != nil {
				fmt.Fprintf(c.ErrOrStderr(), "%s: %v\n", c.CommandPath(), prometheusErr)
			}
			answer, err := read(c.Context(), f, s, p)
			if err != nil {
				return printFailure(c, err)
			}
			return printAs(c, f.asJSON, answer)
		},
	}
	f.add(c, since)
	return c
}

func queriesCommand() *cobra.Command {
	return inspectCommand("queries", "slow statements of PostgreSQL, those that run now, and locks", 0,
		func(ctx context.Context, _ *inspectFlags, s *stack.Stack, _ *stack.Prometheus) (fmt.Stringer, error) {
			return inspect.ReadQueries(ctx, s)
		})
}

func connectionsCommand() *cobra.Command {
	return inspectCommand("connections", "patterns of connections: churn, lifetimes, addresses, close codes", time.Hour,
		func(ctx context.Context, f *inspectFlags, s *stack.Stack, p *stack.Prometheus) (fmt.Stringer, error) {
			return inspect.ReadConnections(ctx, s, p, time.Now().Add(-f.since))
		})
}

func errorsCommand() *cobra.Command {
	return inspectCommand("errors", "errors and warnings of the nodes by kind, and the errors sent to clients", 24*time.Hour,
		func(ctx context.Context, f *inspectFlags, s *stack.Stack, p *stack.Prometheus) (fmt.Stringer, error) {
			return inspect.ReadErrors(ctx, s, p, time.Now().Add(-f.since))
		})
}

func memoryCommand() *cobra.Command {
	var folder string
	c := inspectCommand("memory", "memory of each node, and the functions that allocated its heap", 0,
		func(ctx context.Context, _ *inspectFlags, s *stack.Stack, p *stack.Prometheus) (fmt.Stringer, error) {
			if folder != "" {
				if err := os.MkdirAll(folder, 0o755); err != nil {
					return nil, fmt.Errorf("--out: %w", err)
				}
			}
			return inspect.ReadMemory(ctx, s, p, folder)
		})
	c.Flags().StringVar(&folder, "out", "", "folder for the heap profiles, for go tool pprof")
	return c
}

func reportCommand() *cobra.Command {
	f := new(inspectFlags)
	r := &inspect.Report{}
	var from, to, folder string
	c := &cobra.Command{
		Use:   "report",
		Short: "write the report of a deploy or an incident, in Markdown with plots",
		Long: `Report writes report.md and its plots into a folder: the effect on users, deploys,
alerts, measurements and errors of a span. With --class it also has the sections that
people fill in after an incident. Without --from and --to it covers the last hour.`,
		Example: `  switchyard report --title "Deploy of v2.1.0" --from 2026-11-26T10:00:00Z --to 2026-11-26T10:30:00Z --out reports/v2.1.0
  switchyard report --class P1 --title "Slow acks" --out reports/2026-11-26`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := reportSpan(r, from, to); err != nil {
				return err
			}
			switch r.Class {
			case "", "P0", "P1", "P2", "P3":
			default:
				return fmt.Errorf("--class must be P0, P1, P2 or P3, not %q", r.Class)
			}
			if folder == "" {
				return errors.New("--out must name a folder")
			}
			s, p, prometheusErr, err := f.open(c.Context())
			if err != nil {
				return err
			}
			if p == nil {
				return prometheusErr
			}
			r.HistoryFile = filepath.Join(s.StateDir(), "deploys.jsonl")
			path, err := r.Write(c.Context(), s, p, folder)
			if err != nil {
				return printFailure(c, err)
			}
			fmt.Fprintln(c.OutOrStdout(), path)
			return nil
		},
	}
	f.add(c, 0)
	flags := c.Flags()
	flags.StringVar(&r.Title, "title", "Report", "title of the report")
	flags.StringVar(&r.Class, "class", "", "class of an incident, P0 to P3")
	flags.StringVar(&from, "from", "", "beginning of the span, such as 2026-11-26T10:00:00Z")
	flags.StringVar(&to, "to", "", "end of the span")
	flags.StringVar(&folder, "out", "", "folder to write to")
	return c
}

// reportSpan sets the span of a report from the flags.
func reportSpan(r *inspect.Report, from, to string) error {
	r.To = time.Now()
	for name, s := range map[string]string{"--to": to, "--from": from} {
		if s == "" {
			continue
		}
		t, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			return fmt.Errorf("%s must be a moment with its zone, such as 2026-11-26T10:00:00Z, not %q", name, s)
		}
		if name == "--to" {
			r.To = t
		} else {
			r.From = t
		}
	}
	if r.From.IsZero() {
		r.From = r.To.Add(-time.Hour)
	}
	if !r.From.Before(r.To) || r.To.Sub(r.From) > 31*24*time.Hour {
		return fmt.Errorf("--from must be before --to, by 31 days at most: %s, %s", r.From.Format(time.RFC3339), r.To.Format(time.RFC3339))
	}
	return nil
}
