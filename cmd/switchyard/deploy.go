package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"switchyard/internal/deploy"
)

// deployFlags are deploy's own.
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
		Short: "bring a new version into service and move everybody to it",
		Long: `Deploy starts the image beside the version that runs, sends new connections to
it, moves everybody who is connected, and rolls all of it back by itself when the
new version does worse. It may be killed at any moment and run again: it looks
at what there is and goes on. docs/deploy.md has the steps, the triggers and the
settings, which are in deploy.yml beside the compose file.

It exits with 0 when the image is live, 1 when it was rolled back, 2 when nothing
was begun, 3 when it stands still half way and the same command goes on, 4 when
another command is at it, 5 when a person has to look.`,
		Example: `  switchyard deploy registry.example.com/switchyard:v1.4.0
  switchyard deploy switchyard:v1.4.0 --canary 10%,50% --watch 10m
  switchyard deploy switchyard:v1.4.0 --dry-run`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return f.run(c, args[0]) },
	}
	f.add(c)
	flags := c.Flags()
	flags.StringVar(&f.canary, "canary", "", "percentages of new connections that go first, such as 10%,50%")
	flags.IntVar(&f.replicas, "replicas", 0, "how many replicas it gets (default as many as are live)")
	flags.DurationVar(&f.watch, "watch", 0, "how long it is watched before everybody moves")
	flags.DurationVar(&f.watchMoved, "watch-moved", 0, "how long it is watched with everybody on it")
	flags.DurationVar(&f.verifyFor, "verify", 0, "how long it is verified from outside")
	flags.BoolVar(&f.dryRun, "dry-run", false, "print what would be done, and do nothing")
	flags.BoolVar(&f.withoutMetrics, "without-metrics", false, "go on although errors, response time and memory can't be judged")
	flags.BoolVar(&f.again, "again", false, "deploy the image although it is live")
	flags.StringArrayVar(&f.ignore, "ignore", nil, "a check of preflight that may fail; once for each")
	flags.StringVar(&f.scan, "scan", "", "command that is given the image and fails when it must not run")
	return c
}

func (f *deployFlags) run(c *cobra.Command, image string) error {
	return f.runLocked(c, func(s *lockedStack) (deploy.HistoryEntry, error) {
		m := s.deployer
		if err := f.apply(c, &m.Settings); err != nil {
			return deploy.HistoryEntry{}, &deploy.RefusedError{Err: err}
		}
		m.WithoutMetrics, m.AllowRedeploy = f.withoutMetrics, f.again
		if f.dryRun {
			plan, err := m.Plan(c.Context(), image)
			if err != nil {
				return deploy.HistoryEntry{}, err
			}
			if f.json {
				return deploy.HistoryEntry{}, printJSON(c.OutOrStdout(), plan)
			}
			_, err = fmt.Fprint(c.OutOrStdout(), plan)
			return deploy.HistoryEntry{}, err
		}
		m.Preflight = f.preflight(s)
		return m.Deploy(c.Context(), image)
	})
}

// preflight asks what has to be asked, and tells the answers.
func (f *deployFlags) preflight(s *lockedStack) func(context.Context, deploy.Image) error {
	p := s.stack.Preflight(s.compose, s.deployer.Settings, s.deployer.State)
	p.Ignore, p.ScanCommand, p.WithoutMetrics = f.ignore, f.scan, f.withoutMetrics
	return func(ctx context.Context, image deploy.Image) error {
		return p.Allow(ctx, image, func(c deploy.CheckResult) {
			s.deployer.Report(deploy.Event{At: time.Now(), Step: "preflight", Kind: c.Status, Text: c.Name + ": " + c.Text})
		})
	}
}

// apply puts what flags say over the settings.
func (f *deployFlags) apply(c *cobra.Command, s *deploy.Settings) error {
	changed := c.Flags().Changed
	if f.canary != "" {
		s.CanaryPercents = nil
		for part := range strings.SplitSeq(f.canary, ",") {
			n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(part), "%"))
			if err != nil {
				return fmt.Errorf("--canary must be percentages such as 10%%,50%%, not %q", f.canary)
			}
			s.CanaryPercents = append(s.CanaryPercents, n)
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
		Short: "take back the deploy under way, or the last one",
		Long: `Rollback lets clients into the old color again, sends new connections there,
moves back who is connected, keeps what the newer version can tell, and stops it.
Run again, it goes on where it was cut short.`,
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
		Long: `Switch writes active.yml and waits until Traefik follows. Who is connected stays
where they are; drain moves them. It also mends an active.yml that can't be read.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			color, err := deploy.ParseColor(args[0])
			if err != nil {
				return err
			}
			return f.runLocked(c, func(s *lockedStack) (deploy.HistoryEntry, error) { return s.deployer.Switch(c.Context(), color) })
		},
	}
	f.add(c)
	return c
}
