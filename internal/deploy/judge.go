package deploy

import (
	"fmt"
	"slices"
	"time"
)

// A judge weighs what the new color shows against what the old one shows at the
// same time. It remembers only what belongs to one attempt: a command that goes
// on after another was killed judges anew.
type judge struct {
	settings Settings
	journal  *Journal

	failed   map[string]int // health checks in a row, by replica
	stale    map[string]int // of those, delivery canaries
	restarts map[string]int // at first sight
	slow     int            // windows in a row

	// The old color's last fault, and when it was slow last: reasons for holding a
	// trigger, also for as long as windows reach back to them.
	oldFault, oldSlow trouble

	held     []string // not told yet
	heldOnce map[Trigger]bool
}

// A trouble is what ailed the old color, and when.
type trouble struct {
	why string
	at  time.Time
}

// staleChecks is how many checks in a row must find the canary stale: it is
// stale only after seconds.
const staleChecks = 2

func newJudge(s Settings, j *Journal) *judge {
	return &judge{
		settings: s, journal: j,
		failed: map[string]int{}, stale: map[string]int{}, restarts: map[string]int{}, heldOnce: map[Trigger]bool{},
	}
}

// look judges one health check of all replicas.
func (g *judge) look(s Sight) error {
	g.old(s)
	found := map[Trigger]string{}
	seen := 0
	for _, r := range s.Replicas[g.journal.To] {
		if r.Deployment != g.journal.ID {
			continue
		}
		seen++
		g.replica(r, found)
	}
	if missing := g.journal.Replicas - seen; missing > 0 {
		g.count("", fmt.Sprintf("%d of %d replicas are gone", missing, g.journal.Replicas), found)
	} else {
		g.failed[""] = 0
	}
	// The most telling one first: a dead process fails checks, too.
	for _, t := range []Trigger{TriggerCrash, TriggerCanary, TriggerHealth} {
		if why := found[t]; why != "" {
			if err := g.weigh(t, why, s.At); err != nil {
				return err
			}
		}
	}
	return nil
}

func (g *judge) replica(r Replica, found map[Trigger]string) {
	if first, known := g.restarts[r.Name]; !known {
		g.restarts[r.Name] = r.Restarts
	} else if n := r.Restarts - first; n > g.settings.Triggers.Restarts {
		found[TriggerCrash] = fmt.Sprintf("%s ended by itself: %s", r.Name, orElse(r.Ended, "it was started again"))
	}
	if !r.Running && r.Ended != "" {
		found[TriggerCrash] = fmt.Sprintf("%s ended by itself: %s", r.Name, r.Ended)
	}
	if r.Parts["delivery"] == "stale" {
		if g.stale[r.Name]++; g.stale[r.Name] >= staleChecks {
			found[TriggerCanary] = fmt.Sprintf("%s: its own canary does not arrive", r.Name)
		}
	} else {
		g.stale[r.Name] = 0
	}
	trouble := r.trouble()
	if trouble == "" {
		g.failed[r.Name] = 0
		return
	}
	g.count(r.Name, r.Name+": "+trouble, found)
}

func (g *judge) count(name, why string, found map[Trigger]string) {
	if g.failed[name]++; g.failed[name] > g.settings.Triggers.HealthFailures {
		found[TriggerHealth] = fmt.Sprintf("%d health checks in a row failed: %s", g.failed[name], why)
	}
}

// old notes what trouble the old color has.
func (g *judge) old(s Sight) {
	for _, r := range s.Replicas[g.journal.From] {
		if r.Deployment != g.journal.Old.Deployment {
			continue
		}
		first, known := g.restarts[r.Name]
		if !known {
			g.restarts[r.Name], first = r.Restarts, r.Restarts
		}
		why := r.trouble()
		if r.Restarts > first {
			g.restarts[r.Name] = r.Restarts
			why = "it was started again"
		}
		if why != "" {
			g.oldFault = trouble{fmt.Sprintf("%s: %s", r.Name, why), s.At}
		}
	}
}

// weigh lets a trigger count unless the old color is in trouble, too.
func (g *judge) weigh(t Trigger, why string, at time.Time) error {
	if slices.Contains(g.settings.Triggers.Off, t) {
		return nil
	}
	excuses := []trouble{g.oldFault}
	if t == TriggerSlow { // that the old one is slow says nothing of errors or crashes
		excuses = append(excuses, g.oldSlow)
	}
	for _, old := range excuses {
		// Metrics reach back one window, and are scraped late.
		if !old.at.IsZero() && at.Sub(old.at) <= 2*g.settings.Window {
			g.hold(t, why, old.why)
			return nil
		}
	}
	return &fired{t, why}
}

// hold keeps that a trigger did not count, once each.
func (g *judge) hold(t Trigger, why, oldWhy string) {
	if g.heldOnce[t] {
		return
	}
	g.heldOnce[t] = true
	g.held = append(g.held, fmt.Sprintf("%s is held, since the old color shows it too: %s (old: %s)", t, why, oldWhy))
}

// window judges what was measured since the last one.
func (g *judge) window(new, old Window, at time.Time) error {
	fault, slow := g.oldWindow(old)
	if fault != "" {
		g.oldFault = trouble{fault, at}
	}
	if slow != "" {
		g.oldSlow = trouble{slow, at}
	}
	t := g.settings.Triggers
	if new.Operations >= float64(t.ErrorSamples) && 100*new.ErrorRatio() > t.ErrorPercent {
		why := fmt.Sprintf("%.1f %% of %.0f operations failed by our fault, over %v %%", 100*new.ErrorRatio(), new.Operations, t.ErrorPercent)
		if err := g.weigh(TriggerErrors, why, at); err != nil {
			return err
		}
	}
	bound := g.slowBound()
	if new.Publishes >= float64(t.SlowSamples) && new.P95 > bound {
		g.slow++
	} else {
		g.slow = 0
	}
	if g.slow >= 2 {
		why := fmt.Sprintf("p95 was %v in two windows running, over %v", new.P95.Round(time.Millisecond), bound.Round(time.Millisecond))
		if err := g.weigh(TriggerSlow, why, at); err != nil {
			return err
		}
	}
	if share := 100 * new.Memory; share > t.MemoryPercent {
		why := fmt.Sprintf("a replica holds %.0f %% of its memory limit, over %v %%", share, t.MemoryPercent)
		if 100*old.Memory > t.MemoryPercent {
			g.hold(TriggerMemory, why, fmt.Sprintf("%.0f %%", 100*old.Memory))
			return nil
		}
		return g.alone(TriggerMemory, why)
	}
	return nil
}

// alone lets a trigger count whatever else ails the old color.
func (g *judge) alone(t Trigger, why string) error {
	if slices.Contains(g.settings.Triggers.Off, t) {
		return nil
	}
	return &fired{t, why}
}

// slowBound is what p95 may be.
func (g *judge) slowBound() time.Duration {
	floor := g.settings.Triggers.ResponseFloor
	if b := g.journal.Baseline; b != nil && b.Publishes >= float64(g.settings.Triggers.SlowSamples) {
		return max(floor, time.Duration(g.settings.Triggers.SlowTimes*float64(b.P95)))
	}
	return floor
}

// oldWindow says what is wrong with the old color's window, and whether it is
// slow. A drained color has no clients, but its own canaries take the same way.
func (g *judge) oldWindow(old Window) (fault, slow string) {
	t, bound := g.settings.Triggers, g.slowBound()
	if b := g.journal.Baseline; b != nil {
		bound = max(bound, time.Duration(t.SlowTimes*float64(b.CanaryP95)))
	}
	switch {
	case old.StoreFailed > 0:
		fault = fmt.Sprintf("the log refused %.0f of its publications", old.StoreFailed)
	case old.Operations >= float64(t.ErrorSamples) && 100*old.ErrorRatio() > t.ErrorPercent:
		fault = fmt.Sprintf("%.1f %% of its operations failed", 100*old.ErrorRatio())
	}
	switch {
	case old.Publishes >= float64(t.SlowSamples) && old.P95 > bound:
		slow = fmt.Sprintf("its p95 was %v", old.P95.Round(time.Millisecond))
	case old.CanaryP95 > bound:
		slow = fmt.Sprintf("its canaries took %v", old.CanaryP95.Round(time.Millisecond))
	}
	return fault, slow
}

// enough tells whether as many clients are there as have to be.
func (g *judge) enough(now int) bool {
	return g.journal.Clients < 10 || float64(now) >= g.settings.Triggers.ReturnPercent/100*float64(g.journal.Clients)
}

// returned judges how many clients came back after the move.
func (g *judge) returned(now int, at time.Time) error {
	if g.enough(now) {
		return nil
	}
	return g.weigh(TriggerSessions, fmt.Sprintf("%d of %d clients are there %v after the move, fewer than %v %%",
		now, g.journal.Clients, g.settings.Triggers.ReturnGrace, g.settings.Triggers.ReturnPercent), at)
}

// take returns what was held since the last call.
func (g *judge) take() []string {
	held := g.held
	g.held = nil
	return held
}
