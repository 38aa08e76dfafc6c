package deploy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"switchyard/internal/checks"
	"switchyard/internal/stack"
)

// An Overview is the state of the stack at a glance. An error field says why its
// part is missing.
type Overview struct {
	At time.Time `json:"at"`
	// Route is the route of active.yml, Traefik the state that Traefik reports.
	Route        *stack.Route                    `json:"route"`
	RouteError   string                          `json:"route_error,omitempty"`
	Traefik      *stack.BalancerStatus           `json:"traefik"`
	TraefikError string                          `json:"traefik_error,omitempty"`
	Replicas     map[stack.Color][]stack.Replica `json:"replicas"`
	Current      *Journal                        `json:"current,omitempty"`
	Alerts       []stack.Alert                   `json:"alerts"`
	AlertsError  string                          `json:"alerts_error,omitempty"`
	History      []HistoryEntry                  `json:"history"` // the newest first
}

// lastDeploys is how many deploys the overview shows.
const lastDeploys = 5

// ReadOverview collects the state of a stack. It fails only if Docker does not
// answer or the state folder can't be read.
func ReadOverview(ctx context.Context, s *stack.Stack) (*Overview, error) {
	replicas := s.Replicas()
	snapshot, err := replicas.Inspect(ctx)
	if err != nil {
		return nil, err
	}
	o := &Overview{At: snapshot.At.UTC(), Replicas: snapshot.Replicas, Alerts: []stack.Alert{}, History: []HistoryEntry{}}
	if r, err := replicas.Traefik.Route(ctx); err != nil {
		o.RouteError = err.Error()
	} else {
		o.Route = &r
	}
	if t, err := replicas.Traefik.Status(ctx); err != nil {
		o.TraefikError = err.Error()
	} else {
		o.Traefik = &t
	}
	if o.Alerts, err = s.Prometheus().Alerts(ctx); err != nil {
		o.AlertsError = err.Error()
	}
	state := StateDir{Dir: s.StateDir()}
	if o.Current, err = state.Current(); err != nil {
		return o, err
	}
	history, err := state.History()
	if err != nil {
		return o, err
	}
	slices.Reverse(history)
	o.History = append(o.History, history[:min(len(history), lastDeploys)]...)
	return o, nil
}

// Healthy reports whether Traefik follows active.yml and all replicas of the live
// color serve.
func (o *Overview) Healthy() bool {
	if o.Route == nil || o.Traefik == nil {
		return false
	}
	worst, _ := checks.Summarize(append(checks.FollowsRoute(*o.Route, *o.Traefik), checks.LiveColorServes(stack.Snapshot{Replicas: o.Replicas}, o.Route.Live)...))
	return worst == checks.OK
}

// String formats the overview for people.
func (o *Overview) String() string {
	var b strings.Builder
	b.WriteString("live     " + o.liveText() + "\n")
	for _, c := range stack.Colors {
		fmt.Fprintf(&b, "%-8s %s\n", c, o.colorText(c))
		for _, r := range o.Replicas[c] {
			if r.Drain != "" && o.colorStatus(c) == "serving" { // one of several was drained by hand
				fmt.Fprintf(&b, "         %s: %s\n", r.Name, r.Drain)
			}
			if t := r.Problem(); t != "" || r.Restarts > 0 {
				fmt.Fprintf(&b, "         %s: %s\n", r.Name, cmp.Or(t, fmt.Sprintf("restarted %d times (%s)", r.Restarts, r.ExitReason)))
			}
		}
	}
	if j := o.Current; j != nil {
		what := "deploying " + j.Image.Ref + " to " + string(j.To)
		if j.RollingBack {
			what = "rolling " + j.Image.Ref + " back: " + j.Reason
		}
		fmt.Fprintf(&b, "now      %s, since %s\n", what, j.Started.Format(time.RFC3339))
	}
	switch {
	case o.AlertsError != "":
		fmt.Fprintf(&b, "alerts   unknown: %s\n", o.AlertsError)
	case len(o.Alerts) == 0:
		b.WriteString("alerts   none\n")
	}
	for _, a := range o.Alerts {
		fmt.Fprintf(&b, "alert    %s %s %s\n", a.Name, a.Severity, a.Labels)
	}
	for _, e := range o.History {
		fmt.Fprintf(&b, "deploy   %s\n", e)
	}
	return b.String()
}

// liveText says which color is live, and whether Traefik agrees.
func (o *Overview) liveText() string {
	switch {
	case o.Route == nil:
		return "unknown: " + o.RouteError
	case o.Traefik == nil:
		return fmt.Sprintf("%s (Traefik: %s)", *o.Route, o.TraefikError)
	case *o.Route != o.Traefik.Route:
		return fmt.Sprintf("%s, but Traefik routes to %s", *o.Route, o.Traefik.Route)
	}
	return o.Route.String()
}

// colorStatus returns a color's status in a word or two.
func (o *Overview) colorStatus(c stack.Color) string {
	s := stack.Snapshot{Replicas: o.Replicas}
	replicas := s.Running(c)
	phases := map[string]int{}
	for _, r := range replicas {
		phases[r.Drain]++
	}
	switch {
	case len(replicas) == 0:
		return "stopped"
	case phases["drained"] == len(replicas):
		return "drained"
	case phases[""] == 0:
		return "draining"
	case s.CountServing(c) == 0:
		return "not ready"
	}
	return "serving"
}

// colorText returns a color's line of the overview.
func (o *Overview) colorText(c stack.Color) string {
	s := stack.Snapshot{Replicas: o.Replicas}
	replicas := s.Running(c)
	if len(replicas) == 0 {
		return "stopped"
	}
	r := replicas[0]
	return fmt.Sprintf("%s, %d of %d replicas ready, %d clients, %s (version %s, %s)",
		o.colorStatus(c), s.CountServing(c), len(o.Replicas[c]), s.CountClients(c), r.Image.Ref, cmp.Or(r.Version, "unknown"), r.Deployment)
}

// String formats an entry of the history for people, on one line.
func (e HistoryEntry) String() string {
	s := fmt.Sprintf("%s  %s %s, %s is live (took %v)", e.Started.Format(time.RFC3339), e.Image.Ref, e.Outcome, e.Color, e.Ended.Sub(e.Started).Round(time.Second))
	if e.Reason != "" {
		s += ": " + e.Reason
	}
	return s
}

// errNotRunning says that a color can't be made live because it does not run.
var errNotRunning = errors.New("it does not run")

// Switch sends new connections to a color that runs. Existing connections stay
// where they are.
func (d *Deployer) Switch(ctx context.Context, c stack.Color) (HistoryEntry, error) {
	if err := d.requireNoDeploy(); err != nil {
		return HistoryEntry{}, err
	}
	began := d.Deps.Clock.Now().UTC()
	s, err := d.Deps.Containers.Inspect(ctx)
	if err != nil {
		return HistoryEntry{}, &RefusedError{err}
	}
	l := s.Spec(c)
	if l.Replicas == 0 {
		return HistoryEntry{}, &RefusedError{fmt.Errorf("switch to %s: %w; `switchyard deploy` starts it", c, errNotRunning)}
	}
	if err := d.undrain(ctx, s, c, l.Deployment); err != nil {
		return HistoryEntry{}, &RefusedError{err}
	}
	if err := d.waitReady(ctx, l, true); err != nil {
		return HistoryEntry{}, &RefusedError{err}
	}
	if err := d.setRoute(ctx, stack.Route{Live: c}); err != nil {
		return HistoryEntry{}, d.switchError(ctx, c, err)
	}
	e := HistoryEntry{ID: began.Format("20060102T150405Z") + "-switch", Outcome: Switched, Color: c, Image: l.Image, From: c.Other(), Started: began, Ended: d.Deps.Clock.Now().UTC()}
	d.notify(ctx, Notification{Kind: "switch", Deploy: e.ID, Image: l.Image.Ref, Live: c, Text: "new connections go to " + string(c) + ", by hand"})
	return e, d.State.appendHistory(e)
}

// switchError returns the error of a switch that wrote active.yml and was interrupted, or that
// Traefik did not follow. A person must act only if Traefik's color does not serve.
func (d *Deployer) switchError(ctx context.Context, c stack.Color, err error) error {
	interrupted := ctx.Err() != nil
	if interrupted {
		err = errInterrupted
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	status, statusErr := d.Deps.Traffic.Status(ctx)
	s, inspectErr := d.Deps.Containers.Inspect(ctx)
	serves := statusErr == nil && inspectErr == nil && s.CountServing(status.Route.Live) > 0
	if !interrupted && !serves {
		return &StuckError{Reason: err.Error(), Remedy: "`switchyard status` shows what Traefik serves"}
	}
	return &UnfinishedError{Step: "switch", Live: status.Route.Live, Err: err, Next: fmt.Sprintf("`switchyard switch %s` does it again", c)}
}

// requireNoDeploy returns an error if a deploy is unfinished: another command would
// interfere with it.
func (d *Deployer) requireNoDeploy() error {
	j, err := d.State.Current()
	if err != nil {
		return &RefusedError{err}
	}
	if j != nil {
		return d.refuseUnfinished(j)
	}
	return nil
}

// refuseUnfinished returns the error of a command that an unfinished deploy blocks.
func (d *Deployer) refuseUnfinished(j *Journal) error {
	return &RefusedError{fmt.Errorf("a deploy of %s is unfinished: continue it with `switchyard deploy %s`, or roll it back with `switchyard rollback`", j.Image.Ref, j.Image.Ref)}
}
