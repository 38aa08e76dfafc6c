package deploy

import (
	"context"
	"fmt"
	"time"
)

// watch judges the new color for a span of time.
func (d *Deployer) watch(ctx context.Context, j *Journal, g *judge, name string, span time.Duration) (string, error) {
	end := d.Deps.Clock.Now().Add(span)
	w := d.newWatcher(j, g, name)
	for {
		if _, err := w.tick(ctx); err != nil {
			return "", err
		}
		if !d.Deps.Clock.Now().Before(end) {
			return w.summary(), nil
		}
		if err := d.Deps.Clock.Sleep(ctx, d.Settings.ProbeEvery); err != nil {
			return "", err
		}
	}
}

// A watcher feeds a judge: health at each tick, metrics once per window.
type watcher struct {
	d          *Deployer
	j          *Journal
	g          *judge
	step       string
	next       time.Time // when the next window of metrics is due
	windows    int
	last       MetricsWindow
	metricsErr string // why there are no metrics, once that was reported
}

func (d *Deployer) newWatcher(j *Journal, g *judge, step string) *watcher {
	// The first window must not reach back to before the step.
	return &watcher{d: d, j: j, g: g, step: step, next: d.Deps.Clock.Now().Add(d.Settings.Window)}
}

// tick inspects the replicas and judges them once.
func (w *watcher) tick(ctx context.Context) (Snapshot, error) {
	s, err := w.d.inspect(ctx)
	if err != nil {
		return s, err
	}
	err = w.g.judgeHealth(s)
	if now := w.d.Deps.Clock.Now(); err == nil && !now.Before(w.next) {
		w.next = now.Add(w.d.Settings.Window)
		err = w.metrics(ctx, now)
	}
	for _, suppressed := range w.g.newlySuppressed() {
		w.j.SuppressedTriggers = append(w.j.SuppressedTriggers, suppressed)
		w.d.report(w.step, "warn", "%s", suppressed)
	}
	if err != nil {
		return s, err
	}
	return s, ctx.Err()
}

// metrics judges a window of metrics. Without metrics it warns once, and only
// health is judged.
func (w *watcher) metrics(ctx context.Context, now time.Time) error {
	span := w.d.Settings.Window
	fresh, err := w.d.Deps.Metrics.Window(ctx, w.j.ID, span)
	if err != nil {
		if w.metricsErr == "" && ctx.Err() == nil {
			w.metricsErr = err.Error()
			w.d.report(w.step, "warn", "%s", w.j.addNote(fmt.Sprintf("no metrics during %s: errors, response time and memory could not be judged (%v)", w.step, err)))
		}
		return nil
	}
	var old MetricsWindow
	if !w.j.firstDeploy() {
		if old, err = w.d.Deps.Metrics.Window(ctx, w.j.Old.Deployment, span); err != nil {
			return nil // the next window has both
		}
	}
	w.windows++
	w.last = fresh
	return w.g.judgeWindow(fresh, old, now)
}

// summary describes the last window of the watch.
func (w *watcher) summary() string {
	if w.windows == 0 {
		return "healthy; no window of metrics was complete"
	}
	return fmt.Sprintf("%d windows; in the last one p95 %v, %.2f %% server errors, memory %.0f %%",
		w.windows, w.last.P95.Round(100*time.Microsecond), 100*w.last.ErrorRatio(), 100*w.last.Memory)
}

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
func notDrained(s Snapshot, j *Journal) []string {
	return s.runningNames(j.From, func(r Replica) bool { return r.Drain != "drained" && r.Reachable })
}

// moveClients drains the old color, and judges the new one as it fills.
func (d *Deployer) moveClients(ctx context.Context, j *Journal, g *judge) (string, error) {
	s, err := d.inspect(ctx)
	if err != nil {
		return "", err
	}
	if j.ClientsBeforeMove == 0 { // a killed command may have counted them already
		j.ClientsBeforeMove = s.countClients(j.From) + s.countClients(j.To)
		if err := d.State.saveJournal(j); err != nil {
			return "", err
		}
	}
	limit := d.Deps.Clock.Now().Add(d.Settings.DrainLimit)
	w := d.newWatcher(j, g, "move")
	for lastReported := -1; ; {
		if s, err = w.tick(ctx); err != nil {
			return "", err
		}
		rest := notDrained(s, j)
		if len(rest) == 0 {
			return fmt.Sprintf("%s is drained; %d clients are on %s", j.From, s.countClients(j.To), j.To), nil
		}
		if d.Deps.Clock.Now().After(limit) {
			return j.addNote(fmt.Sprintf("%s was not drained after %v: %d clients are left there", j.From, d.Settings.DrainLimit, s.countClients(j.From))), nil
		}
		if begin := s.runningNames(j.From, func(r Replica) bool { return r.Drain == "" && r.Reachable }); len(begin) > 0 {
			if err := d.Deps.Clients.Drain(ctx, begin, "deployment", "deploy"); err != nil {
				d.report("move", "warn", "%v", err)
			}
		}
		if n := s.countClients(j.From); n != lastReported {
			lastReported = n
			d.report("move", "note", "%d clients on %s, %d on %s", n, j.From, s.countClients(j.To), j.To)
		}
		if err := d.Deps.Clock.Sleep(ctx, d.Settings.ProbeEvery); err != nil {
			return "", err
		}
	}
}

// waitReturned waits, for at most ReturnGrace, until enough of the moved clients
// are connected again.
func (d *Deployer) waitReturned(ctx context.Context, j *Journal, g *judge) (string, error) {
	limit := d.Deps.Clock.Now().Add(d.Settings.Triggers.ReturnGrace)
	w := d.newWatcher(j, g, "return")
	for {
		s, err := w.tick(ctx)
		if err != nil {
			return "", err
		}
		now := s.countClients(j.From) + s.countClients(j.To)
		if g.enoughClients(now) || d.Deps.Clock.Now().After(limit) {
			return fmt.Sprintf("%d of %d clients", now, j.ClientsBeforeMove), g.judgeReturned(now, s.At)
		}
		if err := d.Deps.Clock.Sleep(ctx, d.Settings.ProbeEvery); err != nil {
			return "", err
		}
	}
}
