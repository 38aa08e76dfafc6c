package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"switchyard/internal/deploy"
	"switchyard/internal/stack"
)

// deployFlags are the flags of deploy.
type deployFlags struct {
	stackFlags
	canary                        string
	replicas                      int
	watch, watchMoved, verifyFor  time.Duration
	dryRun, withoutMetrics, again bool
	ignore                        []string
	scan                          string
}

func deployCommand() *cobra.Command {
	f := new(deployFlags)
	c := &cobra.Command{
		Use:   "deploy IMAGE",
		Short: "bring a new version into service and move all clients to it",
		Long: `Deploy starts the image beside the running version, sends new connections to it,
moves all connected clients, and rolls back by itself when the new version does
worse. It may be killed at any moment and run again: it reads the state of the stack
and continues. docs/deploy.md has the steps, the triggers and the settings, which
are in deploy.yml beside the compose file.

It exits with 0 when the image is live, 1 when it was rolled back, 2 when nothing
was changed, 3 when it is unfinished and the same command continues it, 4 when
another command is running, 5 when an operator must intervene.`,
		Example: `  switchyard deploy registry.example.com/switchyard:v1.4.0
  switchyard deploy switchyard:v1.4.0 --canary 10%,50% --watch 10m
  switchyard deploy switchyard:v1.4.0 --dry-run`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return f.run(c, args[0]) },
	}
	f.add(c)
	flags := c.Flags()
	flags.StringVar(&f.canary, "canary", "", "percentages of new connections for canary steps, such as 10%,50%")
	flags.IntVar(&f.replicas, "replicas", 0, "number of its replicas (default as many as are live)")
	flags.DurationVar(&f.watch, "watch", 0, "how long it is watched before clients move")
	flags.DurationVar(&f.watchMoved, "watch-moved", 0, "how long it is watched after all clients have moved")
	flags.DurationVar(&f.verifyFor, "verify", 0, "how long it is verified from outside")
	flags.BoolVar(&f.dryRun, "dry-run", false, "print the plan, and change nothing")
	flags.BoolVar(&f.withoutMetrics, "without-metrics", false, "continue although errors, response time and memory can't be judged")
	flags.BoolVar(&f.again, "again", false, "deploy the image although it is live")
	flags.StringArrayVar(&f.ignore, "ignore", nil, "a preflight check that may fail; repeatable")
	flags.StringVar(&f.scan, "scan", "", "command that gets an image as its argument, and fails if it must not run; it is run for each image of the stack")
	return c
}

// run deploys an image, or prints the plan with --dry-run.
func (f *deployFlags) run(c *cobra.Command, image string) error {
	return f.runLocked(c, func(s *lockedStack) (deploy.HistoryEntry, error) {
		d := s.deployer
		if err := f.apply(c, &d.Settings); err != nil {
			return deploy.HistoryEntry{}, &deploy.RefusedError{Err: err}
		}
		d.WithoutMetrics, d.AllowRedeploy = f.withoutMetrics, f.again
		if f.dryRun {
			plan, err := d.Plan(c.Context(), image)
			if err != nil {
				return deploy.HistoryEntry{}, err
			}
			if f.json {
				return deploy.HistoryEntry{}, printJSON(c.OutOrStdout(), plan)
			}
			_, err = fmt.Fprint(c.OutOrStdout(), plan)
			return deploy.HistoryEntry{}, err
		}
		d.Preflight = f.preflight(s)
		return d.Deploy(c.Context(), image)
	})
}

// preflight returns the function that runs the preflight checks and reports their
// results.
func (f *deployFlags) preflight(s *lockedStack) func(context.Context, stack.Image) error {
	p := deploy.NewPreflight(s.stack, s.deployer.Settings)
	p.Ignore, p.ScanCommand, p.WithoutMetrics = f.ignore, f.scan, f.withoutMetrics
	return func(ctx context.Context, image stack.Image) error {
		return p.Allow(ctx, image, func(c deploy.CheckResult) {
			s.deployer.Report(deploy.Event{At: time.Now(), Step: "preflight", Kind: c.Status, Text: c.Name + ": " + c.Text})
		})
	}
}

// apply overrides the settings by the flags that were given.
func (f *deployFlags) apply(c *cobra.Command, s *deploy.Settings) error {
	changed := c.Flags().Changed
	if f.canary != "" {
		s.SharePercents = nil
		for part := range strings.SplitSeq(f.canary, ",") {
			n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(part), "%"))
			if err != nil {
				return fmt.Errorf("--canary must be percentages such as 10%%,50%%, not %q", f.canary)
			}
			s.SharePercents = append(s.SharePercents, n)
		}
	}
	if changed("replicas") {
		s.Replicas = f.replicas
	}
	for name, override := range map[string]struct {
		value  time.Duration
		target *time.Duration
	}{
		"watch": {f.watch, &s.Watch}, "watch-moved": {f.watchMoved, &s.WatchMoved}, "verify": {f.verifyFor, &s.Verify},
	} {
		if changed(name) {
			*override.target = override.value
		}
	}
	if err := s.Validate(); err != nil {
		return fmt.Errorf("--%w", err)
	}
	return nil
}

func rollbackCommand() *cobra.Command {
	f := new(stackFlags)
	c := &cobra.Command{
		Use:   "rollback",
		Short: "roll back the deploy under way, or the last one",
		Long: `Rollback makes the old color serve again, sends new connections to it, moves the
connected clients back, saves the logs and profiles of the newer version, and then
stops it. After an interruption, the same command continues.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return f.runLocked(c, func(s *lockedStack) (deploy.HistoryEntry, error) { return s.deployer.Rollback(c.Context()) })
		},
	}
	f.add(c)
	return c
}

func switchCommand() *cobra.Command {
	f := new(stackFlags)
	c := &cobra.Command{
		Use:   "switch blue|green",
		Short: "send new connections to a color that runs",
		Long: `Switch writes active.yml and waits until Traefik follows. Connected clients stay
where they are; drain moves them. It also repairs an active.yml that can't be read.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			color, err := stack.ParseColor(args[0])
			if err != nil {
				return err
			}
			return f.runLocked(c, func(s *lockedStack) (deploy.HistoryEntry, error) { return s.deployer.Switch(c.Context(), color) })
		},
	}
	f.add(c)
	return c
}
