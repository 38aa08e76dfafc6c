// Package deploy puts a new image into service beside the one that runs,
// moves all clients to it, and moves them back when the new version does worse.
// DESIGN.md explains how a deploy survives being killed at any instruction.
package deploy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"switchyard/internal/stack"
)

// Dependencies are all that a Deployer uses to see and change its environment.
type Dependencies struct {
	Containers Containers
	Clients    Clients
	Images     Images
	Traffic    Traffic
	Probes     Probes
	Metrics    Metrics
	Records    Records
	Clock      Clock
}

// A Deployer runs a deploy to its end or rolls it back. It is not safe for
// concurrent use, and the caller must hold the lock of State.
type Deployer struct {
	Deps     Dependencies
	State    StateDir
	Settings Settings
	// Preflight, if set, returns an error if a deploy of the image must not begin.
	Preflight func(ctx context.Context, image stack.Image) error
	// WithoutMetrics deploys even if there are no metrics.
	WithoutMetrics bool
	// AllowRedeploy deploys an image even if it is live already.
	AllowRedeploy bool
	// Report, if set, receives each event.
	Report func(Event)

	routeWrittenAt time.Time // the time of the last SetRoute
}

// An Event is a line of progress.
type Event struct {
	At   time.Time `json:"at"`
	Step string    `json:"step,omitempty"`
	// Kind is begin, done, skip, note or warn; for a preflight check it is the
	// check's status.
	Kind string `json:"kind"`
	Text string `json:"text,omitempty"`
}

func (d *Deployer) report(step, kind, format string, args ...any) {
	if d.Report != nil {
		d.Report(Event{At: d.Deps.Clock.Now(), Step: step, Kind: kind, Text: fmt.Sprintf(format, args...)})
	}
}

// A RefusedError says that the command changed nothing.
type RefusedError struct{ Err error }

func (e *RefusedError) Error() string { return e.Err.Error() }
func (e *RefusedError) Unwrap() error { return e.Err }

// An UnfinishedError says that the command stopped at a point where a color serves
// all clients. The same command continues it.
type UnfinishedError struct {
	Step string
	Live stack.Color // empty if it could not be read
	Err  error
	Next string
}

func (e *UnfinishedError) Error() string {
	live := "which color is live could not be read"
	if e.Live != "" {
		live = string(e.Live) + " is live"
	}
	return fmt.Sprintf("stopped at %s (%v); %s; %s", e.Step, e.Err, live, e.Next)
}

func (e *UnfinishedError) Unwrap() error { return e.Err }

// A RolledBackError says that the new version failed, and that the old one serves
// again.
type RolledBackError struct {
	Entry HistoryEntry
}

func (e *RolledBackError) Error() string {
	return fmt.Sprintf("%s was rolled back: %s; %s is live", e.Entry.Image.Ref, e.Entry.Reason, e.Entry.Color)
}

// A StuckError says that neither color serves as it should, and that an operator
// has to act.
type StuckError struct {
	Reason string
	Remedy string
}

func (e *StuckError) Error() string { return e.Reason + "; " + e.Remedy }

// A triggerError is a trigger that fired: the deploy is rolled back.
type triggerError struct {
	trigger Trigger
	reason  string
}

func (e *triggerError) Error() string { return e.reason }

// An unknownStateError says that the containers could not be inspected. It is no
// reason for a rollback.
type unknownStateError struct{ err error }

func (e *unknownStateError) Error() string { return e.err.Error() }
func (e *unknownStateError) Unwrap() error { return e.err }

// ErrAlreadyLive says that the image is live already, and that nothing was done.
var ErrAlreadyLive = errors.New("the image is live already")

// Deploy puts the image into service, or continues the deploy that a killed
// command left unfinished.
func (d *Deployer) Deploy(ctx context.Context, ref string) (HistoryEntry, error) {
	j, err := d.State.Current()
	if err != nil {
		return HistoryEntry{}, &RefusedError{err}
	}
	switch {
	case j == nil:
		if j, err = d.begin(ctx, ref); err != nil {
			return HistoryEntry{}, err
		}
	case j.Image.Ref != ref:
		return HistoryEntry{}, d.refuseUnfinished(j)
	default:
		d.report("", "note", "continuing the deploy %s, begun %s", j.ID, j.Started.Format(time.RFC3339))
	}
	if j.RollingBack {
		return d.runRollback(ctx, j)
	}
	return d.finishOrRollBack(ctx, j, d.runSteps(ctx, j))
}

// begin plans the deploy, runs the preflight checks and writes the first journal.
func (d *Deployer) begin(ctx context.Context, ref string) (*Journal, error) {
	j, err := d.planDeploy(ctx, ref)
	if err != nil {
		return nil, err
	}
	if d.Preflight != nil {
		d.report("preflight", "begin", "check that a deploy can begin")
		if err := d.Preflight(ctx, j.Image); err != nil {
			return nil, &RefusedError{err}
		}
		d.report("preflight", "done", "")
	}
	d.notify(ctx, Notification{Kind: "start", Deploy: j.ID, Image: ref, Live: j.From, Text: fmt.Sprintf("deploying %s to %s", ref, j.To)})
	if err := d.State.saveJournal(j); err != nil {
		return nil, &RefusedError{err}
	}
	return j, nil
}

// planDeploy returns the journal of a deploy that would begin now.
func (d *Deployer) planDeploy(ctx context.Context, ref string) (*Journal, error) {
	image, err := d.Deps.Images.Resolve(ctx, ref)
	if err != nil {
		return nil, &RefusedError{err}
	}
	route, err := d.Deps.Traffic.Route(ctx)
	if err != nil {
		return nil, &RefusedError{fmt.Errorf("%w; `switchyard status` shows what Traefik serves, `switchyard switch COLOR` rewrites the file", err)}
	}
	snapshot, err := d.Deps.Containers.Inspect(ctx)
	if err != nil {
		return nil, &RefusedError{err}
	}
	from := route.Live
	if old := snapshot.Running(from); len(old) > 0 && old[0].Image.ID == image.ID && snapshot.CountServing(from) > 0 && !d.AllowRedeploy {
		return nil, &RefusedError{fmt.Errorf("%w: %s is on %s; --again deploys it nevertheless", ErrAlreadyLive, ref, from)}
	}
	now := d.Deps.Clock.Now().UTC()
	j := &Journal{Image: image, From: from, To: from.Other(), Started: now}
	j.ID = now.Format("20060102T150405Z") + "-" + string(j.To)
	j.Old = snapshot.Spec(from)
	if j.Replicas = d.Settings.Replicas; j.Replicas == 0 {
		j.Replicas = j.Old.Replicas
	}
	if j.Replicas == 0 {
		j.Replicas = 3
	}
	return j, nil
}

// runSteps runs the steps that are not done yet, in order.
func (d *Deployer) runSteps(ctx context.Context, j *Journal) error {
	jd := newJudge(d.Settings, j)
	for _, s := range d.steps(j, jd) {
		if err := ctx.Err(); err != nil {
			return &stepError{s.name, err}
		}
		done, err := s.done(ctx)
		if err != nil {
			return &stepError{s.name, err}
		}
		if done {
			d.report(s.name, "skip", "done already")
			continue
		}
		d.report(s.name, "begin", "%s", s.text)
		began := d.Deps.Clock.Now()
		note, err := s.do(ctx)
		if err != nil {
			return &stepError{s.name, err}
		}
		j.CompletedSteps = append(slices.DeleteFunc(j.CompletedSteps, func(done CompletedStep) bool { return done.Step == s.name }),
			CompletedStep{Step: s.name, At: began.UTC(), TookSeconds: d.Deps.Clock.Now().Sub(began).Round(time.Millisecond).Seconds(), Note: note})
		if err := d.State.saveJournal(j); err != nil {
			return &stepError{s.name, err}
		}
		d.report(s.name, "done", "%s", note)
	}
	return nil
}

// A stepError names the step that failed.
type stepError struct {
	step string
	err  error
}

func (e *stepError) Error() string { return e.step + ": " + e.err.Error() }
func (e *stepError) Unwrap() error { return e.err }

// finishOrRollBack ends the deploy according to err, the result of its steps: it
// records the deploy if err is nil, leaves it unfinished if the command was interrupted or the
// state is unknown, and otherwise rolls it back.
func (d *Deployer) finishOrRollBack(ctx context.Context, j *Journal, err error) (HistoryEntry, error) {
	if err == nil {
		e := d.historyEntry(j, Deployed, j.To)
		if err := d.State.finish(e); err != nil {
			return e, d.unfinished(ctx, j, "record", err)
		}
		d.notify(ctx, Notification{Kind: "deployed", Deploy: j.ID, Image: j.Image.Ref, Live: j.To, Text: j.Image.Ref + " is live on " + string(j.To)})
		return e, nil
	}
	var stepErr *stepError
	step := "begin"
	if errors.As(err, &stepErr) {
		step, err = stepErr.step, stepErr.err
	}
	var unknown *unknownStateError
	if ctx.Err() != nil || errors.As(err, &unknown) {
		return HistoryEntry{}, d.unfinished(ctx, j, step, err)
	}
	j.RollingBack, j.Trigger, j.Reason, j.TriggeredAt = true, TriggerStart, step+": "+err.Error(), d.Deps.Clock.Now().UTC()
	j.FailedAt = step
	var f *triggerError
	if errors.As(err, &f) {
		j.Trigger, j.Reason = f.trigger, f.reason
	}
	d.report(step, "warn", "%s: rolling back", j.Reason)
	if err := d.State.saveJournal(j); err != nil {
		// A full disk must not keep the bad version live: roll back nevertheless.
		d.report(step, "warn", "%v", err)
	}
	return d.runRollback(ctx, j)
}

// errInterrupted replaces the error of a program that was ended by Ctrl-C.
var errInterrupted = errors.New("interrupted")

// unfinished returns an UnfinishedError with the live color and the commands that
// continue the deploy or roll it back.
func (d *Deployer) unfinished(ctx context.Context, j *Journal, step string, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		err = errInterrupted
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	u := &UnfinishedError{Step: step, Err: err, Next: fmt.Sprintf("`switchyard deploy %s` continues it, `switchyard rollback` rolls it back", j.Image.Ref)}
	if j.RollingBack {
		u.Next = "`switchyard rollback` continues the rollback"
	}
	if r, err := d.Deps.Traffic.Route(ctx); err == nil {
		u.Live = r.Live
	}
	return u
}

// historyEntry returns the journal's line of the history.
func (d *Deployer) historyEntry(j *Journal, o Outcome, live stack.Color) HistoryEntry {
	e := HistoryEntry{
		ID: j.ID, Outcome: o, Color: live, Image: j.Image, From: j.From, Old: &j.Old, Started: j.Started, Ended: d.Deps.Clock.Now().UTC(),
		Trigger: j.Trigger, Reason: j.Reason, FailedAt: j.FailedAt, DiagnosticsDir: j.DiagnosticsDir, SuppressedTriggers: j.SuppressedTriggers, Notes: j.Notes, Steps: j.CompletedSteps,
	}
	if !j.OldServingAt.IsZero() {
		e.RecoverySeconds = j.OldServingAt.Sub(j.TriggeredAt).Round(time.Millisecond).Seconds()
	}
	return e
}

// notify sends a notification. A failure stops nothing and is reported.
func (d *Deployer) notify(ctx context.Context, n Notification) {
	n.At = d.Deps.Clock.Now().UTC()
	if err := d.Deps.Records.Notify(ctx, n); err != nil {
		d.report("", "warn", "the notification could not be sent: %v", err)
	}
}
