package deploy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// A World is all that the machine touches.
type World struct {
	Containers Containers
	Clients    Clients
	Images     Images
	Traffic    Traffic
	Probes     Probes
	Metrics    Metrics
	Records    Records
	Clock      Clock
}

// A Machine brings a deploy to an end, or takes it back. One command runs it at
// a time: the caller has the lock.
type Machine struct {
	World    World
	State    State
	Settings Settings
	// Preflight, if set, looks whether a deploy of the image may begin.
	Preflight func(ctx context.Context, image Image) error
	// Blind goes on without metrics.
	Blind bool
	// Again deploys an image that is live already.
	Again bool
	// Report, if set, is told of each event.
	Report func(Event)

	wroteRoute time.Time // when the route was written last
}

// An Event is a line of progress.
type Event struct {
	At   time.Time `json:"at"`
	Step string    `json:"step,omitempty"`
	// Kind is begin, done, skip, note or warn; of a check its answer.
	Kind string `json:"kind"`
	Text string `json:"text,omitempty"`
}

func (m *Machine) say(step, kind, format string, args ...any) {
	if m.Report != nil {
		m.Report(Event{At: m.World.Clock.Now(), Step: step, Kind: kind, Text: fmt.Sprintf(format, args...)})
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
	Entry Entry
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

// fired is a trigger that counts.
type fired struct {
	trigger Trigger
	reason  string
}

func (f *fired) Error() string { return f.reason }

func fire(t Trigger, format string, args ...any) error {
	return &fired{t, fmt.Sprintf(format, args...)}
}

// unseen: the world can't be looked at, so that nothing may be concluded.
type unseen struct{ err error }

func (u *unseen) Error() string { return u.err.Error() }
func (u *unseen) Unwrap() error { return u.err }

// ErrAlreadyLive says that the image serves, and that nothing was done.
var ErrAlreadyLive = errors.New("the image is live already")

// Deploy brings the image into service, or goes on where a command that was
// killed left it.
func (m *Machine) Deploy(ctx context.Context, ref string) (Entry, error) {
	j, err := m.State.Current()
	if err != nil {
		return Entry{}, &RefusedError{err}
	}
	switch {
	case j == nil:
		if j, err = m.begin(ctx, ref); err != nil {
			return Entry{}, err
		}
	case j.Image.Ref != ref:
		return Entry{}, &RefusedError{fmt.Errorf("a deploy of %s is unfinished: go on with it by `switchyard deploy %s`, or take it back by `switchyard rollback`", j.Image.Ref, j.Image.Ref)}
	default:
		m.say("", "note", "going on with the deploy %s, begun %s", j.ID, j.Started.Format(time.RFC3339))
	}
	if j.RollingBack {
		return m.back(ctx, j)
	}
	return m.conclude(ctx, j, m.forward(ctx, j))
}

// begin looks at the world and writes the first journal.
func (m *Machine) begin(ctx context.Context, ref string) (*Journal, error) {
	j, err := m.foresee(ctx, ref)
	if err != nil {
		return nil, err
	}
	if m.Preflight != nil {
		m.say("preflight", "begin", "is everything as a deploy needs it?")
		if err := m.Preflight(ctx, j.Image); err != nil {
			return nil, &RefusedError{err}
		}
		m.say("preflight", "done", "")
	}
	m.tell(ctx, Notice{Kind: "start", Deploy: j.ID, Image: ref, Live: j.From, Text: fmt.Sprintf("deploying %s to %s", ref, j.To)})
	if err := m.State.save(j); err != nil {
		return nil, &RefusedError{err}
	}
	return j, nil
}

// foresee makes the journal of a deploy that would begin now.
func (m *Machine) foresee(ctx context.Context, ref string) (*Journal, error) {
	image, err := m.World.Images.Resolve(ctx, ref)
	if err != nil {
		return nil, &RefusedError{err}
	}
	route, err := m.World.Traffic.Route(ctx)
	if err != nil {
		return nil, &RefusedError{fmt.Errorf("%w; see what Traefik serves with `switchyard status` and write the file anew with `switchyard switch COLOR`", err)}
	}
	sight, err := m.World.Containers.Look(ctx)
	if err != nil {
		return nil, &RefusedError{err}
	}
	from := route.Live
	if old := sight.Of(from); len(old) > 0 && old[0].Image.ID == image.ID && sight.serving(from) > 0 && !m.Again {
		return nil, &RefusedError{fmt.Errorf("%w: %s is on %s; --again deploys it all the same", ErrAlreadyLive, ref, from)}
	}
	now := m.World.Clock.Now().UTC()
	j := &Journal{Image: image, From: from, To: from.Other(), Started: now}
	j.ID = now.Format("20060102T150405Z") + "-" + string(j.To)
	j.Old = launchOf(from, sight)
	if j.Replicas = m.Settings.Replicas; j.Replicas == 0 {
		j.Replicas = j.Old.Replicas
	}
	if j.Replicas == 0 {
		j.Replicas = 3
	}
	return j, nil
}

// launchOf is what a color runs; without replicas when it does not run.
func launchOf(c Color, s Sight) Launch {
	l := Launch{Color: c, Replicas: len(s.Of(c))}
	if l.Replicas > 0 {
		l.Image, l.Deployment = s.Of(c)[0].Image, s.Of(c)[0].Deployment
	}
	return l
}

// forward takes the steps that are not done.
func (m *Machine) forward(ctx context.Context, j *Journal) error {
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
			m.say(s.name, "skip", "done already")
			continue
		}
		m.say(s.name, "begin", "%s", s.text)
		began := m.World.Clock.Now()
		note, err := s.do(ctx)
		if err != nil {
			return &stepError{s.name, err}
		}
		j.Done = append(slices.DeleteFunc(j.Done, func(d Stage) bool { return d.Step == s.name }),
			Stage{Step: s.name, At: began.UTC(), Took: m.World.Clock.Now().Sub(began).Round(time.Millisecond).Seconds(), Note: note})
		if err := m.State.save(j); err != nil {
			return &stepError{s.name, err}
		}
		m.say(s.name, "done", "%s", note)
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
func (m *Machine) conclude(ctx context.Context, j *Journal, err error) (Entry, error) {
	if err == nil {
		e := m.entry(j, Deployed, j.To)
		if err := m.State.finish(e); err != nil {
			return e, m.unfinished(ctx, j, "record", err)
		}
		m.tell(ctx, Notice{Kind: "deployed", Deploy: j.ID, Image: j.Image.Ref, Live: j.To, Text: j.Image.Ref + " is live on " + string(j.To)})
		return e, nil
	}
	var at *stepError
	step := "begin"
	if errors.As(err, &at) {
		step, err = at.step, at.err
	}
	var blind *unseen
	if ctx.Err() != nil || errors.As(err, &blind) {
		return Entry{}, m.unfinished(ctx, j, step, err)
	}
	j.RollingBack, j.Trigger, j.Reason, j.Triggered = true, TriggerStart, step+": "+err.Error(), m.World.Clock.Now().UTC()
	j.FailedAt = step
	var f *fired
	if errors.As(err, &f) {
		j.Trigger, j.Reason = f.trigger, f.reason
	}
	m.say(step, "warn", "%s: rolling back", j.Reason)
	if err := m.State.save(j); err != nil {
		// A full disk must not keep the bad version live: go back all the same.
		m.say(step, "warn", "%v", err)
	}
	return m.back(ctx, j)
}

// errInterrupted stands for what a program said that was ended in the middle.
var errInterrupted = errors.New("interrupted")

func (m *Machine) unfinished(ctx context.Context, j *Journal, step string, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		err = errInterrupted
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	u := &UnfinishedError{Step: step, Err: err, Next: fmt.Sprintf("`switchyard deploy %s` goes on, `switchyard rollback` takes it back", j.Image.Ref)}
	if j.RollingBack {
		u.Next = "`switchyard rollback` goes on with the way back"
	}
	if r, err := m.World.Traffic.Route(ctx); err == nil {
		u.Live = r.Live
	}
	return u
}

// entry is the journal's line in the history.
func (m *Machine) entry(j *Journal, o Outcome, live Color) Entry {
	e := Entry{
		ID: j.ID, Outcome: o, Color: live, Image: j.Image, From: j.From, Old: &j.Old, Started: j.Started, Ended: m.World.Clock.Now().UTC(),
		Trigger: j.Trigger, Reason: j.Reason, FailedAt: j.FailedAt, Evidence: j.Evidence, Held: j.Held, Notes: j.Notes, Steps: j.Done,
	}
	if !j.Back.IsZero() {
		e.BackAfter = j.Back.Sub(j.Triggered).Round(time.Millisecond).Seconds()
	}
	return e
}

// tell sends a notice. One that does not arrive stops nothing, and is said.
func (m *Machine) tell(ctx context.Context, n Notice) {
	n.At = m.World.Clock.Now().UTC()
	if err := m.World.Records.Tell(ctx, n); err != nil {
		m.say("", "warn", "the notice did not arrive: %v", err)
	}
}
