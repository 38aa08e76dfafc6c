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

	"switchyard/internal/stack"
	"switchyard/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func TestADeployMovesAllClients(t *testing.T) {
	env := newModelEnv(t)
	d := env.deployer(stateFolder(t))
	var steps []string
	d.Report = func(e Event) {
		if e.Kind == "done" {
			steps = append(steps, e.Step)
		}
	}
	e, err := d.Deploy(t.Context(), "v2")
	if err != nil || e.Outcome != Deployed || e.Color != stack.Green {
		t.Fatal(e, err)
	}
	if env.balancerRoute.Live != stack.Green || env.clients[stack.Green] != 1000 {
		t.Errorf("live %s, clients %v", env.balancerRoute.Live, env.clients)
	}
	if got := strings.Join(steps, " "); got != "migrate start ready smoke baseline switch check watch move return watch moved prune" {
		t.Error(got)
	}
	for _, r := range env.snapshot().Running(stack.Blue) {
		if r.Drain != "drained" {
			t.Errorf("a replica of the old color is not drained: %+v", r)
		}
	}
	if env.smokeTests != 4 { // one for each replica, and one from outside
		t.Errorf("%d smoke tests, want 4", env.smokeTests)
	}
	history, err := d.State.History()
	if err != nil || len(history) != 1 || history[0].Image.Ref != "v2" || history[0].Old.Image.Ref != "v1" {
		t.Error(history, err)
	}
	if kinds := kindsOf(env.notifications); !slices.Equal(kinds, []string{"start", "switch", "deployed"}) {
		t.Error(kinds)
	}
	// The next deploy goes to the other color.
	if e, err = d.Deploy(t.Context(), "v3"); err != nil || e.Color != stack.Blue || env.clients[stack.Blue] != 1000 {
		t.Error(e, err, env.clients)
	}
}

func kindsOf(notices []Notification) (kinds []string) {
	for _, n := range notices {
		kinds = append(kinds, n.Kind)
	}
	return kinds
}

func TestALiveImageIsNotDeployedAgain(t *testing.T) {
	env := newModelEnv(t)
	d := env.deployer(stateFolder(t))
	if _, err := d.Deploy(t.Context(), "v1"); !errors.Is(err, ErrAlreadyLive) {
		t.Fatal(err)
	}
	d.AllowRedeploy = true
	if e, err := d.Deploy(t.Context(), "v1"); err != nil || e.Color != stack.Green {
		t.Fatal(e, err)
	}
}

// Each fault of an image fires its trigger, and the deploy is rolled back.
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
			env := newModelEnv(t)
			env.images["v2"] = tt.image
			d := env.deployer(stateFolder(t))
			if name == "canary 10%" {
				d.Settings.SharePercents = []int{10, 50}
			}
			e, err := d.Deploy(t.Context(), "v2")
			var rolledBack *RolledBackError
			if !errors.As(err, &rolledBack) || e.Outcome != RolledBack || e.Trigger != tt.trigger || e.Color != stack.Blue {
				t.Fatalf("%+v, %v", e, err)
			}
			if env.balancerRoute.Live != stack.Blue || env.clients[stack.Green] != 0 || env.clients[stack.Blue]+env.lostClients != 1000 || len(env.snapshot().Running(stack.Green)) != 0 {
				t.Errorf("live %s, clients %v, green %v", env.balancerRoute.Live, env.clients, env.replicas[stack.Green])
			}
			if env.snapshot().CountServing(stack.Blue) != 3 || !slices.Equal(env.savedDiagnostics, []string{"green"}) || e.DiagnosticsDir == "" {
				t.Errorf("%d replicas of blue serve; diagnostics of %v are in %q", env.snapshot().CountServing(stack.Blue), env.savedDiagnostics, e.DiagnosticsDir)
			}
			if n := env.notifications[len(env.notifications)-1]; n.Kind != "rollback" || !strings.Contains(n.Text, e.Reason) {
				t.Error(n)
			}
		})
	}
}

func TestATriggerThatTheOldColorSharesIsSuppressed(t *testing.T) {
	leak := func(time.Duration) float64 { return .95 }
	bothFaulty := func(b imageFaults) func(*modelEnv) {
		return func(env *modelEnv) { env.images["v2"], env.oldFaults = b, b }
	}
	for name, tt := range map[string]struct {
		trigger Trigger
		setup   func(*modelEnv)
	}{
		"errors": {TriggerErrors, bothFaulty(imageFaults{errors: .1})},
		"slow":   {TriggerSlow, bothFaulty(imageFaults{p95: 150 * time.Millisecond})},
		"memory": {TriggerMemory, bothFaulty(imageFaults{memory: leak})},
		"crash": {TriggerCrash, func(env *modelEnv) {
			env.images["v2"] = imageFaults{crashAfter: 40 * time.Second}
			env.oldFaults = imageFaults{crashAfter: 5 * time.Second} // repeatedly
		}},
		"stale canary": {TriggerDeliveryCanary, func(env *modelEnv) {
			env.images["v2"] = imageFaults{stale: time.Minute}
			env.oldFaults = imageFaults{stale: time.Hour + time.Minute} // from the same moment on
		}},
		"health": {TriggerHealth, func(env *modelEnv) {
			// Both for half a minute, from the same moment on.
			between := func(from time.Duration) func(time.Duration) bool {
				return func(age time.Duration) bool { return age > from && age < from+30*time.Second }
			}
			env.images["v2"] = imageFaults{unready: between(time.Minute)}
			env.oldFaults = imageFaults{unready: between(time.Hour + time.Minute)}
		}},
		"sessions": {TriggerSessions, func(env *modelEnv) {
			env.images["v2"] = imageFaults{loses: .2}
			env.dbDown = func(now time.Time) bool { // the clients could not reconnect because of the database
				since, moved := env.drainStartedAt["app_blue-1"]
				return moved && now.After(since.Add(5*time.Second)) && now.Before(since.Add(50*time.Second))
			}
		}},
		"database": {TriggerHealth, func(env *modelEnv) {
			begun := env.now
			env.dbDown = func(now time.Time) bool {
				return now.After(begun.Add(100*time.Second)) && now.Before(begun.Add(130*time.Second))
			}
		}},
		"database after the move": {TriggerHealth, func(env *modelEnv) {
			env.dbDown = func(now time.Time) bool {
				since, moved := env.drainStartedAt["app_blue-1"]
				return moved && now.After(since.Add(60*time.Second)) && now.Before(since.Add(90*time.Second))
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			env := newModelEnv(t)
			env.invariantsOn = false // both colors are faulty here
			d := env.deployer(stateFolder(t))
			tt.setup(env)
			if name == "slow" { // the old color is fast until its baseline is measured
				env.oldFaults = imageFaults{}
				d.Report = func(e Event) {
					if e.Step == "baseline" && e.Kind == "done" {
						env.oldFaults = env.images["v2"]
					}
				}
			}
			e, err := d.Deploy(t.Context(), "v2")
			if err != nil || e.Outcome != Deployed {
				t.Fatalf("%+v, %v", e, err)
			}
			isSuppressed := func(s string) bool {
				return strings.HasPrefix(s, string(tt.trigger)+" is suppressed, because the old color shows it too")
			}
			if !slices.ContainsFunc(e.SuppressedTriggers, isSuppressed) {
				t.Errorf("%s is not suppressed: %v", tt.trigger, e.SuppressedTriggers)
			}
		})
	}
}

// A slow old color suppresses the trigger slow, and no other.
func TestASlowOldColorDoesNotExcuseErrors(t *testing.T) {
	env := newModelEnv(t)
	env.images["v2"] = imageFaults{errors: .1}
	d := env.deployer(stateFolder(t))
	d.Report = func(e Event) { // the old color is fast until its baseline is measured
		if e.Step == "baseline" && e.Kind == "done" {
			env.oldFaults = imageFaults{p95: 150 * time.Millisecond}
		}
	}
	e, err := d.Deploy(t.Context(), "v2")
	if e.Outcome != RolledBack || e.Trigger != TriggerErrors || len(e.SuppressedTriggers) > 0 {
		t.Errorf("%+v, %v", e, err)
	}
}

func TestATriggerCanBeTurnedOff(t *testing.T) {
	for trigger, b := range map[Trigger]imageFaults{
		TriggerErrors: {errors: .1}, TriggerSlow: {p95: time.Second}, TriggerSessions: {loses: .2},
		TriggerMemory: {memory: func(time.Duration) float64 { return .95 }},
	} {
		env := newModelEnv(t)
		env.images["v2"] = b
		d := env.deployer(stateFolder(t))
		d.Settings.Triggers.Disabled = []Trigger{trigger}
		if e, err := d.Deploy(t.Context(), "v2"); err != nil {
			t.Error(trigger, e, err)
		}
	}
}

func TestAFirstDeployHasNothingToRollBackTo(t *testing.T) {
	env := newModelEnv(t)
	env.replicas, env.clients, env.invariantsOn = map[stack.Color][]stack.Replica{}, map[stack.Color]int{}, false
	d := env.deployer(stateFolder(t))
	e, err := d.Deploy(t.Context(), "v2")
	if err != nil || e.Color != stack.Green || len(e.Notes) != 1 || !strings.Contains(e.Notes[0], "first deploy") || len(env.snapshot().Running(stack.Green)) != 3 {
		t.Fatal(e, err)
	}
	env = newModelEnv(t)
	env.replicas, env.clients, env.invariantsOn = map[stack.Color][]stack.Replica{}, map[stack.Color]int{}, false
	env.images["v2"] = imageFaults{neverReady: true}
	if e, err = env.deployer(stateFolder(t)).Deploy(t.Context(), "v2"); e.Outcome != RolledBack || err == nil || len(env.replicas[stack.Green]) != 0 {
		t.Fatal(e, err)
	}
	// A color that serves with errors stays live: there is no other.
	env = newModelEnv(t)
	env.replicas, env.clients, env.invariantsOn = map[stack.Color][]stack.Replica{}, map[stack.Color]int{stack.Green: 100}, false
	env.images["v2"] = imageFaults{errors: .5}
	var stuck *StuckError
	d = env.deployer(stateFolder(t))
	if e, err = d.Deploy(t.Context(), "v2"); !errors.As(err, &stuck) || len(env.replicas[stack.Green]) != 3 || env.balancerRoute.Live != stack.Green {
		t.Fatal(e, err)
	}
	// The deploy is over: the history names the fault, there is nothing to roll back, and the
	// fixed version is deployed like any other.
	history, err := d.State.History()
	if err != nil || len(history) != 1 || history[0].Outcome != Failed || history[0].Trigger != TriggerErrors || history[0].Color != stack.Green {
		t.Errorf("the history is %+v, %v", history, err)
	}
	var refused *RefusedError
	if e, err = d.Rollback(t.Context()); !errors.As(err, &refused) || !strings.Contains(err.Error(), "nothing to roll back to") {
		t.Errorf("a rollback: %+v, %v", e, err)
	}
	if e, err = d.Deploy(t.Context(), "v3"); err != nil || e.Outcome != Deployed || e.Color != stack.Blue || env.clients[stack.Blue] != 100 {
		t.Errorf("the fixed version: %+v, %v, %v", e, err, env.clients)
	}
}

// A first deploy whose version fails while it serves may be killed anywhere: the next command
// ends it, and the version stays live.
func TestAKilledFirstDeployIsEndedByTheNextRun(t *testing.T) {
	for at := 1; ; at += 5 {
		env := newModelEnv(t)
		env.replicas, env.clients, env.invariantsOn = map[stack.Color][]stack.Replica{}, map[stack.Color]int{stack.Green: 100}, false
		env.images["v2"] = imageFaults{errors: .5}
		d := env.deployer(stateFolder(t))
		deploy := func() (HistoryEntry, error) { return d.Deploy(t.Context(), "v2") }
		_, err, died := env.runUntilKilled(at, deploy)
		if died {
			_, err = deploy()
		}
		var stuck *StuckError
		if !errors.As(err, &stuck) && !errors.Is(err, ErrAlreadyLive) || env.balancerRoute.Live != stack.Green {
			t.Errorf("killed in call %d: %v", at, err)
		}
		if j, err := d.State.Current(); j != nil || err != nil {
			t.Errorf("killed in call %d: the journal is still open: %+v, %v", at, j, err)
		}
		if history, err := d.State.History(); err != nil || len(history) != 1 || history[0].Outcome != Failed {
			t.Errorf("killed in call %d: the history is %+v, %v", at, history, err)
		}
		if !died {
			return
		}
	}
}

func TestADeployWithoutMetrics(t *testing.T) {
	env := newModelEnv(t)
	env.metricsErr = errors.New("connection refused")
	d := env.deployer(stateFolder(t))
	e, err := d.Deploy(t.Context(), "v2")
	if e.Outcome != RolledBack || err == nil || !strings.Contains(e.Reason, "no baseline without metrics") {
		t.Fatal(e, err)
	}
	d.WithoutMetrics = true
	e, err = d.Deploy(t.Context(), "v2")
	if err != nil || !strings.Contains(strings.Join(e.Notes, "\n"), "not judged") {
		t.Fatal(e, err)
	}
}

func TestADeployIsRolledBackIfTraefikDoesNotFollow(t *testing.T) {
	env := newModelEnv(t)
	env.ignoresChanges = true
	e, err := env.deployer(stateFolder(t)).Deploy(t.Context(), "v2")
	if e.Outcome != RolledBack || err == nil || !strings.Contains(e.Reason, "did not follow active.yml") || env.route.Live != stack.Blue {
		t.Fatal(e, err)
	}
}

func TestAnOperatorRollsBack(t *testing.T) {
	env := newModelEnv(t)
	d := env.deployer(stateFolder(t))
	if _, err := d.Deploy(t.Context(), "v2"); err != nil {
		t.Fatal(err)
	}
	e, err := d.Rollback(t.Context())
	if err != nil || e.Outcome != RolledBack || e.Color != stack.Blue || env.clients[stack.Blue] != 1000 || env.snapshot().CountServing(stack.Blue) != 3 {
		t.Fatal(e, err, env.clients)
	}
	// A rollback also starts an old color that was stopped since.
	if _, err = d.Deploy(t.Context(), "v2"); err != nil {
		t.Fatal(err)
	}
	env.replicas[stack.Blue] = nil
	if e, err = d.Rollback(t.Context()); err != nil || e.Outcome != RolledBack || env.snapshot().CountServing(stack.Blue) != 3 || env.snapshot().Running(stack.Blue)[0].Image.Ref != "v1" {
		t.Fatal(e, err)
	}
	env.replicas[stack.Green] = nil
	if err := os.Remove(filepath.Join(d.State.Dir, "deploys.jsonl")); err != nil {
		t.Fatal(err)
	}
	var refused *RefusedError
	if _, err = d.Rollback(t.Context()); !errors.As(err, &refused) || !strings.Contains(err.Error(), "nothing to roll back to") {
		t.Fatal(err)
	}
}

// Ctrl-C may come at any write of the state: the command stops, names the step, and
// the next command finishes the deploy.
func TestAnInterruptedDeployCanBeResumed(t *testing.T) {
	for at := 1; ; at += 7 {
		env := newModelEnv(t)
		d := env.deployer(stateFolder(t))
		ctx, cancel := context.WithCancel(t.Context())
		d.Report = func(Event) {}
		n := 0
		d.State.onWrite = func(string) {
			if n++; n == at {
				cancel()
			}
		}
		_, err := d.Deploy(ctx, "v2")
		cancel()
		if n < at {
			break // the deploy has fewer writes
		}
		var unfinished *UnfinishedError
		if err != nil && (!errors.As(err, &unfinished) || unfinished.Live == "") {
			t.Fatalf("interrupted at %d: %v", at, err)
		}
		if e, err := d.Deploy(t.Context(), "v2"); err != nil && !errors.Is(err, ErrAlreadyLive) {
			t.Fatal(e, err)
		}
		if env.balancerRoute.Live != stack.Green || env.clients[stack.Green] != 1000 {
			t.Fatal(env.balancerRoute, env.clients)
		}
	}
}

// A deploy whose command is killed anywhere, however often, ends deployed or rolled
// back when it is run again, and one color serves at each moment (checkInvariants).
func TestAKilledDeployIsFinishedByTheNextRun(t *testing.T) {
	leak := func(age time.Duration) float64 { return .2 + age.Seconds()/200 }
	images := []imageFaults{
		{}, {}, {neverReady: true}, {errors: .1}, {p95: 150 * time.Millisecond}, {memory: leak},
		{crashAfter: time.Minute}, {loses: .3}, {stale: 30 * time.Second},
	}
	root := stateFolder(t)
	rapid.Check(t, func(r *rapid.T) {
		env := newModelEnv(t)
		env.images["v2"] = rapid.SampledFrom(images).Draw(r, "image")
		dir, err := os.MkdirTemp(root, "")
		if err != nil {
			t.Fatal(err)
		}
		d := env.deployer(dir)
		d.Settings.SharePercents = rapid.SampledFrom([][]int{nil, {10}, {10, 50}}).Draw(r, "canary")
		deploys := func() (HistoryEntry, error) { return d.Deploy(t.Context(), "v2") }
		var e HistoryEntry
		died := true
		for kills := rapid.IntRange(1, 4).Draw(r, "kills"); kills > 0 && died; kills-- {
			_, err, died = env.runUntilKilled(rapid.OneOf(rapid.IntRange(0, 250), rapid.IntRange(0, 3000)).Draw(r, "calls"), deploys)
			env.now = env.now.Add(time.Duration(rapid.IntRange(0, 120).Draw(r, "later")) * time.Second)
		}
		if died {
			e, err, _ = env.runUntilKilled(-1, deploys)
		}
		checkFinalState(r, env, d, e, err)
	})
}

// checkFinalState fails unless one color serves all clients and the journal is closed.
func checkFinalState(r *rapid.T, env *modelEnv, d *Deployer, e HistoryEntry, err error) {
	var rolledBack *RolledBackError
	if err != nil && !errors.As(err, &rolledBack) && !errors.Is(err, ErrAlreadyLive) {
		r.Fatalf("%+v, %v", e, err)
	}
	live := env.balancerRoute.Live
	if env.route != env.balancerRoute || env.balancerRoute.SharePercent != 0 || env.snapshot().CountServing(live) != 3 {
		r.Fatalf("route %v, Traefik %v, %+v", env.route, env.balancerRoute, env.replicas)
	}
	if env.clients[live]+env.lostClients != 1000 {
		r.Fatalf("%v clients, %d lost", env.clients, env.lostClients)
	}
	if j, err := d.State.Current(); j != nil || err != nil {
		r.Fatalf("the journal is still open: %+v, %v", j, err)
	}
}
