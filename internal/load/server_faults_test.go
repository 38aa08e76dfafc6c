package load

import (
	"strings"
	"testing"
	"time"
)

// What a service may do to a run, and what the run says of it.

func TestAServiceThatRefusesEverythingIsNotClean(t *testing.T) {
	for name, plan := range map[string]Plan{
		"at a rate":             {Rate: 50},
		"as fast as acks come":  {Window: 2},
		"and only one of three": {Publishers: 1, Rate: 50},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, url := startFaultyServer(t, "refuses all")
			plan.URLs, plan.Clients, plan.Rooms, plan.Duration = []string{url}, 3, 1, time.Second
			report := start(t, t.Context(), plan).Report()
			if report.Verdict != Empty || report.Acked > 0 || report.Delivered > 0 {
				t.Error(report)
			}
			// As fast as acks come, and none comes: ten a second, not thousands.
			if n := report.Refused["forbidden"]; n == 0 || n > 70 || n != report.Published {
				t.Errorf("%d of %d were refused", n, report.Published)
			}
		})
	}
}

// What is not answered is unknown; what can't be sent for it is held back.
func TestAServiceThatAnswersNothing(t *testing.T) {
	_, url := startFaultyServer(t, "answers nothing")
	run := start(t, t.Context(), Plan{
		URLs: []string{url}, Clients: 1, Rooms: 1, Rate: 1000, Duration: time.Second, Settle: 500 * time.Millisecond,
	})
	report := run.Report()
	if report.Verdict != Empty || report.Unknown != report.Published || report.Unknown < 10 || report.Unknown > maxPending+1 {
		t.Error(report)
	}
	if n := report.Run.HeldBack; report.Published > maxPending && n == 0 {
		t.Errorf("%d held back of %d", n, report.Published)
	}
}

// A client that is told to stay away misses what follows, and the report says why.
func TestAServiceThatRejectsAClient(t *testing.T) {
	_, url := startFaultyServer(t, "turns somebody away")
	run := start(t, t.Context(), Plan{
		URLs: []string{url}, Clients: 4, Rooms: 1, Rate: 50, Duration: time.Second, Settle: 3 * time.Second,
	})
	report := run.Report()
	if report.Verdict != Wrong || report.Faults[Lost] == 0 || report.Run.Behind != 1 || len(report.Run.Rejected) != 1 {
		t.Errorf("%+v\n%v", report.Run, report)
	}
	for _, says := range []string{"turned away 1 clients", "4003", "not settled 1 subscribers"} {
		if !strings.Contains(report.String(), says) {
			t.Errorf("does not say %q:\n%v", says, report)
		}
	}
}

// Members got everything, but whether it was stored is not proved.
func TestAServiceThatRejectsReaders(t *testing.T) {
	_, url := startFaultyServer(t, "lets no reader in")
	run := start(t, t.Context(), Plan{URLs: []string{url}, Clients: 4, Rooms: 2, Rate: 50, Duration: 500 * time.Millisecond})
	report := run.Report()
	if report.Verdict != Incomplete || report.Run.Unread != 2 || report.FaultCount() > 0 {
		t.Error(report)
	}
	if !strings.Contains(report.String(), "Incomplete: 2 rooms could not be read again") {
		t.Error(report)
	}
}

// A run that was asleep, as a laptop is, does not make up for it in one burst.
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
			t.Errorf("%s: from %d to %d, want from %d to %d", name, from, to, tt.from, tt.to)
		}
	}
}
