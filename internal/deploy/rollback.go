package deploy

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

// runRollback is the way back: the old color serves, new connections go there, then
// the clients, and the bad color is stopped when what it can tell was kept.
// Every part looks first, so that it may be cut short and begun again.
func (m *Deployer) runRollback(ctx context.Context, j *Journal) (HistoryEntry, error) {
	if j.firstDeploy() {
		return m.rollBackFirstDeploy(ctx, j)
	}
	m.report("rollback", "begin", "back to %s", j.From)
	if err := m.restoreOldColor(ctx, j); err != nil {
		return HistoryEntry{}, m.stuck(ctx, j, err)
	}
	if err := m.routeToOldColor(ctx, j); err != nil {
		return HistoryEntry{}, m.stuck(ctx, j, err)
	}
	if j.OldServingAt.IsZero() {
		j.OldServingAt = m.Deps.Clock.Now().UTC()
		m.saveJournalOrWarn(j)
		m.report("rollback", "note", "%s serves again", j.From)
		m.notify(ctx, Notification{Kind: "rollback", Deploy: j.ID, Image: j.Image.Ref, Live: j.From, Text: fmt.Sprintf("%s was rolled back: %s", j.Image.Ref, j.Reason)})
	}
	if j.DiagnosticsDir == "" {
		folder := filepath.Join(m.State.Dir, "bad", j.ID)
		if err := m.Deps.Records.SaveDiagnostics(ctx, j.To, folder); err != nil {
			m.report("rollback", "warn", "not all that %s could tell was kept: %v", j.To, err)
		}
		j.DiagnosticsDir = folder
		m.saveJournalOrWarn(j)
	}
	if err := m.drainNewColor(ctx, j); err != nil {
		return HistoryEntry{}, m.unfinished(ctx, j, "rollback", err)
	}
	if err := m.Deps.Containers.Stop(ctx, j.To); err != nil {
		return HistoryEntry{}, m.unfinished(ctx, j, "rollback", err)
	}
	e := m.historyEntry(j, RolledBack, j.From)
	if err := m.State.finish(e); err != nil {
		return e, m.unfinished(ctx, j, "rollback", err)
	}
	m.report("rollback", "done", "%s is stopped; what it could tell is in %s", j.To, j.DiagnosticsDir)
	return e, &RolledBackError{e}
}

// saveJournalOrWarn saves it if it can: a full disk keeps nobody on a bad version.
func (m *Deployer) saveJournalOrWarn(j *Journal) {
	if err := m.State.saveJournal(j); err != nil {
		m.report("rollback", "warn", "%v", err)
	}
}

// restoreOldColor brings the old color back to where new connections may go.
func (m *Deployer) restoreOldColor(ctx context.Context, j *Journal) error {
	limit := m.Deps.Clock.Now().Add(m.Settings.ReadyLimit)
	for begun := false; ; begun = true {
		s, err := m.inspect(ctx)
		if err != nil {
			return err
		}
		status, _ := m.Deps.Traffic.Status(ctx) // broken routers are what this mends
		up := status.ServersUp[j.From]
		serving := s.countServing(j.From)
		if serving >= j.Old.Replicas && up >= min(serving, j.Old.Replicas) {
			return nil
		}
		late := m.Deps.Clock.Now().After(limit)
		switch {
		case late && serving > 0 && up > 0:
			m.report("rollback", "warn", "only %d of %d replicas of %s are ready%s", serving, j.Old.Replicas, j.From, describeProblems(s.Replicas[j.From]))
			return nil
		case late:
			return fmt.Errorf("no replica of %s is ready after %v%s", j.From, m.Settings.ReadyLimit, describeProblems(s.Replicas[j.From]))
		}
		if len(s.Running(j.From)) < j.Old.Replicas && !begun {
			if err := m.Deps.Containers.Start(ctx, j.Old); err != nil {
				m.report("rollback", "warn", "%v", err)
			}
		}
		if err := m.undrain(ctx, s, j.From, j.Old.Deployment); err != nil {
			m.report("rollback", "warn", "%v", err)
		}
		if err := m.Deps.Clock.Sleep(ctx, pollEvery); err != nil {
			return err
		}
	}
}

// routeToOldColor sends new connections to the old color.
func (m *Deployer) routeToOldColor(ctx context.Context, j *Journal) error {
	want := Route{Live: j.From}
	if r, err := m.Deps.Traffic.Route(ctx); err == nil && r == want {
		if s, err := m.Deps.Traffic.Status(ctx); err == nil && s.Route == want {
			return nil
		}
	}
	return m.setRoute(ctx, want)
}

// drainNewColor moves the bad color's clients. A color too broken to be drained is not
// waited for: its clients come back by themselves when it is stopped.
func (m *Deployer) drainNewColor(ctx context.Context, j *Journal) error {
	limit := m.Deps.Clock.Now().Add(m.Settings.DrainLimit)
	for failures := 0; ; {
		s, err := m.inspect(ctx)
		if err != nil {
			return err
		}
		busy := s.runningNames(j.To, func(r Replica) bool { return r.Reachable && r.Drain != "drained" })
		if len(busy) == 0 {
			return nil
		}
		if m.Deps.Clock.Now().After(limit) || failures > 3 {
			m.report("rollback", "warn", "%s could not be emptied: %d clients are left there and will come back by themselves", j.To, s.countClients(j.To))
			return nil
		}
		if begin := s.runningNames(j.To, func(r Replica) bool { return r.Reachable && r.Drain == "" }); len(begin) > 0 {
			if err := m.Deps.Clients.Drain(ctx, begin, "deployment", "rollback"); err != nil {
				failures++
				m.report("rollback", "warn", "%v", err)
			}
		}
		if err := m.Deps.Clock.Sleep(ctx, min(m.Settings.ProbeEvery, time.Second)); err != nil {
			return err
		}
	}
}

// rollBackFirstDeploy takes a first deploy back: there is nothing to go to. What
// serves stays; what does not is stopped.
func (m *Deployer) rollBackFirstDeploy(ctx context.Context, j *Journal) (HistoryEntry, error) {
	s, err := m.inspect(ctx)
	if err != nil {
		return HistoryEntry{}, m.unfinished(ctx, j, "rollback", err)
	}
	if r, err := m.Deps.Traffic.Route(ctx); err == nil && r.Live == j.To && s.countServing(j.To) > 0 {
		return HistoryEntry{}, m.stuck(ctx, j, fmt.Errorf("%s, and nothing ran before to which one could go back: %s stays live", j.Reason, j.To))
	}
	if j.DiagnosticsDir == "" {
		folder := filepath.Join(m.State.Dir, "bad", j.ID)
		if err := m.Deps.Records.SaveDiagnostics(ctx, j.To, folder); err != nil {
			m.report("rollback", "warn", "not all that %s could tell was kept: %v", j.To, err)
		}
		j.DiagnosticsDir = folder
		m.saveJournalOrWarn(j)
	}
	if err := m.Deps.Containers.Stop(ctx, j.To); err != nil {
		return HistoryEntry{}, m.unfinished(ctx, j, "rollback", err)
	}
	if err := m.Deps.Traffic.SetRoute(ctx, Route{Live: j.From}); err != nil {
		return HistoryEntry{}, m.unfinished(ctx, j, "rollback", err)
	}
	e := m.historyEntry(j, RolledBack, j.From)
	if err := m.State.finish(e); err != nil {
		return e, m.unfinished(ctx, j, "rollback", err)
	}
	return e, &RolledBackError{e}
}

// stuck is when the way back is barred.
func (m *Deployer) stuck(ctx context.Context, j *Journal, err error) error {
	if ctx.Err() != nil {
		return m.unfinished(ctx, j, "rollback", err)
	}
	return &StuckError{Reason: err.Error(), Remedy: "mend it and run `switchyard rollback` again"}
}

// Rollback goes on with a rollback, takes back the deploy under way, or the last
// one.
func (m *Deployer) Rollback(ctx context.Context) (HistoryEntry, error) {
	j, err := m.State.Current()
	if err != nil {
		return HistoryEntry{}, &RefusedError{err}
	}
	if j == nil {
		if j, err = m.journalOfLive(ctx); err != nil {
			return HistoryEntry{}, err
		}
	}
	if !j.RollingBack {
		j.RollingBack, j.Reason, j.TriggeredAt = true, "asked for", m.Deps.Clock.Now().UTC()
		if err := m.State.saveJournal(j); err != nil {
			return HistoryEntry{}, &RefusedError{err}
		}
	}
	e, err := m.runRollback(ctx, j)
	var rolledBack *RolledBackError
	if errors.As(err, &rolledBack) {
		err = nil // it was asked for
	}
	return e, err
}

// journalOfLive makes a journal of what is live, as if its deploy were under way.
func (m *Deployer) journalOfLive(ctx context.Context) (*Journal, error) {
	route, err := m.Deps.Traffic.Route(ctx)
	if err != nil {
		return nil, &RefusedError{err}
	}
	s, err := m.Deps.Containers.Inspect(ctx)
	if err != nil {
		return nil, &RefusedError{err}
	}
	now := m.Deps.Clock.Now().UTC()
	live := currentSpec(route.Live, s)
	j := &Journal{
		ID: live.Deployment, Image: live.Image, From: route.Live.Other(), To: route.Live, Started: now,
		Replicas: live.Replicas, Old: currentSpec(route.Live.Other(), s),
	}
	if j.ID == "" {
		j.ID = now.Format("20060102T150405Z") + "-rollback"
	}
	if !j.firstDeploy() {
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
