package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"switchyard/internal/checks"
	"switchyard/internal/deploy"
	"switchyard/internal/stack"
)

// lockWait bounds the wait for programs that a dead command has started and that
// still run.
const lockWait = time.Minute

// stackFlags are the flags of the commands that change the stack of this host.
type stackFlags struct {
	dir, file, project     string
	traefikAPI, prometheus string
	tokenFile              string
	insecure, json         bool
}

func (f *stackFlags) add(c *cobra.Command) {
	flags := c.Flags()
	flags.StringVar(&f.dir, "dir", "", "folder of the compose file (default this one, or deploy/compose)")
	flags.StringVar(&f.file, "file", stack.DefaultFile, "name of the compose file")
	flags.StringVar(&f.project, "project", "switchyard", "name of the Compose project")
	flags.StringVar(&f.traefikAPI, "traefik-api", "", "address of Traefik's API (default its container's)")
	flags.StringVar(&f.prometheus, "prometheus", "", "address of Prometheus (default its container's)")
	flags.StringVar(&f.tokenFile, "token-file", "", "file with a token for probes (default a token signed with secrets/app_jwt_secret)")
	flags.BoolVar(&f.insecure, "insecure", false, "do not verify the certificate when probing from outside")
	flags.BoolVar(&f.json, "json", false, "print JSON")
}

// open opens the stack without its lock.
func (f *stackFlags) open() (*stack.Stack, error) {
	s, err := stack.Open(f.dir, f.file, f.project)
	if err != nil {
		return nil, err
	}
	if err := s.LoadEnv(); err != nil {
		return nil, err
	}
	s.TraefikAPI, s.PrometheusURL = strings.TrimSuffix(f.traefikAPI, "/"), strings.TrimSuffix(f.prometheus, "/")
	s.TokenFile, s.Insecure = f.tokenFile, f.insecure
	return s, nil
}

// A lockedStack is the stack with its deployer. It holds the stack's lock.
type lockedStack struct {
	stack    *stack.Stack
	deployer *deploy.Deployer
	settings deploy.Settings
	lock     *stack.Lock
}

// openLocked opens the stack and locks it. The caller releases the lock.
func (f *stackFlags) openLocked(c *cobra.Command) (*lockedStack, error) {
	s, err := f.open()
	if err != nil {
		return nil, err
	}
	settings, err := deploy.ReadSettings(filepath.Join(s.Dir, "deploy.yml"))
	if err != nil {
		return nil, err
	}
	lock, err := s.Lock(c.Context(), c.CommandPath(), lockWait)
	if err != nil {
		return nil, err
	}
	if old := lock.DeadHolder; old != nil {
		fmt.Fprintf(c.ErrOrStderr(), "the lock of process %d (%s), which is dead, was taken over\n", old.PID, old.Command)
	}
	replicas := s.Replicas()
	records, err := deploy.NewHostRecords(s, settings.Notifications)
	if err != nil {
		return nil, errors.Join(err, lock.Release())
	}
	return &lockedStack{stack: s, settings: settings, lock: lock, deployer: &deploy.Deployer{
		Deps: deploy.Dependencies{
			Containers: replicas, Clients: replicas, Images: stack.Images{Stack: s}, Traffic: replicas.Traefik,
			Probes: &checks.Prober{Stack: s}, Metrics: checks.NewHostMetrics(s), Records: records, Clock: deploy.HostClock{},
		},
		State: deploy.StateDir{Dir: s.StateDir()}, Settings: settings, Report: f.reporter(c.OutOrStdout()),
	}}, nil
}

// reporter returns a function that prints each event in one line, of text or JSON.
func (f *stackFlags) reporter(w io.Writer) func(deploy.Event) {
	if f.json {
		enc := json.NewEncoder(w)
		return func(e deploy.Event) { _ = enc.Encode(e) }
	}
	return func(e deploy.Event) {
		step := e.Step
		switch e.Kind {
		case "done":
			if e.Text == "" {
				e.Text = "done"
			}
		case "warn", "fail":
			step = "! " + step
		}
		fmt.Fprintf(w, "%s  %-12s %s\n", e.At.Format("15:04:05.000"), step, e.Text)
	}
}

// printOutcome prints the outcome of a command, with --json as the last line, and
// returns err.
func (f *stackFlags) printOutcome(c *cobra.Command, e deploy.HistoryEntry, err error) error {
	if !f.json {
		if err == nil && e.ID != "" {
			fmt.Fprintln(c.OutOrStdout(), e)
		}
		return err
	}
	out := struct {
		Kind  string               `json:"kind"`
		Exit  int                  `json:"exit"`
		Error string               `json:"error,omitempty"`
		Entry *deploy.HistoryEntry `json:"deploy,omitempty"`
	}{Kind: "end", Exit: exitCode(err)}
	if err != nil {
		out.Error = err.Error()
	}
	if e.ID != "" {
		out.Entry = &e
	}
	return errors.Join(err, json.NewEncoder(c.OutOrStdout()).Encode(out))
}

// runLocked runs a function on the stack under its lock, and prints the outcome.
func (f *stackFlags) runLocked(c *cobra.Command, do func(*lockedStack) (deploy.HistoryEntry, error)) error {
	s, err := f.openLocked(c)
	if err != nil {
		return err
	}
	e, err := do(s)
	if errors.Is(err, deploy.ErrAlreadyLive) {
		fmt.Fprintln(c.ErrOrStderr(), err)
		err = nil
	}
	return errors.Join(f.printOutcome(c, e, err), s.lock.Release())
}

// printJSON prints a value as indented JSON.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
