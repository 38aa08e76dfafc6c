// Package e2e tells the service's stories with real processes: servers that
// really die, on a real PostgreSQL and a real Redis. The judge of what clients
// were told is the history checker of internal/load.
package e2e

import (
	"flag"
	"testing"

	"switchyard/internal/load"
	"switchyard/internal/testkit"
)

// TestMain lets more stories run at once than there are cores, unless -parallel
// says otherwise: those that are marked so mostly wait. They share no Redis,
// where rooms of the same name would meet.
func TestMain(m *testing.M) {
	if err := flag.Set("test.parallel", "4"); err != nil {
		panic(err)
	}
	testkit.Main(m)
}

// assertClean fails the test unless the history is clean. Nothing was trimmed in
// these stories, so that no gap may be declared either.
func assertClean(t *testing.T, h *load.History) *load.Report {
	t.Helper()
	report := load.Check(h)
	if report.Verdict != load.Clean {
		t.Error(report)
	}
	if report.Gaps > 0 {
		t.Errorf("%d gaps were declared; nothing was trimmed", report.Gaps)
	}
	t.Logf("%d messages acked, %d delivered, worst pause %s", report.Acked, report.Delivered, report.WorstPause.WorstPause)
	return report
}

// deliveredAtLeast says whether so much was delivered and nobody is behind.
func deliveredAtLeast(h *load.History, n int) func() bool {
	return func() bool { return h.Counts().Delivered >= n && h.CaughtUp() }
}
