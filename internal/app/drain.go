package app

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"switchyard/internal/config"
	"switchyard/internal/drain"
)

const (
	// adminTimeout bounds one call to the admin listener.
	adminTimeout = 5 * time.Second
	// drainPollInterval is how often Drain reads the state of the drain.
	drainPollInterval = 500 * time.Millisecond
	// drainGrace is how much longer than DRAIN_TIMEOUT Drain waits: the node then
	// closes the remaining connections and waits for their answers.
	drainGrace = clientsStopTimeout + 5*time.Second
)

// Drain makes the node at this host's ADMIN_ADDR move its clients away, and waits
// until it is empty, printing its progress. The node continues to run
// until Undrain makes it serve again or a signal ends it.
func Drain(ctx context.Context, cfg config.Config, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("drain", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	scope := flags.String("scope", string(drain.ScopeNode), "what clients must avoid: node or deployment")
	reason := flags.String("reason", "drain", "the reason that is sent to clients")
	wait := flags.Bool("wait", true, "wait until the node is empty")
	if err := parseFlags(flags, args); err != nil {
		return err
	}
	query := url.Values{"scope": {*scope}, "reason": {*reason}}
	state, err := callDrain(ctx, cfg, http.MethodPost, "?"+query.Encode())
	if err != nil || !*wait {
		return err
	}
	return awaitDrained(ctx, cfg, state, stdout)
}

// Undrain makes a draining or drained node serve again.
func Undrain(ctx context.Context, cfg config.Config, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("undrain", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	if err := parseFlags(flags, args); err != nil {
		return err
	}
	state, err := callDrain(ctx, cfg, http.MethodDelete, "")
	if err != nil {
		return err
	}
	if state.Phase != "" {
		return fmt.Errorf("the node is %s and can't serve again: it is stopping", state.Phase)
	}
	fmt.Fprintf(stdout, "serving, %d clients\n", state.Clients)
	return nil
}

// parseFlags reads a command's flags, and refuses other arguments.
func parseFlags(flags *flag.FlagSet, args []string) error {
	if err := flags.Parse(args); err != nil {
		return fmt.Errorf("%s: %w", flags.Name(), err)
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%s: %q is not one of its flags", flags.Name(), flags.Arg(0))
	}
	return nil
}

// awaitDrained polls until the node is empty, and prints each change.
func awaitDrained(ctx context.Context, cfg config.Config, state drain.State, stdout io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, cfg.Drain.Timeout+drainGrace)
	defer cancel()
	tick := time.NewTicker(drainPollInterval)
	defer tick.Stop()
	for last := -1; ; {
		if state.Clients != last {
			last = state.Clients
			fmt.Fprintf(stdout, "%s: %d clients, %d asked, %d moved, %d closed, %d lost, %d returned\n",
				state.Phase, state.Clients, state.Asked, state.Moved, state.Closed, state.Lost, state.Returned)
		}
		switch state.Phase {
		case drain.PhaseDrained:
			return nil
		case "":
			return errors.New("the drain was canceled")
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not drained in time, %d clients are left: %w", state.Clients, ctx.Err())
		case <-tick.C:
		}
		var err error
		if state, err = callDrain(ctx, cfg, http.MethodGet, ""); err != nil {
			return err
		}
	}
}

// callDrain makes one call to the admin listener of this host.
func callDrain(ctx context.Context, cfg config.Config, method, query string) (drain.State, error) {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	var state drain.State
	address, err := localURL("ADMIN_ADDR", cfg.Admin.Addr)
	if err != nil {
		return state, err
	}
	req, err := http.NewRequestWithContext(ctx, method, address+"/drain"+query, nil)
	if err != nil {
		return state, fmt.Errorf("ADMIN_ADDR=%s: %w", cfg.Admin.Addr, err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return state, fmt.Errorf("the node was not reached on ADMIN_ADDR=%s: %w", cfg.Admin.Addr, err)
	}
	defer res.Body.Close() //nolint:errcheck // read to its end
	body, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	if err != nil {
		return state, fmt.Errorf("the answer ended early: %w", err)
	}
	if res.StatusCode >= http.StatusMultipleChoices {
		var problem struct {
			Detail string `json:"detail"`
		}
		_ = json.Unmarshal(body, &problem) // without a detail the error has only the status
		return state, fmt.Errorf("refused with %s: %s", res.Status, problem.Detail)
	}
	if err := json.Unmarshal(body, &state); err != nil {
		return state, errors.Join(fmt.Errorf("ADMIN_ADDR=%s is not the address of this service", cfg.Admin.Addr), err)
	}
	return state, nil
}
