package main

import (
	"time"

	"github.com/spf13/cobra"

	"switchyard/internal/load"
)

func loadCommand() *cobra.Command {
	f := new(planFlags)
	c := &cobra.Command{
		Use:   "load",
		Short: "measure how fast the service is",
		Long: `Load publishes and subscribes as verify does, without recording and checking a
history: it prints how many messages were acked and delivered, and how long that
took. With --rate 0 every publisher has --window publishes in flight and sends the
next one when one is acked (a closed loop). At any other rate publishes are sent on
schedule, whether the service keeps up or not (an open loop), as users do.`,
		Example: `  switchyard load --clients 1000 --rooms 1 --publishers 1 --window 16
  switchyard load --clients 1000 --rooms 100 --rate 5000 --duration 1m --json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			f.plan.Unchecked = true
			run, err := f.start(c)
			if err != nil {
				return err
			}
			showProgress(run, c.ErrOrStderr())
			speed := run.Speed()
			if err := printAs(c, f.json, speed); err != nil {
				return err
			}
			if speed.Acked == 0 {
				return errFailed
			}
			return nil
		},
	}
	f.add(c, load.Plan{Clients: 100, Rooms: 10, Duration: 10 * time.Second})
	return c
}
