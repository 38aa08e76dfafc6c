package deploy

import (
	"context"
	"fmt"
	"time"

	"switchyard/internal/checks"
	"switchyard/internal/stack"
)

// watch judges the new color for a span of time.
func (d *Deployer) watch(ctx context.Context, j *Journal, jd *judge, name string, span time.Duration) (string, error) {
	end := d.Deps.Clock.Now().Add(span)
	w := d.newWatcher(j, jd, name)
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
	jd         *judge
	step       string
	next       time.Time // when the next window of metrics is due
	windows    int
	last       checks.MetricsWindow
	metricsErr string // why there are no metrics, once that was reported
}

func (d *Deployer) newWatcher(j *Journal, jd *judge, step string) *watcher {
	// The first window must not reach back to before the step.
	return &watcher{d: d, j: j, jd: jd, step: step, next: d.Deps.Clock.Now().Add(d.Settings.Window)}
}

// tick inspects the replicas and judges them once.
func (w *watcher) tick(ctx context.Context) (stack.Snapshot, error) {
	s, err := w.d.inspect(ctx)
	if err != nil {
		return s, err
	}
	err = w.jd.judgeHealth(s)
	if now := w.d.Deps.Clock.Now(); err == nil && !now.Before(w.next) {
		w.next = now.Add(w.d.Settings.Window)
		err = w.metrics(ctx, s, now)
	}
	for _, suppressed := range w.jd.newlySuppressed() {
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
func (w *watcher) metrics(ctx context.Context, s stack.Snapshot, now time.Time) error {
	span := w.d.Settings.Window
	newWindow, err := w.d.metricsWindow(ctx, s, w.j.ID, span)
	if err != nil {
		if w.metricsErr == "" && ctx.Err() == nil {
			w.metricsErr = err.Error()
			w.d.report(w.step, "warn", "%s", w.j.addNote(fmt.Sprintf("no metrics during %s: errors, response time and memory could not be judged (%v)", w.step, err)))
		}
		return nil
	}
	var old checks.MetricsWindow
	if !w.j.firstDeploy() {
		if old, err = w.d.metricsWindow(ctx, s, w.j.Old.Deployment, span); err != nil {
			return nil // skip this window: the next one is tried again
		}
	}
	w.windows++
	w.last = newWindow
	return w.jd.judgeWindow(newWindow, old, now)
}

// metricsWindow returns the metrics of a deployment, whose memory limit the snapshot
// has.
func (d *Deployer) metricsWindow(ctx context.Context, s stack.Snapshot, deployment string, span time.Duration) (checks.MetricsWindow, error) {
	w, err := d.Deps.Metrics.Window(ctx, deployment, span)
	if limit := s.MemoryLimit(deployment); limit > 0 {
		w.Memory = w.MemoryBytes / float64(limit)
	}
	return w, err
}

// summary describes the last window of the watch.
func (w *watcher) summary() string {
	if w.windows == 0 {
		return "healthy; no window of metrics was complete"
	}
	return fmt.Sprintf("%d windows; in the last one p95 %v, %.2f%% server errors, memory %.0f%%",
		w.windows, w.last.P95.Round(100*time.Microsecond), 100*w.last.ErrorRatio(), 100*w.last.Memory)
}
