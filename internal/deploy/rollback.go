package deploy

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"switchyard/internal/stack"
)

// runRollback rolls the deploy back. finishOrRollBack calls it when a step failed,
// Deploy and Rollback when the journal says RollingBack. The old color serves again,
// new connections go to it, the new color's diagnostics are saved, its clients are
// moved, and it is stopped. Each part first checks what is done already: a rollback
// can be interrupted anywhere and run again.
func (d *Deployer) runRollback(ctx context.Context, j *Journal) (HistoryEntry, error) {
	if j.firstDeploy() {
		return d.rollBackFirstDeploy(ctx, j)
	}
	d.report("rollback", "begin", "back to %s", j.From)
	if err := d.restoreOldColor(ctx, j); err != nil {
		return HistoryEntry{}, d.stuck(ctx, j, err)
	}
	if err := d.routeToOldColor(ctx, j); err != nil {
		return HistoryEntry{}, d.stuck(ctx, j, err)
	}
	if j.OldServingAt.IsZero() {
		j.OldServingAt = d.Deps.Clock.Now().UTC()
		d.saveJournalOrWarn(j)
		d.report("rollback", "note", "%s serves again", j.From)
		d.notify(ctx, Notification{Kind: "rollback", Deploy: j.ID, Image: j.Image.Ref, Live: j.From, Text: fmt.Sprintf("%s was rolled back: %s", j.Image.Ref, j.Reason)})
	}
	d.saveDiagnostics(ctx, j)
	if err := d.drainNewColor(ctx, j); err != nil {
		return HistoryEntry{}, d.unfinished(ctx, j, "rollback", err)
	}
	if err := d.Deps.Containers.Stop(ctx, j.To); err != nil {
		return HistoryEntry{}, d.unfinished(ctx, j, "rollback", err)
	}
	e := d.historyEntry(j, RolledBack, j.From)
	if err := d.State.finish(e); err != nil {
		return e, d.unfinished(ctx, j, "rollback", err)
	}
	d.report("rollback", "done", "%s is stopped; its diagnostics are in %s", j.To, j.DiagnosticsDir)
	return e, &RolledBackError{e}
}

// saveDiagnostics saves the logs, metrics and state of the new color, once. A failure does not stop
// the rollback.
func (d *Deployer) saveDiagnostics(ctx context.Context, j *Journal) {
	if j.DiagnosticsDir != "" {
		return
	}
	folder := filepath.Join(d.State.Dir, "bad", j.ID)
	if err := d.Deps.Records.SaveDiagnostics(ctx, j.To, folder); err != nil {
		d.report("rollback", "warn", "the diagnostics of %s are incomplete: %v", j.To, err)
	}
	j.DiagnosticsDir = folder
	d.saveJournalOrWarn(j)
}

// saveJournalOrWarn saves the journal if it can: a full disk must not keep clients
// on a bad version.
func (d *Deployer) saveJournalOrWarn(j *Journal) {
	if err := d.State.saveJournal(j); err != nil {
		d.report("rollback", "warn", "%v", err)
	}
}

// startAgainAfter is how long a rollback waits before it starts replicas of the old color again
// that do not run: the engine was busy, or they have ended.
const startAgainAfter = 10 * time.Second

// restoreOldColor starts and undrains the old color, and waits until it can take
// new connections.
func (d *Deployer) restoreOldColor(ctx context.Context, j *Journal) error {
	limit := d.Deps.Clock.Now().Add(d.Settings.ReadyLimit)
	var startedAt time.Time
	var startErr error
	warned := map[string]bool{}
	warn := func(err error) {
		if err != nil && !warned[err.Error()] {
			warned[err.Error()] = true
			d.report("rollback", "warn", "%v", err)
		}
	}
	for {
		s, err := d.inspect(ctx)
		if err != nil {
			return err
		}
		status, statusErr := d.Deps.Traffic.Status(ctx) // wrong routers in Traefik are corrected by routeToOldColor
		up := status.ServersUp[j.From]
		serving := s.CountServing(j.From)
		if serving >= j.Old.Replicas && up >= min(serving, j.Old.Replicas) {
			return nil
		}
		late := d.Deps.Clock.Now().After(limit)
		switch {
		case late && serving > 0 && up > 0:
			d.report("rollback", "warn", "only %d of %d replicas of %s are ready%s", serving, j.Old.Replicas, j.From, s.DescribeProblems(j.From))
			return nil
		case late:
			return d.notReady(s, j.Old, up, startErr, statusErr)
		}
		if len(s.Running(j.From)) < j.Old.Replicas && d.Deps.Clock.Now().Sub(startedAt) >= startAgainAfter {
			startErr = d.Deps.Containers.Start(ctx, j.Old)
			warn(startErr)
			startedAt = d.Deps.Clock.Now()
		}
		warn(d.undrain(ctx, s, j.From, j.Old.Deployment))
		if err := d.Deps.Clock.Sleep(ctx, pollEvery); err != nil {
			return err
		}
	}
}

// routeToOldColor routes new connections to the old color, unless active.yml and
// Traefik already do.
func (d *Deployer) routeToOldColor(ctx context.Context, j *Journal) error {
	want := stack.Route{Live: j.From}
	if r, err := d.Deps.Traffic.Route(ctx); err == nil && r == want {
		if s, err := d.Deps.Traffic.Status(ctx); err == nil && s.Route == want {
			return nil
		}
	}
	return d.setRoute(ctx, want)
}

// drainNewColor moves the new color's clients away. It does not wait for a color
// that is too broken to be drained: the clients reconnect when it is stopped.
func (d *Deployer) drainNewColor(ctx context.Context, j *Journal) error {
	limit := d.Deps.Clock.Now().Add(d.Settings.DrainLimit)
	for failures := 0; ; {
		s, err := d.inspect(ctx)
		if err != nil {
			return err
		}
		busy := s.RunningNames(j.To, func(r stack.Replica) bool { return r.Reachable && r.Drain != "drained" })
		if len(busy) == 0 {
			return nil
		}
		if d.Deps.Clock.Now().After(limit) || failures > 3 {
			d.report("rollback", "warn", "%s could not be drained: %d clients are left there and will reconnect", j.To, s.CountClients(j.To))
			return nil
		}
		if toDrain := s.RunningNames(j.To, func(r stack.Replica) bool { return r.Reachable && r.Drain == "" }); len(toDrain) > 0 {
			if err := d.Deps.Clients.Drain(ctx, toDrain, "deployment", "rollback"); err != nil {
				failures++
				d.report("rollback", "warn", "%v", err)
			}
		}
		if err := d.Deps.Clock.Sleep(ctx, min(d.Settings.ProbeEvery, time.Second)); err != nil {
			return err
		}
	}
}

// rollBackFirstDeploy ends a first deploy that failed, which has no earlier version. The
// color stays live if it serves, so that the next deploy is from it, and is stopped if it
// does not.
func (d *Deployer) rollBackFirstDeploy(ctx context.Context, j *Journal) (HistoryEntry, error) {
	s, err := d.inspect(ctx)
	if err != nil {
		return HistoryEntry{}, d.unfinished(ctx, j, "rollback", err)
	}
	if r, err := d.Deps.Traffic.Route(ctx); err == nil && r.Live == j.To && s.CountServing(j.To) > 0 {
		e := d.historyEntry(j, Failed, j.To)
		if err := d.State.finish(e); err != nil {
			return e, d.unfinished(ctx, j, "rollback", err)
		}
		return e, &StuckError{
			Reason: fmt.Sprintf("%s, and there is no earlier version to roll back to: %s stays live", j.Reason, j.To),
			Remedy: "`switchyard deploy` of a better image replaces it",
		}
	}
	d.saveDiagnostics(ctx, j)
	if err := d.Deps.Containers.Stop(ctx, j.To); err != nil {
		return HistoryEntry{}, d.unfinished(ctx, j, "rollback", err)
	}
	if err := d.Deps.Traffic.SetRoute(ctx, stack.Route{Live: j.From}); err != nil {
		return HistoryEntry{}, d.unfinished(ctx, j, "rollback", err)
	}
	e := d.historyEntry(j, RolledBack, j.From)
	if err := d.State.finish(e); err != nil {
		return e, d.unfinished(ctx, j, "rollback", err)
	}
	return e, &RolledBackError{e}
}

// stuck returns the error of a rollback that can't proceed.
func (d *Deployer) stuck(ctx context.Context, j *Journal, err error) error {
	if ctx.Err() != nil {
		return d.unfinished(ctx, j, "rollback", err)
	}
	return &StuckError{Reason: err.Error(), Remedy: "fix it and run `switchyard rollback` again"}
}

// Rollback continues an interrupted rollback. Otherwise it rolls back the unfinished
// deploy, or the last one if there is none.
func (d *Deployer) Rollback(ctx context.Context) (HistoryEntry, error) {
	j, err := d.State.Current()
	if err != nil {
		return HistoryEntry{}, &RefusedError{err}
	}
	if j == nil {
		if j, err = d.journalOfLive(ctx); err != nil {
			return HistoryEntry{}, err
		}
	}
	if !j.RollingBack {
		j.RollingBack, j.Reason, j.TriggeredAt = true, "requested by the operator", d.Deps.Clock.Now().UTC()
		if err := d.State.saveJournal(j); err != nil {
			return HistoryEntry{}, &RefusedError{err}
		}
	}
	e, err := d.runRollback(ctx, j)
	var rolledBack *RolledBackError
	if errors.As(err, &rolledBack) {
		err = nil // the operator requested it
	}
	return e, err
}

// journalOfLive returns a journal of the live version, as if its deploy were still
// unfinished.
func (d *Deployer) journalOfLive(ctx context.Context) (*Journal, error) {
	route, err := d.Deps.Traffic.Route(ctx)
	if err != nil {
		return nil, &RefusedError{err}
	}
	s, err := d.Deps.Containers.Inspect(ctx)
	if err != nil {
		return nil, &RefusedError{err}
	}
	now := d.Deps.Clock.Now().UTC()
	live := s.Spec(route.Live)
	j := &Journal{
		ID: live.Deployment, Image: live.Image, From: route.Live.Other(), To: route.Live, Started: now,
		Replicas: live.Replicas, Old: s.Spec(route.Live.Other()),
	}
	if j.ID == "" {
		j.ID = now.Format("20060102T150405Z") + "-rollback"
	}
	if !j.firstDeploy() {
		return j, nil
	}
	history, err := d.State.History()
	if err != nil {
		return nil, &RefusedError{err}
	}
	for i := len(history) - 1; i >= 0; i-- {
		if e := history[i]; e.Outcome == Deployed && e.Color == j.To && e.Old != nil && e.Old.Replicas > 0 {
			j.Old = *e.Old
			return j, nil
		}
	}
	return nil, &RefusedError{fmt.Errorf("there is nothing to roll back to: %s does not run, and the history has no deploy to %s that names the version before it", j.From, j.To)}
}
