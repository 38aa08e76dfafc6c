package load

import (
	"strings"
	"testing"
	"time"
)

func TestAServiceThatRefusesEverythingIsNotClean(t *testing.T) {
	for name, plan := range map[string]Plan{
		"at a rate":             {Rate: 50},
		"as fast as acks come":  {Window: 2},
		"and only one of three": {Publishers: 1, Rate: 50},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			withFaultyServer(t, "refuses all", func(t *testing.T, s *faultyServer) {
				plan.Clients, plan.Rooms, plan.Duration = 3, 1, time.Second
				report := start(t, t.Context(), s.plan(plan)).Report()
				if report.Verdict != Empty || report.Acked > 0 || report.Delivered > 0 {
					t.Error(report)
				}
				// Without acks a publisher sends ten a second, not thousands.
				if n := report.Refused["forbidden"]; n == 0 || n > 70 || n != report.Published {
					t.Errorf("%d of %d publishes were refused", n, report.Published)
				}
			})
		})
	}
}

// A publish without an answer is unknown. Messages that can't be sent because of
// that are held back.
func TestAServiceThatAnswersNothing(t *testing.T) {
	withFaultyServer(t, "answers nothing", func(t *testing.T, s *faultyServer) {
		report := start(t, t.Context(), s.plan(Plan{
			Clients: 1, Rooms: 1, Rate: 1000, Duration: time.Second, Settle: 500 * time.Millisecond,
		})).Report()
		if report.Verdict != Empty || report.Published != 256 || report.Unknown != 256 {
			t.Error(report)
		}
		if n := report.Run.HeldBack; n < 740 || n > 1000-256 {
			t.Errorf("%d messages are held back, want the rest of 1,000", n)
		}
	})
}

// A client that is closed for good misses the messages that follow, and the report
// says why.
func TestAServiceThatRejectsAClient(t *testing.T) {
	withFaultyServer(t, "rejects a client", func(t *testing.T, s *faultyServer) {
		report := start(t, t.Context(), s.plan(Plan{Clients: 4, Rooms: 1, Rate: 50, Duration: time.Second})).Report()
		if report.Verdict != Wrong || report.Faults[Lost] == 0 || report.Run.Behind != 1 || len(report.Run.Rejected) != 1 {
			t.Errorf("%+v\n%v", report.Run, report)
		}
		for _, says := range []string{"turned away 1 clients", "4003", "not settled 1 subscribers"} {
			if !strings.Contains(report.String(), says) {
				t.Errorf("the report does not say %q:\n%v", says, report)
			}
		}
	})
}

// If no reader can join at the end, nothing proves that the messages are stored.
func TestAServiceThatRejectsReaders(t *testing.T) {
	withFaultyServer(t, "rejects readers", func(t *testing.T, s *faultyServer) {
		report := start(t, t.Context(), s.plan(Plan{Clients: 4, Rooms: 2, Rate: 50, Duration: 500 * time.Millisecond})).Report()
		if report.Verdict != Incomplete || report.Run.Unread != 2 || report.FaultCount() > 0 {
			t.Error(report)
		}
		if !strings.Contains(report.String(), "Incomplete: 2 rooms could not be read again") {
			t.Error(report)
		}
	})
}

// An unchecked run has no report and no history, and ignores phases.
func TestAnUncheckedRunHasNoReport(t *testing.T) {
	withFaultyServer(t, "", func(t *testing.T, s *faultyServer) {
		run := start(t, t.Context(), s.plan(Plan{Clients: 2, Rooms: 1, Rate: 50, Duration: time.Second, Unchecked: true}))
		run.BeginPhase()
		if speed := run.Speed(); run.Report() != nil || run.History() != nil || speed.Acked == 0 || speed.PublishToAck.Count() == 0 {
			t.Errorf("report %v, speed\n%v", run.Report(), speed)
		}
	})
}

// A run that was asleep, as a laptop may be, does not catch up in one burst.
func TestOverdueMessagesAreHeldBack(t *testing.T) {
	for name, tt := range map[string]struct {
		elapsed        time.Duration
		rate           float64
		sent, from, to int
	}{
		"nothing yet":             {50 * time.Millisecond, 10, 0, 0, 0},
		"the first":               {100 * time.Millisecond, 10, 0, 0, 1},
		"nothing new":             {100 * time.Millisecond, 10, 1, 1, 1},
		"some, a little late":     {500 * time.Millisecond, 1000, 480, 480, 500},
		"a second late":           {time.Second, 10, 0, 0, 10},
		"a minute late":           {time.Minute, 10, 0, 590, 600},
		"asleep after some":       {time.Hour, 1, 10, 3599, 3600},
		"less than one a second":  {25 * time.Second, 0.1, 1, 2, 2},
		"ahead, when rate is odd": {time.Second, 0.3, 1, 1, 1},
	} {
		if from, to := due(tt.elapsed, tt.rate, tt.sent); from != tt.from || to != tt.to {
			t.Errorf("%s: due from %d to %d, want from %d to %d", name, from, to, tt.from, tt.to)
		}
	}
}
