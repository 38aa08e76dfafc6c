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

	failedChecks  map[string]int // health checks in a row, by replica
	staleCanaries map[string]int // of those, delivery canaries
	restarts      map[string]int // at first sight
	slowWindows   int            // windows in a row

	// The old color's last fault, and when it was slow last: reasons for holding a
	// trigger, also for as long as windows reach back to them.
	oldFault, oldSlow observedFault

	suppressed        []string // not told yet
	alreadySuppressed map[Trigger]bool
}

// A observedFault is what ailed the old color, and when.
type observedFault struct {
	reason string
	at     time.Time
}

// staleCanaryThreshold is how many checks in a row must find the canary stale: it is
// stale only after seconds.
const staleCanaryThreshold = 2

func newJudge(s Settings, j *Journal) *judge {
	return &judge{
		settings: s, journal: j,
		failedChecks: map[string]int{}, staleCanaries: map[string]int{}, restarts: map[string]int{}, alreadySuppressed: map[Trigger]bool{},
	}
}

// judgeHealth judges one health check of all replicas.
func (g *judge) judgeHealth(s Snapshot) error {
	g.recordOldHealth(s)
	found := map[Trigger]string{}
	seen := 0
	for _, r := range s.Replicas[g.journal.To] {
		if r.Deployment != g.journal.ID {
			continue
		}
		seen++
		g.judgeReplica(r, found)
	}
	if missing := g.journal.Replicas - seen; missing > 0 {
		g.countFailure("", fmt.Sprintf("%d of %d replicas are gone", missing, g.journal.Replicas), found)
	} else {
		g.failedChecks[""] = 0
	}
	// The most telling one first: a dead process fails checks, too.
	for _, t := range []Trigger{TriggerCrash, TriggerDeliveryCanary, TriggerHealth} {
		if why := found[t]; why != "" {
			if err := g.triggerUnlessShared(t, why, s.At); err != nil {
				return err
			}
		}
	}
	return nil
}

func (g *judge) judgeReplica(r Replica, found map[Trigger]string) {
	if first, known := g.restarts[r.Name]; !known {
		g.restarts[r.Name] = r.Restarts
	} else if n := r.Restarts - first; n > g.settings.Triggers.Restarts {
		found[TriggerCrash] = fmt.Sprintf("%s ended by itself: %s", r.Name, orElse(r.ExitReason, "it was started again"))
	}
	if !r.Running && r.ExitReason != "" {
		found[TriggerCrash] = fmt.Sprintf("%s ended by itself: %s", r.Name, r.ExitReason)
	}
	if r.UnhealthyComponents["delivery"] == "stale" {
		if g.staleCanaries[r.Name]++; g.staleCanaries[r.Name] >= staleCanaryThreshold {
			found[TriggerDeliveryCanary] = fmt.Sprintf("%s: its own canary does not arrive", r.Name)
		}
	} else {
		g.staleCanaries[r.Name] = 0
	}
	problem := r.problem()
	if problem == "" {
		g.failedChecks[r.Name] = 0
		return
	}
	g.countFailure(r.Name, r.Name+": "+problem, found)
}

func (g *judge) countFailure(name, why string, found map[Trigger]string) {
	if g.failedChecks[name]++; g.failedChecks[name] > g.settings.Triggers.HealthFailures {
		found[TriggerHealth] = fmt.Sprintf("%d health checks in a row failed: %s", g.failedChecks[name], why)
	}
}

// recordOldHealth notes what trouble the old color has.
func (g *judge) recordOldHealth(s Snapshot) {
	for _, r := range s.Replicas[g.journal.From] {
		if r.Deployment != g.journal.Old.Deployment {
			continue
		}
		first, known := g.restarts[r.Name]
		if !known {
			g.restarts[r.Name], first = r.Restarts, r.Restarts
		}
		why := r.problem()
		if r.Restarts > first {
			g.restarts[r.Name] = r.Restarts
			why = "it was started again"
		}
		if why != "" {
			g.oldFault = observedFault{fmt.Sprintf("%s: %s", r.Name, why), s.At}
		}
	}
}

// triggerUnlessShared lets a trigger count unless the old color is in trouble, too.
func (g *judge) triggerUnlessShared(t Trigger, why string, at time.Time) error {
	if slices.Contains(g.settings.Triggers.Disabled, t) {
		return nil
	}
	sharedFaults := []observedFault{g.oldFault}
	if t == TriggerSlow { // that the old one is slow says nothing of errors or crashes
		sharedFaults = append(sharedFaults, g.oldSlow)
	}
	for _, old := range sharedFaults {
		// Metrics reach back one window, and are scraped late.
		if !old.at.IsZero() && at.Sub(old.at) <= 2*g.settings.Window {
			g.suppress(t, why, old.reason)
			return nil
		}
	}
	return &triggerError{t, why}
}

// suppress keeps that a trigger did not count, once each.
func (g *judge) suppress(t Trigger, why, oldWhy string) {
	if g.alreadySuppressed[t] {
		return
	}
	g.alreadySuppressed[t] = true
	g.suppressed = append(g.suppressed, fmt.Sprintf("%s is held, since the old color shows it too: %s (old: %s)", t, why, oldWhy))
}

// judgeWindow judges what was measured since the last one.
func (g *judge) judgeWindow(new, old MetricsWindow, at time.Time) error {
	fault, slow := g.judgeOldWindow(old)
	if fault != "" {
		g.oldFault = observedFault{fault, at}
	}
	if slow != "" {
		g.oldSlow = observedFault{slow, at}
	}
	t := g.settings.Triggers
	if new.Operations >= float64(t.ErrorSamples) && 100*new.ErrorRatio() > t.ErrorPercent {
		why := fmt.Sprintf("%.1f %% of %.0f operations failed by our fault, over %v %%", 100*new.ErrorRatio(), new.Operations, t.ErrorPercent)
		if err := g.triggerUnlessShared(TriggerErrors, why, at); err != nil {
			return err
		}
	}
	bound := g.slowThreshold()
	if new.Publishes >= float64(t.SlowSamples) && new.P95 > bound {
		g.slowWindows++
	} else {
		g.slowWindows = 0
	}
	if g.slowWindows >= 2 {
		why := fmt.Sprintf("p95 was %v in two windows running, over %v", new.P95.Round(time.Millisecond), bound.Round(time.Millisecond))
		if err := g.triggerUnlessShared(TriggerSlow, why, at); err != nil {
			return err
		}
	}
	if share := 100 * new.Memory; share > t.MemoryPercent {
		why := fmt.Sprintf("a replica holds %.0f %% of its memory limit, over %v %%", share, t.MemoryPercent)
		if 100*old.Memory > t.MemoryPercent {
			g.suppress(TriggerMemory, why, fmt.Sprintf("%.0f %%", 100*old.Memory))
			return nil
		}
		return g.triggerIfEnabled(TriggerMemory, why)
	}
	return nil
}

// triggerIfEnabled lets a trigger count whatever else ails the old color.
func (g *judge) triggerIfEnabled(t Trigger, why string) error {
	if slices.Contains(g.settings.Triggers.Disabled, t) {
		return nil
	}
	return &triggerError{t, why}
}

// slowThreshold is what p95 may be.
func (g *judge) slowThreshold() time.Duration {
	floor := g.settings.Triggers.ResponseFloor
	if b := g.journal.Baseline; b != nil && b.Publishes >= float64(g.settings.Triggers.SlowSamples) {
		return max(floor, time.Duration(g.settings.Triggers.SlowTimes*float64(b.P95)))
	}
	return floor
}

// judgeOldWindow says what is wrong with the old color's window, and whether it is
// slow. A drained color has no clients, but its own canaries take the same way.
func (g *judge) judgeOldWindow(old MetricsWindow) (fault, slow string) {
	t, bound := g.settings.Triggers, g.slowThreshold()
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

// enoughClients tells whether as many clients are there as have to be.
func (g *judge) enoughClients(now int) bool {
	return g.journal.ClientsBeforeMove < 10 || float64(now) >= g.settings.Triggers.ReturnPercent/100*float64(g.journal.ClientsBeforeMove)
}

// judgeReturned judges how many clients came back after the move.
func (g *judge) judgeReturned(now int, at time.Time) error {
	if g.enoughClients(now) {
		return nil
	}
	return g.triggerUnlessShared(TriggerSessions, fmt.Sprintf("%d of %d clients are there %v after the move, fewer than %v %%",
		now, g.journal.ClientsBeforeMove, g.settings.Triggers.ReturnGrace, g.settings.Triggers.ReturnPercent), at)
}

// newlySuppressed returns what was held since the last call.
func (g *judge) newlySuppressed() []string {
	suppressed := g.suppressed
	g.suppressed = nil
	return suppressed
}
