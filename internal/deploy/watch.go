package deploy

import (
	"context"
	"fmt"
	"time"
)

// watch judges the new color for a while.
func (m *Machine) watch(ctx context.Context, j *Journal, g *judge, name string, d time.Duration) (string, error) {
	end := m.World.Clock.Now().Add(d)
	w := m.watching(j, g, name)
	for {
		if _, err := w.tick(ctx); err != nil {
			return "", err
		}
		if !m.World.Clock.Now().Before(end) {
			return w.sum(), nil
		}
		if err := m.World.Clock.Sleep(ctx, m.Settings.ProbeEvery); err != nil {
			return "", err
		}
	}
}

// A watcher ticks a judge: a look each time, metrics each window.
type watcher struct {
	m       *Machine
	j       *Journal
	g       *judge
	step    string
	next    time.Time // of the metrics
	windows int
	last    Window
	dark    string // why there are no metrics, when that was said
}

func (m *Machine) watching(j *Journal, g *judge, step string) *watcher {
	// The first window must not reach back to before the step.
	return &watcher{m: m, j: j, g: g, step: step, next: m.World.Clock.Now().Add(m.Settings.Window)}
}

// tick looks and judges once.
func (w *watcher) tick(ctx context.Context) (Sight, error) {
	s, err := w.m.look(ctx)
	if err != nil {
		return s, err
	}
	err = w.g.look(s)
	if now := w.m.World.Clock.Now(); err == nil && !now.Before(w.next) {
		w.next = now.Add(w.m.Settings.Window)
		err = w.metrics(ctx, now)
	}
	for _, held := range w.g.take() {
		w.j.Held = append(w.j.Held, held)
		w.m.say(w.step, "warn", "%s", held)
	}
	if err != nil {
		return s, err
	}
	return s, ctx.Err()
}

// metrics judges a window. Without metrics only health is judged, and it says so.
func (w *watcher) metrics(ctx context.Context, now time.Time) error {
	span := w.m.Settings.Window
	fresh, err := w.m.World.Metrics.Window(ctx, w.j.ID, span)
	if err != nil {
		if w.dark == "" && ctx.Err() == nil {
			w.dark = err.Error()
			w.m.say(w.step, "warn", "%s", w.j.note(fmt.Sprintf("no metrics during %s: errors, response time and memory could not be judged (%v)", w.step, err)))
		}
		return nil
	}
	var old Window
	if !w.j.first() {
		if old, err = w.m.World.Metrics.Window(ctx, w.j.Old.Deployment, span); err != nil {
			return nil // the next window has both
		}
	}
	w.windows++
	w.last = fresh
	return w.g.window(fresh, old, now)
}

// sum is what the watch saw last.
func (w *watcher) sum() string {
	if w.windows == 0 {
		return "healthy; no window of metrics was complete"
	}
	return fmt.Sprintf("%d windows; in the last one p95 %v, %.2f %% errors of ours, memory %.0f %%",
		w.windows, w.last.P95.Round(100*time.Microsecond), 100*w.last.ErrorRatio(), 100*w.last.Memory)
}

// moved tells whether the old color has let go of everybody.
func (m *Machine) moved(j *Journal) func(context.Context) (bool, error) {
	return func(ctx context.Context) (bool, error) {
		s, err := m.look(ctx)
		if err != nil {
			return false, err
		}
		return len(undrained(s, j)) == 0 && (j.first() || j.did("move")), nil
	}
}

// undrained are the old color's replicas that still have, or take, clients.
func undrained(s Sight, j *Journal) []string {
	return s.names(j.From, func(r Replica) bool { return r.Drain != "drained" && r.Answers })
}

// move drains the old color, and judges the new one as it fills.
func (m *Machine) move(ctx context.Context, j *Journal, g *judge) (string, error) {
	s, err := m.look(ctx)
	if err != nil {
		return "", err
	}
	if j.Clients == 0 { // a killed command may have begun, and counted
		j.Clients = s.clients(j.From) + s.clients(j.To)
		if err := m.State.save(j); err != nil {
			return "", err
		}
	}
	limit := m.World.Clock.Now().Add(m.Settings.DrainLimit)
	w := m.watching(j, g, "move")
	for told := -1; ; {
		if s, err = w.tick(ctx); err != nil {
			return "", err
		}
		rest := undrained(s, j)
		if len(rest) == 0 {
			return fmt.Sprintf("%s is empty; %d clients are on %s", j.From, s.clients(j.To), j.To), nil
		}
		if m.World.Clock.Now().After(limit) {
			return j.note(fmt.Sprintf("%s was not empty after %v: %d clients are left there", j.From, m.Settings.DrainLimit, s.clients(j.From))), nil
		}
		if begin := s.names(j.From, func(r Replica) bool { return r.Drain == "" && r.Answers }); len(begin) > 0 {
			if err := m.World.Clients.Drain(ctx, begin, "deployment", "deploy"); err != nil {
				m.say("move", "warn", "%v", err)
			}
		}
		if n := s.clients(j.From); n != told {
			told = n
			m.say("move", "note", "%d clients on %s, %d on %s", n, j.From, s.clients(j.To), j.To)
		}
		if err := m.World.Clock.Sleep(ctx, m.Settings.ProbeEvery); err != nil {
			return "", err
		}
	}
}

// returned sees whether those who were moved are there.
func (m *Machine) returned(ctx context.Context, j *Journal, g *judge) (string, error) {
	limit := m.World.Clock.Now().Add(m.Settings.Triggers.ReturnGrace)
	w := m.watching(j, g, "return")
	for {
		s, err := w.tick(ctx)
		if err != nil {
			return "", err
		}
		now := s.clients(j.From) + s.clients(j.To)
		if g.enough(now) || m.World.Clock.Now().After(limit) {
			return fmt.Sprintf("%d of %d clients", now, j.Clients), g.returned(now, s.At)
		}
		if err := m.World.Clock.Sleep(ctx, m.Settings.ProbeEvery); err != nil {
			return "", err
		}
	}
}
