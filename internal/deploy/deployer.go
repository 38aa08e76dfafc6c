package deploy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// A Dependencies is all that the machine touches.
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

// A Deployer brings a deploy to an end, or takes it back. One command runs it at
// a time: the caller has the lock.
type Deployer struct {
	Deps     Dependencies
	State    StateDir
	Settings Settings
	// Preflight, if set, looks whether a deploy of the image may begin.
	Preflight func(ctx context.Context, image Image) error
	// WithoutMetrics goes on without metrics.
	WithoutMetrics bool
	// AllowRedeploy deploys an image that is live already.
	AllowRedeploy bool
	// Report, if set, is told of each event.
	Report func(Event)

	routeWrittenAt time.Time // when the route was written last
}

// An Event is a line of progress.
type Event struct {
	At   time.Time `json:"at"`
	Step string    `json:"step,omitempty"`
	// Kind is begin, done, skip, note or warn; of a check its answer.
	Kind string `json:"kind"`
	Text string `json:"text,omitempty"`
}

func (m *Deployer) report(step, kind, format string, args ...any) {
	if m.Report != nil {
		m.Report(Event{At: m.Deps.Clock.Now(), Step: step, Kind: kind, Text: fmt.Sprintf(format, args...)})
	}
}

// A RefusedError says that nothing was begun.
type RefusedError struct{ Err error }

func (e *RefusedError) Error() string { return e.Err.Error() }
func (e *RefusedError) Unwrap() error { return e.Err }

// An UnfinishedError says that the deploy stands still, at a place where nobody
// is harmed. The same command goes on with it.
type UnfinishedError struct {
	Step string
	Live Color // empty when that could not be read
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

// A RolledBackError says that the new version did not hold, and that the old one
// serves.
type RolledBackError struct {
	Entry HistoryEntry
}

func (e *RolledBackError) Error() string {
	return fmt.Sprintf("%s was rolled back: %s; %s is live", e.Entry.Image.Ref, e.Entry.Reason, e.Entry.Color)
}

// A StuckError says that neither color serves as it should, and that a person
// has to look.
type StuckError struct {
	Reason string
	Remedy string
}

func (e *StuckError) Error() string { return e.Reason + "; " + e.Remedy }

// triggerError is a trigger that counts.
type triggerError struct {
	trigger Trigger
	reason  string
}

func (f *triggerError) Error() string { return f.reason }

func newTriggerError(t Trigger, format string, args ...any) error {
	return &triggerError{t, fmt.Sprintf(format, args...)}
}

// unknownStateError: the world can't be looked at, so that nothing may be concluded.
type unknownStateError struct{ err error }

func (u *unknownStateError) Error() string { return u.err.Error() }
func (u *unknownStateError) Unwrap() error { return u.err }

// ErrAlreadyLive says that the image serves, and that nothing was done.
var ErrAlreadyLive = errors.New("the image is live already")

// Deploy brings the image into service, or goes on where a command that was
// killed left it.
func (m *Deployer) Deploy(ctx context.Context, ref string) (HistoryEntry, error) {
	j, err := m.State.Current()
	if err != nil {
		return HistoryEntry{}, &RefusedError{err}
	}
	switch {
	case j == nil:
		if j, err = m.begin(ctx, ref); err != nil {
			return HistoryEntry{}, err
		}
	case j.Image.Ref != ref:
		return HistoryEntry{}, &RefusedError{fmt.Errorf("a deploy of %s is unfinished: go on with it by `switchyard deploy %s`, or take it back by `switchyard rollback`", j.Image.Ref, j.Image.Ref)}
	default:
		m.report("", "note", "going on with the deploy %s, begun %s", j.ID, j.Started.Format(time.RFC3339))
	}
	if j.RollingBack {
		return m.runRollback(ctx, j)
	}
	return m.conclude(ctx, j, m.runSteps(ctx, j))
}

// begin looks at the world and writes the first journal.
func (m *Deployer) begin(ctx context.Context, ref string) (*Journal, error) {
	j, err := m.planDeploy(ctx, ref)
	if err != nil {
		return nil, err
	}
	if m.Preflight != nil {
		m.report("preflight", "begin", "is everything as a deploy needs it?")
		if err := m.Preflight(ctx, j.Image); err != nil {
			return nil, &RefusedError{err}
		}
		m.report("preflight", "done", "")
	}
	m.notify(ctx, Notification{Kind: "start", Deploy: j.ID, Image: ref, Live: j.From, Text: fmt.Sprintf("deploying %s to %s", ref, j.To)})
	if err := m.State.saveJournal(j); err != nil {
		return nil, &RefusedError{err}
	}
	return j, nil
}

// planDeploy makes the journal of a deploy that would begin now.
func (m *Deployer) planDeploy(ctx context.Context, ref string) (*Journal, error) {
	image, err := m.Deps.Images.Resolve(ctx, ref)
	if err != nil {
		return nil, &RefusedError{err}
	}
	route, err := m.Deps.Traffic.Route(ctx)
	if err != nil {
		return nil, &RefusedError{fmt.Errorf("%w; see what Traefik serves with `switchyard status` and write the file anew with `switchyard switch COLOR`", err)}
	}
	snapshot, err := m.Deps.Containers.Inspect(ctx)
	if err != nil {
		return nil, &RefusedError{err}
	}
	from := route.Live
	if old := snapshot.Running(from); len(old) > 0 && old[0].Image.ID == image.ID && snapshot.countServing(from) > 0 && !m.AllowRedeploy {
		return nil, &RefusedError{fmt.Errorf("%w: %s is on %s; --again deploys it all the same", ErrAlreadyLive, ref, from)}
	}
	now := m.Deps.Clock.Now().UTC()
	j := &Journal{Image: image, From: from, To: from.Other(), Started: now}
	j.ID = now.Format("20060102T150405Z") + "-" + string(j.To)
	j.Old = currentSpec(from, snapshot)
	if j.Replicas = m.Settings.Replicas; j.Replicas == 0 {
		j.Replicas = j.Old.Replicas
	}
	if j.Replicas == 0 {
		j.Replicas = 3
	}
	return j, nil
}

// currentSpec is what a color runs; without replicas when it does not run.
func currentSpec(c Color, s Snapshot) ColorSpec {
	l := ColorSpec{Color: c, Replicas: len(s.Running(c))}
	if l.Replicas > 0 {
		l.Image, l.Deployment = s.Running(c)[0].Image, s.Running(c)[0].Deployment
	}
	return l
}

// runSteps takes the steps that are not done.
func (m *Deployer) runSteps(ctx context.Context, j *Journal) error {
	g := newJudge(m.Settings, j)
	for _, s := range m.steps(j, g) {
		if err := ctx.Err(); err != nil {
			return &stepError{s.name, err}
		}
		done, err := s.done(ctx)
		if err != nil {
			return &stepError{s.name, err}
		}
		if done {
			m.report(s.name, "skip", "done already")
			continue
		}
		m.report(s.name, "begin", "%s", s.text)
		began := m.Deps.Clock.Now()
		note, err := s.do(ctx)
		if err != nil {
			return &stepError{s.name, err}
		}
		j.CompletedSteps = append(slices.DeleteFunc(j.CompletedSteps, func(d CompletedStep) bool { return d.Step == s.name }),
			CompletedStep{Step: s.name, At: began.UTC(), TookSeconds: m.Deps.Clock.Now().Sub(began).Round(time.Millisecond).Seconds(), Note: note})
		if err := m.State.saveJournal(j); err != nil {
			return &stepError{s.name, err}
		}
		m.report(s.name, "done", "%s", note)
	}
	return nil
}

// stepError is where it came to a stop.
type stepError struct {
	step string
	err  error
}

func (e *stepError) Error() string { return e.step + ": " + e.err.Error() }
func (e *stepError) Unwrap() error { return e.err }

// conclude decides what an ended attempt means.
func (m *Deployer) conclude(ctx context.Context, j *Journal, err error) (HistoryEntry, error) {
	if err == nil {
		e := m.historyEntry(j, Deployed, j.To)
		if err := m.State.finish(e); err != nil {
			return e, m.unfinished(ctx, j, "record", err)
		}
		m.notify(ctx, Notification{Kind: "deployed", Deploy: j.ID, Image: j.Image.Ref, Live: j.To, Text: j.Image.Ref + " is live on " + string(j.To)})
		return e, nil
	}
	var stepErr *stepError
	step := "begin"
	if errors.As(err, &stepErr) {
		step, err = stepErr.step, stepErr.err
	}
	var unknown *unknownStateError
	if ctx.Err() != nil || errors.As(err, &unknown) {
		return HistoryEntry{}, m.unfinished(ctx, j, step, err)
	}
	j.RollingBack, j.Trigger, j.Reason, j.TriggeredAt = true, TriggerStart, step+": "+err.Error(), m.Deps.Clock.Now().UTC()
	j.FailedAt = step
	var f *triggerError
	if errors.As(err, &f) {
		j.Trigger, j.Reason = f.trigger, f.reason
	}
	m.report(step, "warn", "%s: rolling back", j.Reason)
	if err := m.State.saveJournal(j); err != nil {
		// A full disk must not keep the bad version live: go back all the same.
		m.report(step, "warn", "%v", err)
	}
	return m.runRollback(ctx, j)
}

// errInterrupted stands for what a program said that was ended in the middle.
var errInterrupted = errors.New("interrupted")

func (m *Deployer) unfinished(ctx context.Context, j *Journal, step string, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		err = errInterrupted
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	u := &UnfinishedError{Step: step, Err: err, Next: fmt.Sprintf("`switchyard deploy %s` goes on, `switchyard rollback` takes it back", j.Image.Ref)}
	if j.RollingBack {
		u.Next = "`switchyard rollback` goes on with the way back"
	}
	if r, err := m.Deps.Traffic.Route(ctx); err == nil {
		u.Live = r.Live
	}
	return u
}

// historyEntry is the journal's line in the history.
func (m *Deployer) historyEntry(j *Journal, o Outcome, live Color) HistoryEntry {
	e := HistoryEntry{
		ID: j.ID, Outcome: o, Color: live, Image: j.Image, From: j.From, Old: &j.Old, Started: j.Started, Ended: m.Deps.Clock.Now().UTC(),
		Trigger: j.Trigger, Reason: j.Reason, FailedAt: j.FailedAt, DiagnosticsDir: j.DiagnosticsDir, SuppressedTriggers: j.SuppressedTriggers, Notes: j.Notes, Steps: j.CompletedSteps,
	}
	if !j.OldServingAt.IsZero() {
		e.RecoverySeconds = j.OldServingAt.Sub(j.TriggeredAt).Round(time.Millisecond).Seconds()
	}
	return e
}

// notify sends a notice. One that does not arrive stops nothing, and is said.
func (m *Deployer) notify(ctx context.Context, n Notification) {
	n.At = m.Deps.Clock.Now().UTC()
	if err := m.Deps.Records.Notify(ctx, n); err != nil {
		m.report("", "warn", "the notice did not arrive: %v", err)
	}
}
