package deploy

import (
	"context"
	"fmt"

	"switchyard/internal/stack"
)

// isMoved reports whether the old color is drained and its clients were moved.
func (d *Deployer) isMoved(j *Journal) func(context.Context) (bool, error) {
	return func(ctx context.Context) (bool, error) {
		s, err := d.inspect(ctx)
		if err != nil {
			return false, err
		}
		return len(notDrained(s, j)) == 0 && (j.firstDeploy() || j.completed("move")), nil
	}
}

// notDrained returns the old color's replicas that still have, or take, clients.
func notDrained(s stack.Snapshot, j *Journal) []string {
	return s.RunningNames(j.From, func(r stack.Replica) bool { return r.Drain != "drained" && r.Reachable })
}

// moveToNewColor drains the old color, and judges the new one while clients arrive.
func (d *Deployer) moveToNewColor(ctx context.Context, j *Journal, jd *judge) (string, error) {
	s, err := d.inspect(ctx)
	if err != nil {
		return "", err
	}
	if j.ClientsBeforeMove == 0 { // a killed command may have counted them already
		j.ClientsBeforeMove = s.CountClients(j.From) + s.CountClients(j.To)
		if err := d.State.saveJournal(j); err != nil {
			return "", err
		}
	}
	limit := d.Deps.Clock.Now().Add(d.Settings.DrainLimit)
	w := d.newWatcher(j, jd, "move")
	for lastReported := -1; ; {
		if s, err = w.tick(ctx); err != nil {
			return "", err
		}
		rest := notDrained(s, j)
		if len(rest) == 0 {
			return fmt.Sprintf("%s is drained; %d clients are on %s", j.From, s.CountClients(j.To), j.To), nil
		}
		if d.Deps.Clock.Now().After(limit) {
			return j.addNote(fmt.Sprintf("%s was not drained after %v: %d clients are left there", j.From, d.Settings.DrainLimit, s.CountClients(j.From))), nil
		}
		if toDrain := s.RunningNames(j.From, func(r stack.Replica) bool { return r.Drain == "" && r.Reachable }); len(toDrain) > 0 {
			if err := d.Deps.Clients.Drain(ctx, toDrain, "deployment", "deploy"); err != nil {
				d.report("move", "warn", "%v", err)
			}
		}
		if n := s.CountClients(j.From); n != lastReported {
			lastReported = n
			d.report("move", "note", "%d clients on %s, %d on %s", n, j.From, s.CountClients(j.To), j.To)
		}
		if err := d.Deps.Clock.Sleep(ctx, d.Settings.ProbeEvery); err != nil {
			return "", err
		}
	}
}

// waitReturned waits, for at most ReturnGrace, until enough of the moved clients
// are connected again.
func (d *Deployer) waitReturned(ctx context.Context, j *Journal, jd *judge) (string, error) {
	limit := d.Deps.Clock.Now().Add(d.Settings.Triggers.ReturnGrace)
	w := d.newWatcher(j, jd, "return")
	for {
		s, err := w.tick(ctx)
		if err != nil {
			return "", err
		}
		now := s.CountClients(j.From) + s.CountClients(j.To)
		if jd.enoughClients(now) || d.Deps.Clock.Now().After(limit) {
			return fmt.Sprintf("%d of %d clients", now, j.ClientsBeforeMove), jd.judgeReturned(now, s.At)
		}
		if err := d.Deps.Clock.Sleep(ctx, d.Settings.ProbeEvery); err != nil {
			return "", err
		}
	}
}
