package deploy

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"switchyard/internal/stack"
)

// A rollback that was interrupted is continued by the next command, even if the new
// version looks healthy by then.
func TestAKilledRollbackIsContinued(t *testing.T) {
	env := newModelEnv(t)
	env.images["v2"] = imageFaults{errors: .1}
	d := env.deployer(stateFolder(t))
	d.Report = func(e Event) {
		if e.Kind == "warn" && env.callsUntilKill < 0 {
			env.callsUntilKill = 3 // within the first part of the rollback
		}
	}
	deploy := func() (HistoryEntry, error) { return d.Deploy(t.Context(), "v2") }
	if _, _, died := env.runUntilKilled(-1, deploy); !died {
		t.Fatal("the rollback was not killed")
	}
	env.images["v2"], d.Report = imageFaults{}, nil
	e, err := d.Deploy(t.Context(), "v2")
	var rolledBack *RolledBackError
	if !errors.As(err, &rolledBack) || e.Outcome != RolledBack || e.Trigger != TriggerErrors || env.balancerRoute.Live != stack.Blue {
		t.Errorf("%+v, %v; live %s", e, err, env.balancerRoute.Live)
	}
}

// A Docker that is busy for a moment does not end a rollback with the bad version live: the old
// color is started again, and so is a replica of it that ends meanwhile. The same warning is
// shown once.
func TestARollbackStartsTheOldColorUntilItRuns(t *testing.T) {
	env := newModelEnv(t)
	d := env.deployer(stateFolder(t))
	if _, err := d.Deploy(t.Context(), "v2"); err != nil {
		t.Fatal(err)
	}
	env.replicas[stack.Blue], env.startFails = nil, 3
	warnings := map[string]int{}
	ended := false
	d.Report = func(e Event) {
		if e.Kind == "warn" {
			warnings[e.Text]++
		}
	}
	sleeps := 0
	env.onSleep = func() {
		if sleeps++; !ended && len(env.replicas[stack.Blue]) == 3 {
			ended = true
			env.replicas[stack.Blue] = env.replicas[stack.Blue][:2]
			env.drainStartedAt["app_blue-1"], env.undrainFails = env.now, 3
		}
	}
	e, err := d.Rollback(t.Context())
	if err != nil || e.Outcome != RolledBack || env.snapshot().CountServing(stack.Blue) != 3 || !ended {
		t.Errorf("%+v, %v, ended: %v, %+v", e, err, ended, env.replicas)
	}
	if want := map[string]int{"the engine is busy": 1, "no answer": 1}; !maps.Equal(warnings, want) {
		t.Errorf("warnings %v, want %v", warnings, want)
	}
	if took := e.RecoverySeconds; took > 60 {
		t.Errorf("the old color served again after %v s", took)
	}
}

// A rollback that can't proceed names the component that is at fault.
func TestARollbackThatIsStuckNamesTheFault(t *testing.T) {
	for name, tt := range map[string]struct {
		fault func(env *modelEnv)
		says  []string
	}{
		"Traefik is away":     {func(env *modelEnv) { env.statusErr = errors.New("Traefik does not answer") }, []string{"3 of 3 replicas of blue", "0 of them according to Traefik", "Traefik does not answer"}},
		"nothing gets ready":  {func(env *modelEnv) { env.oldFaults.neverReady = true }, []string{"0 of 3 replicas of blue", "0 of them according to Traefik"}},
		"Docker never starts": {func(env *modelEnv) { env.replicas[stack.Blue], env.startFails = nil, 1000 }, []string{"0 of 3 replicas of blue", "the engine is busy"}},
	} {
		env := newModelEnv(t)
		d := env.deployer(stateFolder(t))
		if _, err := d.Deploy(t.Context(), "v2"); err != nil {
			t.Fatal(err)
		}
		tt.fault(env)
		var stuck *StuckError
		_, err := d.Rollback(t.Context())
		if !errors.As(err, &stuck) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, s := range tt.says {
			if !strings.Contains(err.Error(), s) {
				t.Errorf("%s: %v, want %q", name, err, s)
			}
		}
	}
}

// A command may be killed at any point of the end of a deploy: after the next
// command the history has the deploy once.
func TestAKilledCommandStillWritesTheHistory(t *testing.T) {
	for _, point := range []string{"finish", "appended", "finished"} {
		env := newModelEnv(t)
		d := env.deployer(stateFolder(t))
		d.State.onWrite = func(op string) {
			if op == point {
				panic(commandKilled{})
			}
		}
		deploy := func() (HistoryEntry, error) { return d.Deploy(t.Context(), "v2") }
		if _, _, died := env.runUntilKilled(-1, deploy); !died {
			t.Fatalf("%s: the deploy was not killed", point)
		}
		d.State.onWrite = nil
		if e, err := deploy(); err != nil && !errors.Is(err, ErrAlreadyLive) {
			t.Errorf("%s: %+v, %v", point, e, err)
		}
		history, err := d.State.History()
		if err != nil || len(history) != 1 || history[0].Outcome != Deployed {
			t.Errorf("%s: the history is %+v, %v", point, history, err)
		}
		if j, err := d.State.Current(); j != nil || err != nil {
			t.Errorf("%s: the journal is still open: %+v, %v", point, j, err)
		}
	}
}

// The last three images of past deploys stay on the host, and older ones are removed.
func TestOldImagesAreRemoved(t *testing.T) {
	env := newModelEnv(t)
	d := env.deployer(stateFolder(t))
	for _, image := range []string{"v2", "v3", "v4", "v5", "v6"} {
		env.images[image] = imageFaults{}
		if e, err := d.Deploy(t.Context(), image); err != nil {
			t.Fatal(e, err)
		}
	}
	// The deploy of v5 keeps v5, v4 and v3; that of v6 keeps v6, v5 and v4.
	if want := []string{"v2", "v3", "v2"}; !slices.Equal(env.pruned, want) {
		t.Errorf("removed %v, want %v", env.pruned, want)
	}
}

// A first deploy has no old version, which therefore takes no image's place.
func TestAFirstDeployKeepsAsManyImages(t *testing.T) {
	env := newModelEnv(t)
	d := env.deployer(stateFolder(t))
	for _, image := range []string{"v1", "v2", "v3"} {
		e := HistoryEntry{ID: image, Outcome: Deployed, Image: stack.Image{Ref: image, ID: "id-" + image}}
		if err := d.State.appendHistory(e); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.prune(t.Context(), &Journal{Image: stack.Image{Ref: "v4", ID: "id-v4"}}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"v1"}; !slices.Equal(env.pruned, want) {
		t.Errorf("removed %v, want %v", env.pruned, want)
	}
}
