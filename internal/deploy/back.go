package deploy

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

// back is the way back: the old color serves, new connections go there, then
// the clients, and the bad color is stopped when what it can tell was kept.
// Every part looks first, so that it may be cut short and begun again.
func (m *Machine) back(ctx context.Context, j *Journal) (Entry, error) {
	if j.first() {
		return m.backFromFirst(ctx, j)
	}
	m.say("rollback", "begin", "back to %s", j.From)
	if err := m.oldServes(ctx, j); err != nil {
		return Entry{}, m.stuck(ctx, j, err)
	}
	if err := m.routeBack(ctx, j); err != nil {
		return Entry{}, m.stuck(ctx, j, err)
	}
	if j.Back.IsZero() {
		j.Back = m.World.Clock.Now().UTC()
		m.keepJournal(j)
		m.say("rollback", "note", "%s serves again", j.From)
		m.tell(ctx, Notice{Kind: "rollback", Deploy: j.ID, Image: j.Image.Ref, Live: j.From, Text: fmt.Sprintf("%s was rolled back: %s", j.Image.Ref, j.Reason)})
	}
	if j.Evidence == "" {
		folder := filepath.Join(m.State.Dir, "bad", j.ID)
		if err := m.World.Records.Keep(ctx, j.To, folder); err != nil {
			m.say("rollback", "warn", "not all that %s could tell was kept: %v", j.To, err)
		}
		j.Evidence = folder
		m.keepJournal(j)
	}
	if err := m.empty(ctx, j); err != nil {
		return Entry{}, m.unfinished(ctx, j, "rollback", err)
	}
	if err := m.World.Containers.Stop(ctx, j.To); err != nil {
		return Entry{}, m.unfinished(ctx, j, "rollback", err)
	}
	e := m.entry(j, RolledBack, j.From)
	if err := m.State.finish(e); err != nil {
		return e, m.unfinished(ctx, j, "rollback", err)
	}
	m.say("rollback", "done", "%s is stopped; what it could tell is in %s", j.To, j.Evidence)
	return e, &RolledBackError{e}
}

// keepJournal saves it if it can: a full disk keeps nobody on a bad version.
func (m *Machine) keepJournal(j *Journal) {
	if err := m.State.save(j); err != nil {
		m.say("rollback", "warn", "%v", err)
	}
}

// oldServes brings the old color back to where new connections may go.
func (m *Machine) oldServes(ctx context.Context, j *Journal) error {
	limit := m.World.Clock.Now().Add(m.Settings.ReadyLimit)
	for begun := false; ; begun = true {
		s, err := m.look(ctx)
		if err != nil {
			return err
		}
		balanced, _ := m.World.Traffic.Serving(ctx) // broken routers are what this mends
		up := balanced.Up[j.From]
		serving := s.serving(j.From)
		if serving >= j.Old.Replicas && up >= min(serving, j.Old.Replicas) {
			return nil
		}
		late := m.World.Clock.Now().After(limit)
		switch {
		case late && serving > 0 && up > 0:
			m.say("rollback", "warn", "only %d of %d replicas of %s are ready%s", serving, j.Old.Replicas, j.From, troubles(s.Replicas[j.From]))
			return nil
		case late:
			return fmt.Errorf("no replica of %s is ready after %v%s", j.From, m.Settings.ReadyLimit, troubles(s.Replicas[j.From]))
		}
		if len(s.Of(j.From)) < j.Old.Replicas && !begun {
			if err := m.World.Containers.Start(ctx, j.Old); err != nil {
				m.say("rollback", "warn", "%v", err)
			}
		}
		if err := m.undrain(ctx, s, j.From, j.Old.Deployment); err != nil {
			m.say("rollback", "warn", "%v", err)
		}
		if err := m.World.Clock.Sleep(ctx, pollEvery); err != nil {
			return err
		}
	}
}

// routeBack sends new connections to the old color.
func (m *Machine) routeBack(ctx context.Context, j *Journal) error {
	want := Route{Live: j.From}
	if r, err := m.World.Traffic.Route(ctx); err == nil && r == want {
		if s, err := m.World.Traffic.Serving(ctx); err == nil && s.Route == want {
			return nil
		}
	}
	return m.route(ctx, want)
}

// empty moves the bad color's clients. A color too broken to be drained is not
// waited for: its clients come back by themselves when it is stopped.
func (m *Machine) empty(ctx context.Context, j *Journal) error {
	limit := m.World.Clock.Now().Add(m.Settings.DrainLimit)
	for failures := 0; ; {
		s, err := m.look(ctx)
		if err != nil {
			return err
		}
		busy := s.names(j.To, func(r Replica) bool { return r.Answers && r.Drain != "drained" })
		if len(busy) == 0 {
			return nil
		}
		if m.World.Clock.Now().After(limit) || failures > 3 {
			m.say("rollback", "warn", "%s could not be emptied: %d clients are left there and will come back by themselves", j.To, s.clients(j.To))
			return nil
		}
		if begin := s.names(j.To, func(r Replica) bool { return r.Answers && r.Drain == "" }); len(begin) > 0 {
			if err := m.World.Clients.Drain(ctx, begin, "deployment", "rollback"); err != nil {
				failures++
				m.say("rollback", "warn", "%v", err)
			}
		}
		if err := m.World.Clock.Sleep(ctx, min(m.Settings.ProbeEvery, time.Second)); err != nil {
			return err
		}
	}
}

// backFromFirst takes a first deploy back: there is nothing to go to. What
// serves stays; what does not is stopped.
func (m *Machine) backFromFirst(ctx context.Context, j *Journal) (Entry, error) {
	s, err := m.look(ctx)
	if err != nil {
		return Entry{}, m.unfinished(ctx, j, "rollback", err)
	}
	if r, err := m.World.Traffic.Route(ctx); err == nil && r.Live == j.To && s.serving(j.To) > 0 {
		return Entry{}, m.stuck(ctx, j, fmt.Errorf("%s, and nothing ran before to which one could go back: %s stays live", j.Reason, j.To))
	}
	if j.Evidence == "" {
		folder := filepath.Join(m.State.Dir, "bad", j.ID)
		if err := m.World.Records.Keep(ctx, j.To, folder); err != nil {
			m.say("rollback", "warn", "not all that %s could tell was kept: %v", j.To, err)
		}
		j.Evidence = folder
		m.keepJournal(j)
	}
	if err := m.World.Containers.Stop(ctx, j.To); err != nil {
		return Entry{}, m.unfinished(ctx, j, "rollback", err)
	}
	if err := m.World.Traffic.Set(ctx, Route{Live: j.From}); err != nil {
		return Entry{}, m.unfinished(ctx, j, "rollback", err)
	}
	e := m.entry(j, RolledBack, j.From)
	if err := m.State.finish(e); err != nil {
		return e, m.unfinished(ctx, j, "rollback", err)
	}
	return e, &RolledBackError{e}
}

// stuck is when the way back is barred.
func (m *Machine) stuck(ctx context.Context, j *Journal, err error) error {
	if ctx.Err() != nil {
		return m.unfinished(ctx, j, "rollback", err)
	}
	return &StuckError{Reason: err.Error(), Remedy: "mend it and run `switchyard rollback` again"}
}

// Rollback goes on with a rollback, takes back the deploy under way, or the last
// one.
func (m *Machine) Rollback(ctx context.Context) (Entry, error) {
	j, err := m.State.Current()
	if err != nil {
		return Entry{}, &RefusedError{err}
	}
	if j == nil {
		if j, err = m.undoLast(ctx); err != nil {
			return Entry{}, err
		}
	}
	if !j.RollingBack {
		j.RollingBack, j.Reason, j.Triggered = true, "asked for", m.World.Clock.Now().UTC()
		if err := m.State.save(j); err != nil {
			return Entry{}, &RefusedError{err}
		}
	}
	e, err := m.back(ctx, j)
	var back *RolledBackError
	if errors.As(err, &back) {
		err = nil // it was asked for
	}
	return e, err
}

// undoLast makes a journal of what is live, as if its deploy were under way.
func (m *Machine) undoLast(ctx context.Context) (*Journal, error) {
	route, err := m.World.Traffic.Route(ctx)
	if err != nil {
		return nil, &RefusedError{err}
	}
	s, err := m.World.Containers.Look(ctx)
	if err != nil {
		return nil, &RefusedError{err}
	}
	now := m.World.Clock.Now().UTC()
	live := launchOf(route.Live, s)
	j := &Journal{
		ID: live.Deployment, Image: live.Image, From: route.Live.Other(), To: route.Live, Started: now,
		Replicas: live.Replicas, Old: launchOf(route.Live.Other(), s),
	}
	if j.ID == "" {
		j.ID = now.Format("20060102T150405Z") + "-rollback"
	}
	if !j.first() {
		return j, nil
	}
	history, err := m.State.History()
	if err != nil {
		return nil, &RefusedError{err}
	}
	for i := len(history) - 1; i >= 0; i-- {
		if e := history[i]; e.Outcome == Deployed && e.Color == j.To && e.Old != nil && e.Old.Replicas > 0 {
			j.Old = *e.Old
			return j, nil
		}
	}
	return nil, &RefusedError{fmt.Errorf("there is nothing to go back to: %s does not run, and no deploy to %s in the history tells what ran before it", j.From, j.To)}
}
