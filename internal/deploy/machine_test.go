package deploy

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"switchyard/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func TestADeployMovesAllClients(t *testing.T) {
	w := newModelEnv(t)
	m := w.deployer(stateFolder(t))
	var steps []string
	m.Report = func(e Event) {
		if e.Kind == "done" {
			steps = append(steps, e.Step)
		}
	}
	e, err := m.Deploy(t.Context(), "v2")
	if err != nil || e.Outcome != Deployed || e.Color != Green {
		t.Fatal(e, err)
	}
	if w.balancerRoute.Live != Green || w.clients[Green] != 1000 {
		t.Errorf("live %s, clients %v", w.balancerRoute.Live, w.clients)
	}
	if got := strings.Join(steps, " "); got != "migrate start ready smoke baseline switch check watch move return watch moved prune" {
		t.Error(got)
	}
	for _, r := range w.snapshot().Running(Blue) {
		if r.Drain != "drained" {
			t.Errorf("the old color is kept drained, not %+v", r)
		}
	}
	if w.smokeTests != 4 { // each replica, and once from outside
		t.Errorf("%d smoke tests", w.smokeTests)
	}
	history, err := m.State.History()
	if err != nil || len(history) != 1 || history[0].Image.Ref != "v2" || history[0].Old.Image.Ref != "v1" {
		t.Error(history, err)
	}
	if kinds := kindsOf(w.notifications); !slices.Equal(kinds, []string{"start", "switch", "deployed"}) {
		t.Error(kinds)
	}
	// And on to the other color.
	if e, err = m.Deploy(t.Context(), "v3"); err != nil || e.Color != Blue || w.clients[Blue] != 1000 {
		t.Error(e, err, w.clients)
	}
}

func kindsOf(notices []Notification) (kinds []string) {
	for _, n := range notices {
		kinds = append(kinds, n.Kind)
	}
	return kinds
}

func TestALiveImageIsNotDeployedAgain(t *testing.T) {
	w := newModelEnv(t)
	m := w.deployer(stateFolder(t))
	if _, err := m.Deploy(t.Context(), "v1"); !errors.Is(err, ErrAlreadyLive) {
		t.Fatal(err)
	}
	m.AllowRedeploy = true
	if e, err := m.Deploy(t.Context(), "v1"); err != nil || e.Color != Green {
		t.Fatal(e, err)
	}
}

// Each trigger, fired.
func TestTriggers(t *testing.T) {
	leak := func(age time.Duration) float64 { return .2 + age.Seconds()/200 }
	for name, tt := range map[string]struct {
		image   imageFaults
		trigger Trigger
	}{
		"never ready":   {imageFaults{neverReady: true}, TriggerStart},
		"smoke":         {imageFaults{smoke: errors.New("no message came")}, TriggerStart},
		"crash":         {imageFaults{crashAfter: time.Minute}, TriggerCrash},
		"health":        {imageFaults{unready: func(age time.Duration) bool { return age > time.Minute }}, TriggerHealth},
		"errors":        {imageFaults{errors: .1}, TriggerErrors},
		"slow":          {imageFaults{p95: 150 * time.Millisecond}, TriggerSlow},
		"memory":        {imageFaults{memory: leak}, TriggerMemory},
		"sessions":      {imageFaults{loses: .2}, TriggerSessions},
		"stale canary":  {imageFaults{stale: time.Minute}, TriggerDeliveryCanary},
		"canary 10%":    {imageFaults{errors: .1}, TriggerErrors},
		"check of page": {imageFaults{page: errors.New("load /: status 500")}, TriggerCheck},
	} {
		t.Run(name, func(t *testing.T) {
			w := newModelEnv(t)
			w.images["v2"] = tt.image
			m := w.deployer(stateFolder(t))
			if name == "canary 10%" {
				m.Settings.CanaryPercents = []int{10, 50}
			}
			e, err := m.Deploy(t.Context(), "v2")
			var rolledBack *RolledBackError
			if !errors.As(err, &rolledBack) || e.Outcome != RolledBack || e.Trigger != tt.trigger || e.Color != Blue {
				t.Fatalf("%+v, %v", e, err)
			}
			if w.balancerRoute.Live != Blue || w.clients[Green] != 0 || w.clients[Blue]+w.lostClients != 1000 || len(w.snapshot().Running(Green)) != 0 {
				t.Errorf("live %s, clients %v, green %v", w.balancerRoute.Live, w.clients, w.replicas[Green])
			}
			if w.snapshot().countServing(Blue) != 3 || !slices.Equal(w.savedDiagnostics, []string{"green"}) || e.DiagnosticsDir == "" {
				t.Errorf("serving %d, kept %v in %q", w.snapshot().countServing(Blue), w.savedDiagnostics, e.DiagnosticsDir)
			}
			if n := w.notifications[len(w.notifications)-1]; n.Kind != "rollback" || !strings.Contains(n.Text, e.Reason) {
				t.Error(n)
			}
		})
	}
}

func TestATriggerThatTheOldColorSharesIsSuppressed(t *testing.T) {
	leak := func(time.Duration) float64 { return .95 }
	bothFaulty := func(b imageFaults) func(*modelEnv) { return func(w *modelEnv) { w.images["v2"], w.oldFaults = b, b } }
	for name, tt := range map[string]struct {
		trigger Trigger
		setup   func(*modelEnv)
	}{
		"errors": {TriggerErrors, bothFaulty(imageFaults{errors: .1})},
		"slow":   {TriggerSlow, bothFaulty(imageFaults{p95: 150 * time.Millisecond})},
		"memory": {TriggerMemory, bothFaulty(imageFaults{memory: leak})},
		"crash": {TriggerCrash, func(w *modelEnv) {
			w.images["v2"] = imageFaults{crashAfter: 40 * time.Second}
			w.oldFaults = imageFaults{crashAfter: 5 * time.Second} // again and again
		}},
		"stale canary": {TriggerDeliveryCanary, func(w *modelEnv) {
			w.images["v2"] = imageFaults{stale: time.Minute}
			w.oldFaults = imageFaults{stale: time.Hour + time.Minute} // since the same moment
		}},
		"health": {TriggerHealth, func(w *modelEnv) {
			// Both for a while, since the same moment.
			between := func(from time.Duration) func(time.Duration) bool {
				return func(age time.Duration) bool { return age > from && age < from+30*time.Second }
			}
			w.images["v2"] = imageFaults{unready: between(time.Minute)}
			w.oldFaults = imageFaults{unready: between(time.Hour + time.Minute)}
		}},
		"sessions": {TriggerSessions, func(w *modelEnv) {
			w.images["v2"] = imageFaults{loses: .2}
			w.dbDown = func(now time.Time) bool { // clients that could not come back say nothing of the version
				since, moved := w.drainStartedAt["app_blue-1"]
				return moved && now.After(since.Add(5*time.Second)) && now.Before(since.Add(50*time.Second))
			}
		}},
		"database": {TriggerHealth, func(w *modelEnv) {
			begun := w.now
			w.dbDown = func(now time.Time) bool {
				return now.After(begun.Add(100*time.Second)) && now.Before(begun.Add(130*time.Second))
			}
		}},
		"database while everybody moved": {TriggerHealth, func(w *modelEnv) {
			w.dbDown = func(now time.Time) bool {
				since, moved := w.drainStartedAt["app_blue-1"]
				return moved && now.After(since.Add(60*time.Second)) && now.Before(since.Add(90*time.Second))
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newModelEnv(t)
			w.invariantsOn = false // both colors are in trouble: that is the story
			m := w.deployer(stateFolder(t))
			tt.setup(w)
			if name == "slow" { // since before the deploy began it was quick
				w.oldFaults = imageFaults{}
				m.Report = func(e Event) {
					if e.Step == "baseline" && e.Kind == "done" {
						w.oldFaults = w.images["v2"]
					}
				}
			}
			e, err := m.Deploy(t.Context(), "v2")
			if err != nil || e.Outcome != Deployed {
				t.Fatalf("%+v, %v", e, err)
			}
			isSuppressed := func(s string) bool {
				return strings.HasPrefix(s, string(tt.trigger)+" is held, since the old color shows it too")
			}
			if !slices.ContainsFunc(e.SuppressedTriggers, isSuppressed) {
				t.Errorf("held: %v", e.SuppressedTriggers)
			}
		})
	}
}

// An old color that is slow, too, excuses a slow version, and no other fault.
func TestASlowOldColorDoesNotExcuseErrors(t *testing.T) {
	w := newModelEnv(t)
	w.images["v2"] = imageFaults{errors: .1}
	m := w.deployer(stateFolder(t))
	m.Report = func(e Event) { // since before the deploy began it was quick
		if e.Step == "baseline" && e.Kind == "done" {
			w.oldFaults = imageFaults{p95: 150 * time.Millisecond}
		}
	}
	e, err := m.Deploy(t.Context(), "v2")
	if e.Outcome != RolledBack || e.Trigger != TriggerErrors || len(e.SuppressedTriggers) > 0 {
		t.Errorf("%+v, %v", e, err)
	}
}

func TestATriggerCanBeTurnedOff(t *testing.T) {
	for trigger, b := range map[Trigger]imageFaults{
		TriggerErrors: {errors: .1}, TriggerSlow: {p95: time.Second}, TriggerSessions: {loses: .2},
		TriggerMemory: {memory: func(time.Duration) float64 { return .95 }},
	} {
		w := newModelEnv(t)
		w.images["v2"] = b
		m := w.deployer(stateFolder(t))
		m.Settings.Triggers.Disabled = []Trigger{trigger}
		if e, err := m.Deploy(t.Context(), "v2"); err != nil {
			t.Error(trigger, e, err)
		}
	}
}

func TestAFirstDeployHasNothingToRollBackTo(t *testing.T) {
	w := newModelEnv(t)
	w.replicas, w.clients, w.invariantsOn = map[Color][]Replica{}, map[Color]int{}, false
	m := w.deployer(stateFolder(t))
	e, err := m.Deploy(t.Context(), "v2")
	if err != nil || e.Color != Green || len(e.Notes) != 1 || !strings.Contains(e.Notes[0], "first deploy") || len(w.snapshot().Running(Green)) != 3 {
		t.Fatal(e, err)
	}
	w = newModelEnv(t)
	w.replicas, w.clients, w.invariantsOn = map[Color][]Replica{}, map[Color]int{}, false
	w.images["v2"] = imageFaults{neverReady: true}
	if e, err = w.deployer(stateFolder(t)).Deploy(t.Context(), "v2"); e.Outcome != RolledBack || err == nil || len(w.replicas[Green]) != 0 {
		t.Fatal(e, err)
	}
	// What serves a little is better than nothing.
	w = newModelEnv(t)
	w.replicas, w.clients, w.invariantsOn = map[Color][]Replica{}, map[Color]int{Green: 100}, false
	w.images["v2"] = imageFaults{errors: .5}
	var stuck *StuckError
	if e, err = w.deployer(stateFolder(t)).Deploy(t.Context(), "v2"); !errors.As(err, &stuck) || len(w.replicas[Green]) != 3 || w.balancerRoute.Live != Green {
		t.Fatal(e, err)
	}
}

func TestADeployWithoutMetrics(t *testing.T) {
	w := newModelEnv(t)
	w.metricsErr = errors.New("connection refused")
	m := w.deployer(stateFolder(t))
	e, err := m.Deploy(t.Context(), "v2")
	if e.Outcome != RolledBack || err == nil || !strings.Contains(e.Reason, "no baseline without metrics") {
		t.Fatal(e, err)
	}
	m.WithoutMetrics = true
	e, err = m.Deploy(t.Context(), "v2")
	if err != nil || !strings.Contains(strings.Join(e.Notes, "\n"), "not judged") {
		t.Fatal(e, err)
	}
}

func TestADeployIsRolledBackIfTraefikDoesNotFollow(t *testing.T) {
	w := newModelEnv(t)
	w.ignoresChanges = true
	e, err := w.deployer(stateFolder(t)).Deploy(t.Context(), "v2")
	if e.Outcome != RolledBack || err == nil || !strings.Contains(e.Reason, "did not follow active.yml") || w.route.Live != Blue {
		t.Fatal(e, err)
	}
}

func TestAnOperatorRollsBack(t *testing.T) {
	w := newModelEnv(t)
	m := w.deployer(stateFolder(t))
	if _, err := m.Deploy(t.Context(), "v2"); err != nil {
		t.Fatal(err)
	}
	e, err := m.Rollback(t.Context())
	if err != nil || e.Outcome != RolledBack || e.Color != Blue || w.clients[Blue] != 1000 || w.snapshot().countServing(Blue) != 3 {
		t.Fatal(e, err, w.clients)
	}
	// Even when the old color was stopped meanwhile.
	if _, err = m.Deploy(t.Context(), "v2"); err != nil {
		t.Fatal(err)
	}
	w.replicas[Blue] = nil
	if e, err = m.Rollback(t.Context()); err != nil || e.Outcome != RolledBack || w.snapshot().countServing(Blue) != 3 || w.snapshot().Running(Blue)[0].Image.Ref != "v1" {
		t.Fatal(e, err)
	}
	w.replicas[Green] = nil
	if err := os.Remove(filepath.Join(m.State.Dir, "deploys.jsonl")); err != nil {
		t.Fatal(err)
	}
	var refused *RefusedError
	if _, err = m.Rollback(t.Context()); !errors.As(err, &refused) || !strings.Contains(err.Error(), "nothing to go back to") {
		t.Fatal(err)
	}
}

// Ctrl-C at each call: the command stops, says where, and can go on.
func TestAnInterruptedDeployCanBeResumed(t *testing.T) {
	for at := 1; ; at += 7 {
		w := newModelEnv(t)
		m := w.deployer(stateFolder(t))
		ctx, cancel := context.WithCancel(t.Context())
		m.Report = func(Event) {}
		n := 0
		m.State.onWrite = func(string) {
			if n++; n == at {
				cancel()
			}
		}
		_, err := m.Deploy(ctx, "v2")
		cancel()
		if n < at {
			break // it was over before
		}
		var unfinished *UnfinishedError
		if err != nil && (!errors.As(err, &unfinished) || unfinished.Live == "") {
			t.Fatalf("interrupted at %d: %v", at, err)
		}
		if e, err := m.Deploy(t.Context(), "v2"); err != nil && !errors.Is(err, ErrAlreadyLive) {
			t.Fatal(e, err)
		}
		if w.balancerRoute.Live != Green || w.clients[Green] != 1000 {
			t.Fatal(w.balancerRoute, w.clients)
		}
	}
}

// Whatever the image is, wherever commands are killed, and however often: it
// ends deployed or rolled back, and at each moment some color served.
func TestAKilledDeployIsFinishedByTheNextRun(t *testing.T) {
	leak := func(age time.Duration) float64 { return .2 + age.Seconds()/200 }
	images := []imageFaults{
		{}, {}, {neverReady: true}, {errors: .1}, {p95: 150 * time.Millisecond}, {memory: leak},
		{crashAfter: time.Minute}, {loses: .3}, {stale: 30 * time.Second},
	}
	root := stateFolder(t)
	rapid.Check(t, func(r *rapid.T) {
		w := newModelEnv(t)
		w.images["v2"] = rapid.SampledFrom(images).Draw(r, "image")
		dir, err := os.MkdirTemp(root, "")
		if err != nil {
			t.Fatal(err)
		}
		m := w.deployer(dir)
		m.Settings.CanaryPercents = rapid.SampledFrom([][]int{nil, {10}, {10, 50}}).Draw(r, "canary")
		deploys := func() (HistoryEntry, error) { return m.Deploy(t.Context(), "v2") }
		var e HistoryEntry
		died := true
		for kills := rapid.IntRange(1, 4).Draw(r, "kills"); kills > 0 && died; kills-- {
			_, err, died = w.runUntilKilled(rapid.OneOf(rapid.IntRange(0, 250), rapid.IntRange(0, 3000)).Draw(r, "calls"), deploys)
			w.now = w.now.Add(time.Duration(rapid.IntRange(0, 120).Draw(r, "later")) * time.Second)
		}
		if died {
			e, err, _ = w.runUntilKilled(-1, deploys)
		}
		checkFinalState(r, w, m, e, err)
	})
}

// checkFinalState fails unless one color serves everybody and the journal is closed.
func checkFinalState(r *rapid.T, w *modelEnv, m *Deployer, e HistoryEntry, err error) {
	var rolledBack *RolledBackError
	if err != nil && !errors.As(err, &rolledBack) && !errors.Is(err, ErrAlreadyLive) {
		r.Fatalf("%+v, %v", e, err)
	}
	live := w.balancerRoute.Live
	if w.route != w.balancerRoute || w.balancerRoute.CanaryPercent != 0 || w.snapshot().countServing(live) != 3 {
		r.Fatalf("route %v, Traefik %v, %+v", w.route, w.balancerRoute, w.replicas)
	}
	if w.clients[live]+w.lostClients != 1000 {
		r.Fatalf("%v clients, %d away", w.clients, w.lostClients)
	}
	if j, err := m.State.Current(); j != nil || err != nil {
		r.Fatalf("the journal is still open: %+v, %v", j, err)
	}
}
