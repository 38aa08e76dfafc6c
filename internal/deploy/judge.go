package deploy

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// A judge decides whether the new color does worse than the old color does at the
// same time. Its memory belongs to one command: a command that continues the
// deploy of a killed one starts with a new judge. It is not safe for concurrent use.
type judge struct {
	settings Settings
	journal  *Journal

	failedChecks  map[string]int // failed health checks in a row, by replica
	staleCanaries map[string]int // checks in a row with a stale delivery canary, by replica
	restarts      map[string]int // the restart count when the replica was first seen
	slowWindows   int            // slow windows in a row

	// The old color's last fault, and its last slow window. They suppress triggers
	// for as long as a window of metrics reaches back to them.
	oldFault, oldSlow observedFault

	suppressed        []string // not yet returned by newlySuppressed
	alreadySuppressed map[Trigger]bool
}

// An observedFault is a fault of the old color.
type observedFault struct {
	reason string
	at     time.Time
}

// staleCanaryThreshold is how many checks in a row must find the canary stale.
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
	// In the order of precision: a crashed replica fails health checks, too.
	for _, t := range []Trigger{TriggerCrash, TriggerDeliveryCanary, TriggerHealth} {
		if why := found[t]; why != "" {
			if err := g.triggerUnlessShared(t, why, s.At); err != nil {
				return err
			}
		}
	}
	return nil
}

// judgeReplica adds the triggers of a replica of the new color to found.
func (g *judge) judgeReplica(r Replica, found map[Trigger]string) {
	if first, known := g.restarts[r.Name]; !known {
		g.restarts[r.Name] = r.Restarts
	} else if n := r.Restarts - first; n > g.settings.Triggers.Restarts {
		found[TriggerCrash] = fmt.Sprintf("%s crashed: %s", r.Name, cmp.Or(r.ExitReason, "it was restarted"))
	}
	if !r.Running && r.ExitReason != "" {
		found[TriggerCrash] = fmt.Sprintf("%s crashed: %s", r.Name, r.ExitReason)
	}
	if r.UnhealthyComponents["delivery"] == "stale" {
		if g.staleCanaries[r.Name]++; g.staleCanaries[r.Name] >= staleCanaryThreshold {
			found[TriggerDeliveryCanary] = fmt.Sprintf("%s: its delivery canary is stale", r.Name)
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

// countFailure counts a failed health check under a replica's name, or under "" for
// missing replicas.
func (g *judge) countFailure(name, why string, found map[Trigger]string) {
	if g.failedChecks[name]++; g.failedChecks[name] > g.settings.Triggers.HealthFailures {
		found[TriggerHealth] = fmt.Sprintf("%d health checks in a row failed: %s", g.failedChecks[name], why)
	}
}

// recordOldHealth records a fault of the old color's replicas.
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
			why = "it was restarted"
		}
		if why != "" {
			g.oldFault = observedFault{fmt.Sprintf("%s: %s", r.Name, why), s.At}
		}
	}
}

// triggerUnlessShared fires a trigger, unless the old color had a fault too.
func (g *judge) triggerUnlessShared(t Trigger, why string, at time.Time) error {
	if slices.Contains(g.settings.Triggers.Disabled, t) {
		return nil
	}
	sharedFaults := []observedFault{g.oldFault}
	if t == TriggerSlow { // a slow old color does not explain errors or crashes
		sharedFaults = append(sharedFaults, g.oldSlow)
	}
	for _, old := range sharedFaults {
		// Metrics reach back one window, and are scraped with a delay: two windows.
		if !old.at.IsZero() && at.Sub(old.at) <= 2*g.settings.Window {
			g.suppress(t, why, old.reason)
			return nil
		}
	}
	return &triggerError{t, why}
}

// suppress records that a trigger did not count, once for each trigger.
func (g *judge) suppress(t Trigger, why, oldWhy string) {
	if g.alreadySuppressed[t] {
		return
	}
	g.alreadySuppressed[t] = true
	g.suppressed = append(g.suppressed, fmt.Sprintf("%s is suppressed, because the old color shows it too: %s (old: %s)", t, why, oldWhy))
}

// judgeWindow judges a window of metrics of both colors.
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
		why := fmt.Sprintf("%.1f %% of %.0f operations failed with a server error, over %v %%", 100*new.ErrorRatio(), new.Operations, t.ErrorPercent)
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
		why := fmt.Sprintf("p95 was %v, the second window in a row over %v", new.P95.Round(time.Millisecond), bound.Round(time.Millisecond))
		if err := g.triggerUnlessShared(TriggerSlow, why, at); err != nil {
			return err
		}
	}
	if share := 100 * new.Memory; share > t.MemoryPercent {
		why := fmt.Sprintf("a replica uses %.0f %% of its memory limit, over %v %%", share, t.MemoryPercent)
		if 100*old.Memory > t.MemoryPercent {
			g.suppress(TriggerMemory, why, fmt.Sprintf("%.0f %%", 100*old.Memory))
			return nil
		}
		return g.triggerIfEnabled(TriggerMemory, why)
	}
	return nil
}

// triggerIfEnabled fires a trigger, whatever faults the old color has.
func (g *judge) triggerIfEnabled(t Trigger, why string) error {
	if slices.Contains(g.settings.Triggers.Disabled, t) {
		return nil
	}
	return &triggerError{t, why}
}

// slowThreshold returns the largest p95 that is not slow.
func (g *judge) slowThreshold() time.Duration {
	floor := g.settings.Triggers.ResponseFloor
	if b := g.journal.Baseline; b != nil && b.Publishes >= float64(g.settings.Triggers.SlowSamples) {
		return max(floor, time.Duration(g.settings.Triggers.SlowTimes*float64(b.P95)))
	}
	return floor
}

// judgeOldWindow describes the fault and the slowness of the old color's window,
// each "" if there is none. A drained color has no clients, but its canaries pass
// through the same database and broker.
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

// enoughClients reports whether ReturnPercent of the clients are connected. It
// does not judge fewer than ten clients.
func (g *judge) enoughClients(now int) bool {
	return g.journal.ClientsBeforeMove < 10 || float64(now) >= g.settings.Triggers.ReturnPercent/100*float64(g.journal.ClientsBeforeMove)
}

// judgeReturned judges how many clients came back after the move.
func (g *judge) judgeReturned(now int, at time.Time) error {
	if g.enoughClients(now) {
		return nil
	}
	return g.triggerUnlessShared(TriggerSessions, fmt.Sprintf("%d of %d clients are connected %v after the move, fewer than %v %%",
		now, g.journal.ClientsBeforeMove, g.settings.Triggers.ReturnGrace, g.settings.Triggers.ReturnPercent), at)
}

// newlySuppressed returns the triggers that were suppressed since the last call.
func (g *judge) newlySuppressed() []string {
	suppressed := g.suppressed
	g.suppressed = nil
	return suppressed
}
