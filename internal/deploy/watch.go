package deploy

import (
	"context"
	"fmt"
	"time"
)

// watch judges the new color for a while.
func (m *Deployer) watch(ctx context.Context, j *Journal, g *judge, name string, d time.Duration) (string, error) {
	end := m.Deps.Clock.Now().Add(d)
	w := m.newWatcher(j, g, name)
	for {
		if _, err := w.tick(ctx); err != nil {
			return "", err
		}
		if !m.Deps.Clock.Now().Before(end) {
			return w.summary(), nil
		}
		if err := m.Deps.Clock.Sleep(ctx, m.Settings.ProbeEvery); err != nil {
			return "", err
		}
	}
}

// A watcher ticks a judge: a look each time, metrics each window.
type watcher struct {
	m          *Deployer
	j          *Journal
	g          *judge
	step       string
	next       time.Time // of the metrics
	windows    int
	last       MetricsWindow
	metricsErr string // why there are no metrics, when that was said
}

func (m *Deployer) newWatcher(j *Journal, g *judge, step string) *watcher {
	// The first window must not reach back to before the step.
	return &watcher{m: m, j: j, g: g, step: step, next: m.Deps.Clock.Now().Add(m.Settings.Window)}
}

// tick looks and judges once.
func (w *watcher) tick(ctx context.Context) (Snapshot, error) {
	s, err := w.m.inspect(ctx)
	if err != nil {
		return s, err
	}
	err = w.g.judgeHealth(s)
	if now := w.m.Deps.Clock.Now(); err == nil && !now.Before(w.next) {
		w.next = now.Add(w.m.Settings.Window)
		err = w.metrics(ctx, now)
	}
	for _, suppressed := range w.g.newlySuppressed() {
		w.j.SuppressedTriggers = append(w.j.SuppressedTriggers, suppressed)
		w.m.report(w.step, "warn", "%s", suppressed)
	}
	if err != nil {
		return s, err
	}
	return s, ctx.Err()
}

// metrics judges a window. Without metrics only health is judged, and it says so.
func (w *watcher) metrics(ctx context.Context, now time.Time) error {
	span := w.m.Settings.Window
	fresh, err := w.m.Deps.Metrics.Window(ctx, w.j.ID, span)
	if err != nil {
		if w.metricsErr == "" && ctx.Err() == nil {
			w.metricsErr = err.Error()
			w.m.report(w.step, "warn", "%s", w.j.addNote(fmt.Sprintf("no metrics during %s: errors, response time and memory could not be judged (%v)", w.step, err)))
		}
		return nil
	}
	var old MetricsWindow
	if !w.j.firstDeploy() {
		if old, err = w.m.Deps.Metrics.Window(ctx, w.j.Old.Deployment, span); err != nil {
			return nil // the next window has both
		}
	}
	w.windows++
	w.last = fresh
	return w.g.judgeWindow(fresh, old, now)
}

// summary is what the watch saw last.
func (w *watcher) summary() string {
	if w.windows == 0 {
		return "healthy; no window of metrics was complete"
	}
	return fmt.Sprintf("%d windows; in the last one p95 %v, %.2f %% errors of ours, memory %.0f %%",
		w.windows, w.last.P95.Round(100*time.Microsecond), 100*w.last.ErrorRatio(), 100*w.last.Memory)
}

// isMoved tells whether the old color has let go of everybody.
func (m *Deployer) isMoved(j *Journal) func(context.Context) (bool, error) {
	return func(ctx context.Context) (bool, error) {
		s, err := m.inspect(ctx)
		if err != nil {
			return false, err
		}
		return len(notDrained(s, j)) == 0 && (j.firstDeploy() || j.completed("move")), nil
	}
}

// notDrained are the old color's replicas that still have, or take, clients.
func notDrained(s Snapshot, j *Journal) []string {
	return s.runningNames(j.From, func(r Replica) bool { return r.Drain != "drained" && r.Reachable })
}

// moveClients drains the old color, and judges the new one as it fills.
func (m *Deployer) moveClients(ctx context.Context, j *Journal, g *judge) (string, error) {
	s, err := m.inspect(ctx)
	if err != nil {
		return "", err
	}
	if j.ClientsBeforeMove == 0 { // a killed command may have begun, and counted
		j.ClientsBeforeMove = s.countClients(j.From) + s.countClients(j.To)
		if err := m.State.saveJournal(j); err != nil {
			return "", err
		}
	}
	limit := m.Deps.Clock.Now().Add(m.Settings.DrainLimit)
	w := m.newWatcher(j, g, "move")
	for lastReported := -1; ; {
		if s, err = w.tick(ctx); err != nil {
			return "", err
		}
		rest := notDrained(s, j)
		if len(rest) == 0 {
			return fmt.Sprintf("%s is empty; %d clients are on %s", j.From, s.countClients(j.To), j.To), nil
		}
		if m.Deps.Clock.Now().After(limit) {
			return j.addNote(fmt.Sprintf("%s was not empty after %v: %d clients are left there", j.From, m.Settings.DrainLimit, s.countClients(j.From))), nil
		}
		if begin := s.runningNames(j.From, func(r Replica) bool { return r.Drain == "" && r.Reachable }); len(begin) > 0 {
			if err := m.Deps.Clients.Drain(ctx, begin, "deployment", "deploy"); err != nil {
				m.report("move", "warn", "%v", err)
			}
		}
		if n := s.countClients(j.From); n != lastReported {
			lastReported = n
			m.report("move", "note", "%d clients on %s, %d on %s", n, j.From, s.countClients(j.To), j.To)
		}
		if err := m.Deps.Clock.Sleep(ctx, m.Settings.ProbeEvery); err != nil {
			return "", err
		}
	}
}

// waitReturned sees whether those who were moved are there.
func (m *Deployer) waitReturned(ctx context.Context, j *Journal, g *judge) (string, error) {
	limit := m.Deps.Clock.Now().Add(m.Settings.Triggers.ReturnGrace)
	w := m.newWatcher(j, g, "return")
	for {
		s, err := w.tick(ctx)
		if err != nil {
			return "", err
		}
		now := s.countClients(j.From) + s.countClients(j.To)
		if g.enoughClients(now) || m.Deps.Clock.Now().After(limit) {
			return fmt.Sprintf("%d of %d clients", now, j.ClientsBeforeMove), g.judgeReturned(now, s.At)
		}
		if err := m.Deps.Clock.Sleep(ctx, m.Settings.ProbeEvery); err != nil {
			return "", err
		}
	}
}
