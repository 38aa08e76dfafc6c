package deploy

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"switchyard/internal/checks"
	"switchyard/internal/stack"
)

// A judge decides whether the new color does worse than the old color does at the
// same time. Its state is not saved: a command that continues the deploy of a killed
// one starts with a new judge. It is not safe for concurrent use.
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
func (jd *judge) judgeHealth(s stack.Snapshot) error {
	jd.recordOldHealth(s)
	found := map[Trigger]string{}
	seen := 0
	for _, r := range s.Replicas[jd.journal.To] {
		if r.Deployment != jd.journal.ID {
			continue
		}
		seen++
		jd.judgeReplica(r, found)
	}
	if missing := jd.journal.Replicas - seen; missing > 0 {
		jd.countFailure("", fmt.Sprintf("%d of %d replicas are gone", missing, jd.journal.Replicas), found)
	} else {
		jd.failedChecks[""] = 0
	}
	// The most specific trigger first: a crashed replica fails health checks, too.
	for _, t := range []Trigger{TriggerCrash, TriggerDeliveryCanary, TriggerHealth} {
		if reason := found[t]; reason != "" {
			if err := jd.triggerUnlessShared(t, reason, s.At); err != nil {
				return err
			}
		}
	}
	return nil
}

// judgeReplica adds the triggers of a replica of the new color to found.
func (jd *judge) judgeReplica(r stack.Replica, found map[Trigger]string) {
	if first, known := jd.restarts[r.Name]; !known {
		jd.restarts[r.Name] = r.Restarts
	} else if n := r.Restarts - first; n > jd.settings.Triggers.Restarts {
		found[TriggerCrash] = fmt.Sprintf("%s crashed: %s", r.Name, cmp.Or(r.ExitReason, "it was restarted"))
	}
	if !r.Running && r.ExitReason != "" {
		found[TriggerCrash] = fmt.Sprintf("%s crashed: %s", r.Name, r.ExitReason)
	}
	if r.UnhealthyComponents["delivery"] == "stale" {
		if jd.staleCanaries[r.Name]++; jd.staleCanaries[r.Name] >= staleCanaryThreshold {
			found[TriggerDeliveryCanary] = fmt.Sprintf("%s: its delivery canary is stale", r.Name)
		}
	} else {
		jd.staleCanaries[r.Name] = 0
	}
	problem := r.Problem()
	if problem == "" {
		jd.failedChecks[r.Name] = 0
		return
	}
	jd.countFailure(r.Name, r.Name+": "+problem, found)
}

// countFailure counts a failed health check under a replica's name, or under "" for
// missing replicas.
func (jd *judge) countFailure(name, reason string, found map[Trigger]string) {
	if jd.failedChecks[name]++; jd.failedChecks[name] > jd.settings.Triggers.HealthFailures {
		found[TriggerHealth] = fmt.Sprintf("%d health checks in a row failed: %s", jd.failedChecks[name], reason)
	}
}

// recordOldHealth records a fault of the old color's replicas.
func (jd *judge) recordOldHealth(s stack.Snapshot) {
	for _, r := range s.Replicas[jd.journal.From] {
		if r.Deployment != jd.journal.Old.Deployment {
			continue
		}
		first, known := jd.restarts[r.Name]
		if !known {
			jd.restarts[r.Name], first = r.Restarts, r.Restarts
		}
		reason := r.Problem()
		if r.Restarts > first {
			jd.restarts[r.Name] = r.Restarts
			reason = "it was restarted"
		}
		if reason != "" {
			jd.oldFault = observedFault{fmt.Sprintf("%s: %s", r.Name, reason), s.At}
		}
	}
}

func (jd *judge) isDisabled(t Trigger) bool {
	return slices.Contains(jd.settings.Triggers.Disabled, t)
}

// triggerUnlessShared returns a trigger as an error, unless it is disabled or the old color
// had a fault too.
func (jd *judge) triggerUnlessShared(t Trigger, reason string, at time.Time) error {
	if jd.isDisabled(t) {
		return nil
	}
	sharedFaults := []observedFault{jd.oldFault}
	if t == TriggerSlow { // a slow old color does not explain errors or crashes
		sharedFaults = append(sharedFaults, jd.oldSlow)
	}
	for _, old := range sharedFaults {
		// Metrics reach back one window and are scraped with a delay, so a fault counts
		// for two windows.
		if !old.at.IsZero() && at.Sub(old.at) <= 2*jd.settings.Window {
			jd.suppress(t, reason, old.reason)
			return nil
		}
	}
	return &triggerError{t, reason}
}

// suppress records that a trigger did not count, once for each trigger.
func (jd *judge) suppress(t Trigger, reason, oldReason string) {
	if jd.alreadySuppressed[t] {
		return
	}
	jd.alreadySuppressed[t] = true
	jd.suppressed = append(jd.suppressed, fmt.Sprintf("%s is suppressed, because the old color shows it too: %s (old: %s)", t, reason, oldReason))
}

// judgeWindow judges a window of metrics of both colors.
func (jd *judge) judgeWindow(new, old checks.MetricsWindow, at time.Time) error {
	fault, slow := jd.judgeOldWindow(old)
	if fault != "" {
		jd.oldFault = observedFault{fault, at}
	}
	if slow != "" {
		jd.oldSlow = observedFault{slow, at}
	}
	t := jd.settings.Triggers
	if new.Operations >= float64(t.ErrorSamples) && 100*new.ErrorRatio() > t.ErrorPercent {
		reason := fmt.Sprintf("%.1f%% of %.0f operations failed with a server error, over %v%%", 100*new.ErrorRatio(), new.Operations, t.ErrorPercent)
		if err := jd.triggerUnlessShared(TriggerErrors, reason, at); err != nil {
			return err
		}
	}
	bound := jd.slowThreshold()
	if new.Publishes >= float64(t.SlowSamples) && new.P95 > bound {
		jd.slowWindows++
	} else {
		jd.slowWindows = 0
	}
	if jd.slowWindows >= 2 {
		reason := fmt.Sprintf("p95 was %v, the second window in a row over %v", new.P95.Round(time.Millisecond), bound.Round(time.Millisecond))
		if err := jd.triggerUnlessShared(TriggerSlow, reason, at); err != nil {
			return err
		}
	}
	if share := 100 * new.Memory; share > t.MemoryPercent && !jd.isDisabled(TriggerMemory) {
		reason := fmt.Sprintf("a replica uses %.0f%% of its memory limit, over %v%%", share, t.MemoryPercent)
		if 100*old.Memory > t.MemoryPercent {
			jd.suppress(TriggerMemory, reason, fmt.Sprintf("%.0f%%", 100*old.Memory))
			return nil
		}
		return &triggerError{TriggerMemory, reason}
	}
	return nil
}

// slowThreshold returns the largest p95 that is not slow.
func (jd *judge) slowThreshold() time.Duration {
	floor := jd.settings.Triggers.ResponseFloor
	if b := jd.journal.Baseline; b != nil && b.Publishes >= float64(jd.settings.Triggers.SlowSamples) {
		return max(floor, time.Duration(jd.settings.Triggers.SlowTimes*float64(b.P95)))
	}
	return floor
}

// judgeOldWindow describes the fault and the slowness of the old color's window,
// each "" if there is none. A drained color has no clients, but its canaries pass
// through the same database and broker.
func (jd *judge) judgeOldWindow(old checks.MetricsWindow) (fault, slow string) {
	t, bound := jd.settings.Triggers, jd.slowThreshold()
	if b := jd.journal.Baseline; b != nil {
		bound = max(bound, time.Duration(t.SlowTimes*float64(b.CanaryP95)))
	}
	switch {
	case old.StoreFailed > 0:
		fault = fmt.Sprintf("the log refused %.0f of its publications", old.StoreFailed)
	case old.Operations >= float64(t.ErrorSamples) && 100*old.ErrorRatio() > t.ErrorPercent:
		fault = fmt.Sprintf("%.1f%% of its operations failed", 100*old.ErrorRatio())
	}
	switch {
	case old.Publishes >= float64(t.SlowSamples) && old.P95 > bound:
		slow = fmt.Sprintf("its p95 was %v", old.P95.Round(time.Millisecond))
	case old.CanaryP95 > bound:
		slow = fmt.Sprintf("its canaries took %v", old.CanaryP95.Round(time.Millisecond))
	}
	return fault, slow
}

// enoughClients reports whether ReturnPercent of the clients are connected. With
// fewer than ten clients before the move it returns true.
func (jd *judge) enoughClients(now int) bool {
	return jd.journal.ClientsBeforeMove < 10 || float64(now) >= jd.settings.Triggers.ReturnPercent/100*float64(jd.journal.ClientsBeforeMove)
}

// judgeReturned judges how many clients came back after the move.
func (jd *judge) judgeReturned(now int, at time.Time) error {
	if jd.enoughClients(now) {
		return nil
	}
	return jd.triggerUnlessShared(TriggerSessions, fmt.Sprintf("%d of %d clients are connected %v after the move, fewer than %v%%",
		now, jd.journal.ClientsBeforeMove, jd.settings.Triggers.ReturnGrace, jd.settings.Triggers.ReturnPercent), at)
}

// newlySuppressed returns the triggers that were suppressed since the last call.
func (jd *judge) newlySuppressed() []string {
	suppressed := jd.suppressed
	jd.suppressed = nil
	return suppressed
}
