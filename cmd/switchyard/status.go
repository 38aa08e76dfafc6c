package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"switchyard/internal/deploy"
	"switchyard/internal/stack"
)

func statusCommand() *cobra.Command {
	f := new(stackFlags)
	var watch bool
	var every time.Duration
	c := &cobra.Command{
		Use:   "status",
		Short: "show colors, versions, replicas, clients, alerts and the last deploys",
		Long:  "Status exits with 0 when all replicas of the live color serve and Traefik sends clients to them, and with 1 otherwise.",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if every < 500*time.Millisecond {
				return fmt.Errorf("--every must be 500ms or more, not %v", every)
			}
			s, err := f.open()
			if err != nil {
				return err
			}
			for {
				healthy, err := f.show(c, s, watch)
				switch {
				case watch && c.Context().Err() != nil:
					return nil
				case err != nil:
					return err
				case !watch && !healthy:
					return errFailed
				case !watch:
					return nil
				}
				if (deploy.HostClock{}).Sleep(c.Context(), every) != nil {
					return nil
				}
			}
		},
	}
	f.add(c)
	c.Flags().BoolVar(&watch, "watch", false, "repeat until interrupted")
	c.Flags().DurationVar(&every, "every", 2*time.Second, "with --watch, how often to repeat, at least 500ms")
	return c
}

// show prints the overview of the stack once, and reports whether it is healthy.
func (f *stackFlags) show(c *cobra.Command, s *stack.Stack, watch bool) (healthy bool, err error) {
	o, err := deploy.ReadOverview(c.Context(), s)
	if err != nil {
		return false, err
	}
	out := c.OutOrStdout()
	if f.json {
		return o.Healthy(), printJSON(out, o)
	}
	if watch && isTerminal(out) {
		_, _ = io.WriteString(out, "\033[H\033[2J")
	}
	_, err = fmt.Fprint(out, o)
	return o.Healthy(), err
}

func historyCommand() *cobra.Command {
	f := new(stackFlags)
	var last int
	c := &cobra.Command{
		Use:   "history",
		Short: "show past deploys and their outcomes",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if last < 1 {
				return fmt.Errorf("--last must be 1 or more, not %d", last)
			}
			s, err := f.open()
			if err != nil {
				return err
			}
			entries, err := deploy.StateDir{Dir: s.StateDir()}.History()
			if err != nil {
				return err
			}
			entries = entries[max(0, len(entries)-last):]
			if f.json {
				return printJSON(c.OutOrStdout(), entries)
			}
			for _, e := range entries {
				fmt.Fprint(c.OutOrStdout(), e.Details())
			}
			return nil
		},
	}
	f.add(c)
	c.Flags().IntVar(&last, "last", 20, "how many of the newest deploys to show")
	return c
}
