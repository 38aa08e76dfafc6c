// Package e2e tests the service from the outside, with real processes: servers that
// really die, on a real PostgreSQL and a real Redis. The history checker of
// internal/load judges what clients received.
package e2e

import (
	"testing"

	"switchyard/internal/load"
	"switchyard/internal/testkit"
)

// TestMain runs more parallel tests at once than there are cores, unless -parallel
// says otherwise: they mostly wait. Parallel tests do not share a Redis, where
// their nodes would receive each other's messages in rooms of the same name.
func TestMain(m *testing.M) { testkit.MainParallel(m, 5) }

// assertClean fails the test unless the history is clean. These tests remove no
// messages, so that no gap may be declared either.
func assertClean(t *testing.T, h *load.History) *load.Report {
	t.Helper()
	report := load.Check(h)
	if report.Verdict != load.Clean {
		t.Error(report)
	}
	if report.Gaps > 0 {
		t.Errorf("%d gaps were declared, and no message was removed", report.Gaps)
	}
	t.Logf("%d messages acked, %d delivered, worst pause %s", report.Acked, report.Delivered, report.WorstPause.WorstPause)
	return report
}

// deliveredAtLeast reports whether n deliveries were made and no subscriber is behind.
func deliveredAtLeast(h *load.History, n int) func() bool {
	return func() bool { return h.Counts().Delivered >= n && h.CaughtUp() }
}
