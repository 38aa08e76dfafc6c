package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"switchyard/internal/load"
)

// verifyFlags are the flags of verify.
type verifyFlags struct {
	planFlags
	history string
	check   string
}

func verifyCommand() *cobra.Command {
	f := new(verifyFlags)
	c := &cobra.Command{
		Use:   "verify",
		Short: "verify that no message is lost, duplicated or reordered",
		Long: `Verify publishes and subscribes, cuts connections meanwhile, and compares the acks
with the deliveries. It uses rooms of its own, so that it may run against a live
service; their messages stay until retention removes them.

It exits with 0 when every guarantee was kept, with 1 when one was broken or nothing
was proved, and with 2 when it could not run. When it is interrupted, it checks the
history so far.`,
		Example: `  switchyard verify --url ws://localhost:8000/ws
  switchyard verify --url wss://a.example.com/ws --url wss://b.example.com/ws --clients 500 --rooms 50 --rate 1000 --duration 1m
  switchyard verify --check history.jsonl`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return f.run(c) },
	}
	f.add(c, load.Plan{Clients: 100, Rooms: 10, Rate: 100, Duration: 15 * time.Second})
	flags := c.Flags()
	flags.DurationVar(&f.plan.Cut, "cut", time.Second, "how often to cut a connection, 1ms to 1h; 0: never")
	flags.IntVar(&f.plan.MaxEvents, "max-events", load.DefaultMaxEvents, "bound of the history, up to 100000000 and at least twenty for each client; an event takes about 100 bytes")
	flags.StringVar(&f.history, "history", "", "write the history to this file")
	flags.StringVar(&f.check, "check", "", "check the history in this file instead of running")
	return c
}

func (f *verifyFlags) run(c *cobra.Command) error {
	if f.check != "" {
		return f.checkHistory(c)
	}
	file, err := f.createHistory()
	if err != nil {
		return err
	}
	run, err := f.start(c)
	if err != nil {
		return err
	}
	showProgress(run, c.ErrOrStderr())
	verdict := f.printReport(c, run.Report())
	if err := f.writeHistory(run, file); err != nil {
		fmt.Fprintf(c.ErrOrStderr(), "--history: %v\n", err)
		return errFailed
	}
	return verdict
}

// createHistory creates the file for the history before the run, so that a wrong
// path is found early. Without --history it returns nil.
func (f *verifyFlags) createHistory() (*os.File, error) {
	if f.history == "" {
		return nil, nil
	}
	file, err := os.OpenFile(f.history, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("--history: %w", err)
	}
	return file, nil
}

// writeHistory writes the history to the file, if there is one.
func (f *verifyFlags) writeHistory(run *load.Run, file *os.File) error {
	if file == nil {
		return nil
	}
	if err := run.History().Write(file); err != nil {
		return err
	}
	return file.Close()
}

// checkHistory checks the history in a file.
func (f *verifyFlags) checkHistory(c *cobra.Command) error {
	flags := c.Flags()
	if given := flags.NFlag(); given > 2 || given == 2 && !flags.Changed("json") {
		return errors.New("--check reads a file: with it, no other flag has a meaning except --json")
	}
	file, err := os.Open(f.check)
	if err != nil {
		return fmt.Errorf("--check: %w", err)
	}
	defer func() { _ = file.Close() }()
	h, err := load.ReadHistory(file)
	if err != nil {
		return fmt.Errorf("--check %s: %w", f.check, err)
	}
	return f.printReport(c, load.Check(h))
}

// printReport prints a report, and returns errFailed unless the verdict is clean.
func (f *verifyFlags) printReport(c *cobra.Command, report *load.Report) error {
	if err := printAs(c, f.json, report); err != nil {
		return err
	}
	if report.Verdict != load.Clean {
		return errFailed
	}
	return nil
}

// printAs prints a value as JSON, or as text for people.
func printAs(c *cobra.Command, asJSON bool, v fmt.Stringer) error {
	if !asJSON {
		_, err := fmt.Fprint(c.OutOrStdout(), v.String())
		return err
	}
	enc := json.NewEncoder(c.OutOrStdout())
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
