package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"switchyard/internal/checks"
	"switchyard/internal/deploy"
	"switchyard/internal/stack"
)

func scaleCommand() *cobra.Command {
	f := new(stackFlags)
	c := &cobra.Command{
		Use:   "scale N",
		Short: "bring the live color to N replicas",
		Long:  "Scale waits until new replicas are ready, and moves clients away from a replica before it stops it.",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			n, err := strconv.Atoi(args[0])
			if err != nil {
				return fmt.Errorf("replicas are a number, not %q", args[0])
			}
			return f.runLocked(c, func(s *lockedStack) (deploy.HistoryEntry, error) { return s.deployer.Scale(c.Context(), n) })
		},
	}
	f.add(c)
	return c
}

func drainCommand() *cobra.Command {
	f := new(stackFlags)
	c := &cobra.Command{
		Use:   "drain COLOR|REPLICA",
		Short: "move the clients of the idle color, or of one replica, away",
		Long: `Drain returns when no client is left there. The drained replicas go on running
without accepting connections, and serve again after undrain.`,
		Example: "  switchyard drain green\n  switchyard drain switchyard-app_blue-2",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return f.runLocked(c, func(s *lockedStack) (deploy.HistoryEntry, error) {
				return deploy.HistoryEntry{}, s.deployer.Drain(c.Context(), args[0])
			})
		},
	}
	f.add(c)
	return c
}

func undrainCommand() *cobra.Command {
	f := new(stackFlags)
	c := &cobra.Command{
		Use:   "undrain COLOR|REPLICA",
		Short: "have a drained color or replica serve again",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return f.runLocked(c, func(s *lockedStack) (deploy.HistoryEntry, error) {
				return deploy.HistoryEntry{}, s.deployer.Undrain(c.Context(), args[0])
			})
		},
	}
	f.add(c)
	return c
}

func smokeCommand() *cobra.Command {
	f := new(stackFlags)
	c := &cobra.Command{
		Use:   "smoke [URL]",
		Short: "join, publish, receive and resume once",
		Long: `Smoke joins, publishes, receives and resumes through the balancer of this host's
stack and on each replica, or at the given URL. It exits with 1 when one of them
fails.`,
		Example: "  switchyard smoke\n  switchyard smoke wss://chat.example.com/ws --token-file token",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 1 {
				o := &checks.Prober{Stack: &stack.Stack{TokenFile: f.tokenFile}}
				return f.printProbe(c, args[0], o.SmokeURL(c.Context(), args[0]))
			}
			return f.smokeStack(c)
		},
	}
	f.add(c)
	return c
}

// smokeStack tests the stack's public URL and each replica that serves.
func (f *stackFlags) smokeStack(c *cobra.Command) error {
	s, err := f.open()
	if err != nil {
		return err
	}
	o := &checks.Prober{Stack: s}
	snapshot, err := s.Replicas().Inspect(c.Context())
	if err != nil {
		return err
	}
	result := f.printProbe(c, s.Balancer().URL("wss", "/ws"), o.Smoke(c.Context(), checks.Target{}))
	for _, color := range stack.Colors {
		for _, r := range snapshot.Running(color) {
			if !r.Serves() {
				continue
			}
			if err := f.printProbe(c, r.Name, o.Smoke(c.Context(), checks.Target{Replica: &r, Deployment: r.Deployment})); err != nil {
				result = err
			}
		}
	}
	return result
}

// printProbe prints the result of one probe, and returns errFailed unless err is
// nil.
func (f *stackFlags) printProbe(c *cobra.Command, what string, err error) error {
	switch {
	case f.json:
		answer := map[string]any{"target": what, "ok": err == nil}
		if err != nil {
			answer["error"] = err.Error()
		}
		if e := printJSON(c.OutOrStdout(), answer); e != nil {
			return e
		}
	case err != nil:
		fmt.Fprintf(c.OutOrStdout(), "fail  %s: %v\n", what, err)
	default:
		fmt.Fprintf(c.OutOrStdout(), "ok    %s\n", what)
	}
	if err != nil {
		return errFailed
	}
	return nil
}

func preflightCommand() *cobra.Command {
	f := new(stackFlags)
	var ignore []string
	var scan string
	c := &cobra.Command{
		Use:   "preflight [IMAGE]",
		Short: "check whether a deploy may begin",
		Long: `Preflight exits with 0 when a deploy may begin, also with warnings, and with 1 when a
check failed. docs/deploy.md has the checks.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			s, err := f.openLocked(c)
			if err != nil {
				return err
			}
			defer func() { _ = s.lock.Release() }()
			var image stack.Image
			if len(args) == 1 {
				if image, err = (stack.Images{Stack: s.stack}).Resolve(c.Context(), args[0]); err != nil {
					return err
				}
			}
			p := deploy.NewPreflight(s.stack, s.settings)
			p.Ignore, p.ScanCommand = ignore, scan
			answers, err := p.Run(c.Context(), image)
			if err != nil {
				return err
			}
			if f.json {
				err = printJSON(c.OutOrStdout(), answers)
			} else {
				for _, a := range answers {
					fmt.Fprintf(c.OutOrStdout(), "%-5s %-12s %s\n", a.Status, a.Name, a.Text)
				}
			}
			if err == nil && deploy.AnyFailed(answers) {
				return errFailed
			}
			return err
		},
	}
	f.add(c)
	c.Flags().StringArrayVar(&ignore, "ignore", nil, "a check that may fail; repeatable")
	c.Flags().StringVar(&scan, "scan", "", "command that gets an image as its argument, and fails if it must not run; it is run for each image of the stack")
	return c
}
