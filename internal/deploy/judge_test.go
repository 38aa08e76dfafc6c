package deploy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"switchyard/internal/checks"
	"switchyard/internal/stack"
)

// The numbers in this file are those of docs/deploy.md, "What rolls back".

// testJudge returns a judge of a deploy from blue to green, with the default
// settings and a baseline p95 of 40 ms.
func testJudge() *judge {
	j := &Journal{
		ID: "new", From: stack.Blue, To: stack.Green, Replicas: 3, Old: stack.ColorSpec{Color: stack.Blue, Deployment: "old", Replicas: 3},
		Baseline: &checks.MetricsWindow{Publishes: 1000, P95: 40 * time.Millisecond, CanaryP95: 5 * time.Millisecond}, ClientsBeforeMove: 1000,
	}
	return newJudge(DefaultSettings(), j)
}

var judgeEpoch = time.Date(2026, 11, 26, 10, 0, 0, 0, time.UTC)

// healthy returns a snapshot of three healthy replicas of each color, so long after
// the start of the test.
func healthy(after time.Duration) stack.Snapshot {
	s := stack.Snapshot{At: judgeEpoch.Add(after), Replicas: map[stack.Color][]stack.Replica{}}
	for c, deployment := range map[stack.Color]string{stack.Blue: "old", stack.Green: "new"} {
		for n := 1; n <= 3; n++ {
			s.Replicas[c] = append(s.Replicas[c], stack.Replica{
				Name: fmt.Sprintf("%s-%d", c, n), Number: n, Deployment: deployment, Running: true, Health: stack.Health{Reachable: true, Ready: true},
			})
		}
	}
	return s
}

// firedTrigger returns the trigger of an error, "" for none.
func firedTrigger(t *testing.T, err error) Trigger {
	t.Helper()
	var fired *triggerError
	if err != nil && !errors.As(err, &fired) {
		t.Fatal(err)
	}
	if fired == nil {
		return ""
	}
	return fired.trigger
}

// Three failed checks of a replica in a row are tolerated, the fourth fires. A
// check that passes between them resets the count.
func TestTheFourthFailedHealthCheckInARowFires(t *testing.T) {
	unready := func() stack.Snapshot {
		s := healthy(0)
		s.Replicas[stack.Green][1].Ready = false
		return s
	}
	missing := func() stack.Snapshot {
		s := healthy(0)
		s.Replicas[stack.Green] = s.Replicas[stack.Green][:2]
		return s
	}
	for name, faulty := range map[string]func() stack.Snapshot{"a replica is not ready": unready, "a replica is missing": missing} {
		jd := testJudge()
		for i, failed := range []bool{true, true, true, false, true, true, true, true} {
			s := healthy(0)
			if failed {
				s = faulty()
			}
			want := Trigger("")
			if i == 7 {
				want = TriggerHealth
			}
			if got := firedTrigger(t, jd.judgeHealth(s)); got != want {
				t.Errorf("%s, check %d: trigger %q, want %q", name, i+1, got, want)
			}
		}
	}
}

// A delivery canary fires when it is stale in two checks in a row.
func TestTheSecondStaleCanaryInARowFires(t *testing.T) {
	jd := testJudge()
	for i, want := range []Trigger{"", "", "", TriggerDeliveryCanary} {
		s := healthy(0)
		if i != 1 {
			s.Replicas[stack.Green][0].UnhealthyComponents = map[string]string{"delivery": "stale"}
		}
		if got := firedTrigger(t, jd.judgeHealth(s)); got != want {
			t.Errorf("check %d: trigger %q, want %q", i+1, got, want)
		}
	}
}

// A single crash fires. A restart from before the deploy does not.
func TestACrashFires(t *testing.T) {
	jd := testJudge()
	restarted := func(times int) stack.Snapshot {
		s := healthy(0)
		s.Replicas[stack.Green][2].Restarts, s.Replicas[stack.Green][2].ExitReason = times, "exit code 2"
		return s
	}
	if got := firedTrigger(t, jd.judgeHealth(restarted(4))); got != "" {
		t.Errorf("earlier restarts fire %q", got)
	}
	if got := firedTrigger(t, jd.judgeHealth(restarted(5))); got != TriggerCrash {
		t.Errorf("a restart fires %q", got)
	}
}

// The bounds of the metrics are those of the documentation: a value on the bound
// is tolerated, one beyond it fires.
func TestTheBoundsOfAWindow(t *testing.T) {
	slow := checks.MetricsWindow{Operations: 1000, Publishes: 100, P95: 81 * time.Millisecond} // over 2 x 40 ms
	for name, tt := range map[string]struct {
		windows []checks.MetricsWindow
		change  func(*judge)
		want    Trigger
	}{
		"5% errors":                    {windows: []checks.MetricsWindow{{Operations: 1000, Errors: 50}}},
		"5.1% errors":                  {windows: []checks.MetricsWindow{{Operations: 1000, Errors: 51}}, want: TriggerErrors},
		"all of 19 operations fail":    {windows: []checks.MetricsWindow{{Operations: 19, Errors: 19}}},
		"all of 20 operations fail":    {windows: []checks.MetricsWindow{{Operations: 20, Errors: 20}}, want: TriggerErrors},
		"90% of the memory":            {windows: []checks.MetricsWindow{{Memory: .9}}},
		"91% of the memory":            {windows: []checks.MetricsWindow{{Memory: .91}}, want: TriggerMemory},
		"one slow window":              {windows: []checks.MetricsWindow{slow}},
		"two slow windows":             {windows: []checks.MetricsWindow{slow, slow}, want: TriggerSlow},
		"a fast window between":        {windows: []checks.MetricsWindow{slow, {Publishes: 100, P95: time.Millisecond}, slow}},
		"twice the baseline":           {windows: []checks.MetricsWindow{{Publishes: 100, P95: 80 * time.Millisecond}, {Publishes: 100, P95: 80 * time.Millisecond}}},
		"99 slow publishes":            {windows: []checks.MetricsWindow{slow, {Publishes: 99, P95: time.Second}}},
		"under the floor of 50 ms":     {windows: []checks.MetricsWindow{{Publishes: 100, P95: 50 * time.Millisecond}, {Publishes: 100, P95: 50 * time.Millisecond}}, change: quickBaseline},
		"over the floor of 50 ms":      {windows: []checks.MetricsWindow{{Publishes: 100, P95: 51 * time.Millisecond}, {Publishes: 100, P95: 51 * time.Millisecond}}, change: quickBaseline, want: TriggerSlow},
		"a baseline of few publishes":  {windows: []checks.MetricsWindow{slow, slow}, change: func(g *judge) { g.journal.Baseline.Publishes, g.journal.Baseline.P95 = 99, time.Second }, want: TriggerSlow},
		"a trigger that is turned off": {windows: []checks.MetricsWindow{{Memory: .91}}, change: func(g *judge) { g.settings.Triggers.Disabled = []Trigger{TriggerMemory} }},
	} {
		jd := testJudge()
		if tt.change != nil {
			tt.change(jd)
		}
		for i, w := range tt.windows {
			want := Trigger("")
			if i == len(tt.windows)-1 {
				want = tt.want
			}
			if got := firedTrigger(t, jd.judgeWindow(w, checks.MetricsWindow{}, judgeEpoch.Add(time.Duration(i)*30*time.Second))); got != want {
				t.Errorf("%s, window %d: trigger %q, want %q", name, i+1, got, want)
			}
		}
	}
}

// quickBaseline makes twice the baseline less than the floor.
func quickBaseline(jd *judge) { jd.journal.Baseline.P95 = time.Millisecond }

// A fault of the old color suppresses a trigger for two windows of 30 s, and no
// longer.
func TestAnOldFaultSuppressesTriggersForTwoWindows(t *testing.T) {
	crashed := func(c stack.Color, after time.Duration) stack.Snapshot {
		s := healthy(after)
		s.Replicas[c][0].Running, s.Replicas[c][0].ExitReason = false, "exit code 2"
		return s
	}
	for after, want := range map[time.Duration]Trigger{
		30 * time.Second: "", 60 * time.Second: "", 61 * time.Second: TriggerCrash, 5 * time.Minute: TriggerCrash,
	} {
		jd := testJudge()
		if got := firedTrigger(t, jd.judgeHealth(crashed(stack.Blue, 0))); got != "" {
			t.Errorf("a crash of the old color fires %q", got)
		}
		if got := firedTrigger(t, jd.judgeHealth(crashed(stack.Green, after))); got != want {
			t.Errorf("%v after a fault of the old color: trigger %q, want %q", after, got, want)
		}
		suppressed := slices.ContainsFunc(jd.newlySuppressed(), func(s string) bool { return strings.HasPrefix(s, "crash is suppressed") })
		if suppressed != (want == "") {
			t.Errorf("%v after a fault of the old color: suppressed is %v", after, suppressed)
		}
	}
}

// A drained color has no clients, but publications that the log refuses, slow
// canaries and its health still show a fault that both colors share.
func TestADrainedColorStillShowsSharedFaults(t *testing.T) {
	errorsOfNew := checks.MetricsWindow{Operations: 1000, Errors: 1000}
	if got := firedTrigger(t, testJudge().judgeWindow(errorsOfNew, checks.MetricsWindow{StoreFailed: 1}, judgeEpoch)); got != "" {
		t.Errorf("errors fire %q although the log refuses the old color's canaries", got)
	}
	jd := testJudge()
	slow := checks.MetricsWindow{Publishes: 1000, P95: time.Second}
	for range 2 {
		if got := firedTrigger(t, jd.judgeWindow(slow, checks.MetricsWindow{CanaryP95: time.Second}, judgeEpoch)); got != "" {
			t.Errorf("slow fires %q although the old color's canaries are slow", got)
		}
	}
}

// Fewer than 90% of the clients after the move fire.
func TestTheBoundOfReturnedClients(t *testing.T) {
	for clients, want := range map[int]Trigger{1000: "", 900: "", 899: TriggerSessions} {
		if got := firedTrigger(t, testJudge().judgeReturned(clients, judgeEpoch)); got != want {
			t.Errorf("%d of 1000 clients: trigger %q, want %q", clients, got, want)
		}
	}
}

// A trigger that is turned off is not reported as suppressed, either.
func TestADisabledTriggerIsNotSuppressed(t *testing.T) {
	jd := testJudge()
	jd.settings.Triggers.Disabled = []Trigger{TriggerMemory}
	full := checks.MetricsWindow{Replicas: 1, Memory: 1}
	if err := jd.judgeWindow(full, full, time.Time{}); err != nil {
		t.Error(err)
	}
	if got := jd.newlySuppressed(); len(got) != 0 {
		t.Errorf("a disabled trigger is suppressed: %q", got)
	}
}
