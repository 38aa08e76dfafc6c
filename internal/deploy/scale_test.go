package deploy

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"switchyard/internal/stack"
)

// Remove removes replicas, which must be drained.
func (m *modelEnv) Remove(_ context.Context, c stack.Color, names []string, _ int) error {
	defer m.trackCall()()
	for _, r := range m.snapshot().Replicas[c] {
		if slices.Contains(names, r.Name) && r.Drain != "drained" {
			m.t.Fatalf("%s was removed with its clients", r.Name)
		}
	}
	m.replicas[c] = slices.DeleteFunc(m.replicas[c], func(r stack.Replica) bool { return slices.Contains(names, r.Name) })
	return nil
}

// SetServers lists replicas, which must serve: the balancer sends users to them at
// once.
func (m *modelEnv) SetServers(c stack.Color, n int) error {
	defer m.trackCall()()
	if s := m.snapshot(); s.CountServing(c) < n {
		m.t.Fatalf("%d replicas of %s are listed in the balancer, but only %d serve", n, c, s.CountServing(c))
	}
	m.listedServers = n
	return nil
}

func TestScaling(t *testing.T) {
	env := newModelEnv(t)
	d := env.deployer(stateFolder(t))
	if e, err := d.Scale(t.Context(), 5); err != nil || env.snapshot().CountServing(stack.Blue) != 5 || env.listedServers != 5 || e.Outcome != Scaled {
		t.Fatal(e, err)
	}
	if e, err := d.Scale(t.Context(), 2); err != nil || env.snapshot().CountServing(stack.Blue) != 2 || env.clients[stack.Blue] != 1000 {
		t.Fatal(e, err, env.clients)
	}
	if e, err := d.Scale(t.Context(), 2); err != nil {
		t.Fatal(e, err)
	}
	// The command is killed before the new replica is listed, and run again.
	if _, _, died := env.runUntilKilled(12, func() (HistoryEntry, error) { return d.Scale(t.Context(), 3) }); !died || env.listedServers == 3 {
		t.Fatalf("killed %v, %d servers listed", died, env.listedServers)
	}
	if e, err := d.Scale(t.Context(), 3); err != nil || env.listedServers != 3 || env.snapshot().CountServing(stack.Blue) != 3 {
		t.Fatal(e, err, env.listedServers)
	}
	// A killed docker compose up left replicas 1, 2 and 5 of 5.
	if e, err := d.Scale(t.Context(), 5); err != nil {
		t.Fatal(e, err)
	}
	env.replicas[stack.Blue] = slices.Delete(env.replicas[stack.Blue], 2, 4)
	if e, err := d.Scale(t.Context(), 4); err != nil || env.listedServers != 4 || env.snapshot().CountServing(stack.Blue) != 4 || env.clients[stack.Blue] != 1000 {
		t.Errorf("%+v, %v, %d servers listed, %+v", e, err, env.listedServers, env.replicas)
	}
	var refused *RefusedError
	if _, err := d.Scale(t.Context(), 0); !errors.As(err, &refused) || !strings.Contains(err.Error(), "1 to 100") {
		t.Error(err)
	}
}

func TestDrainingByHand(t *testing.T) {
	env := newModelEnv(t)
	d := env.deployer(stateFolder(t))
	var refused *RefusedError
	for name, says := range map[string]string{
		"blue": "no replica would be left", "green": "green does not run", "app_red-1": "neither a color nor a running replica",
	} {
		if err := d.Drain(t.Context(), name); !errors.As(err, &refused) || !strings.Contains(err.Error(), says) {
			t.Errorf("drain %s: %v", name, err)
		}
	}
	if err := d.Drain(t.Context(), "app_blue-2"); err != nil || env.snapshot().CountServing(stack.Blue) != 2 {
		t.Fatal(err)
	}
	if err := d.Undrain(t.Context(), "app_blue-2"); err != nil || env.snapshot().CountServing(stack.Blue) != 3 {
		t.Fatal(err)
	}
	if _, err := d.Deploy(t.Context(), "v2"); err != nil {
		t.Fatal(err)
	}
	// The operator switches back: first new connections only, then the others.
	if err := d.Undrain(t.Context(), "blue"); err != nil {
		t.Fatal(err)
	}
	if e, err := d.Switch(t.Context(), stack.Blue); err != nil || e.Outcome != Switched || env.balancerRoute.Live != stack.Blue || env.clients[stack.Green] != 1000 {
		t.Fatal(e, err)
	}
	if err := d.Drain(t.Context(), "green"); err != nil || env.clients[stack.Blue] != 1000 {
		t.Fatal(err, env.clients)
	}
}

// A switch that is interrupted while it waits for Traefik, or that Traefik does not follow,
// leaves a color that serves: the command is run again. An operator must act only if no color
// serves.
func TestASwitchThatDidNotComplete(t *testing.T) {
	for name, tt := range map[string]struct {
		fault func(env *modelEnv, interrupt context.CancelFunc)
		stuck bool
		says  string
	}{
		"Ctrl-C":                  {func(env *modelEnv, interrupt context.CancelFunc) { interrupt() }, false, "interrupted"},
		"Traefik keeps its route": {func(*modelEnv, context.CancelFunc) {}, false, "did not follow active.yml"},
		"the old color ends too":  {func(env *modelEnv, _ context.CancelFunc) { env.replicas[stack.Green] = nil }, true, "did not follow active.yml"},
		"Traefik is away":         {func(env *modelEnv, _ context.CancelFunc) { env.statusErr = errors.New("no answer") }, true, "no answer"},
	} {
		t.Run(name, func(t *testing.T) {
			env := newModelEnv(t)
			d := env.deployer(stateFolder(t))
			if _, err := d.Deploy(t.Context(), "v2"); err != nil {
				t.Fatal(err)
			}
			env.invariantsOn, env.ignoresChanges = false, true
			ctx, interrupt := context.WithCancel(t.Context())
			defer interrupt()
			env.onSleep = func() {
				if env.route.Live == stack.Blue { // active.yml is written
					tt.fault(env, interrupt)
				}
			}
			_, err := d.Switch(ctx, stack.Blue)
			var (
				unfinished *UnfinishedError
				stuck      *StuckError
			)
			if errors.As(err, &stuck) != tt.stuck || errors.As(err, &unfinished) == tt.stuck || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%T %v, want %q, stuck: %v", err, err, tt.says, tt.stuck)
			}
		})
	}
}

// A truncated active.yml leaves the balancer without routers. A switch writes the
// file again, and so does the rollback of a deploy in its watch.
func TestABrokenRouteIsRewritten(t *testing.T) {
	env := newModelEnv(t)
	d := env.deployer(stateFolder(t))
	broken := errors.New("active.yml is empty")
	env.routeErr = broken
	began := env.now
	if e, err := d.Switch(t.Context(), stack.Blue); err != nil || e.Color != stack.Blue || env.routeErr != nil {
		t.Errorf("%+v, %v", e, err)
	}
	if took := env.now.Sub(began); took > 10*time.Second {
		t.Errorf("the switch took %v", took)
	}
	if _, _, died := env.runUntilKilled(60, func() (HistoryEntry, error) { return d.Deploy(t.Context(), "v2") }); !died {
		t.Fatal("the deploy was not killed")
	}
	env.routeErr, began = broken, env.now
	if e, err := d.Rollback(t.Context()); err != nil || e.Outcome != RolledBack || env.route != (stack.Route{Live: stack.Blue}) || env.routeErr != nil {
		t.Errorf("%+v, %v", e, err)
	}
	if took := env.now.Sub(began); took > 30*time.Second {
		t.Errorf("the rollback took %v", took)
	}
}

func TestAnUnfinishedDeployBlocksOtherCommands(t *testing.T) {
	env := newModelEnv(t)
	d := env.deployer(stateFolder(t))
	if _, _, died := env.runUntilKilled(60, func() (HistoryEntry, error) { return d.Deploy(t.Context(), "v2") }); !died {
		t.Fatal("the deploy was not killed")
	}
	_, scale := d.Scale(t.Context(), 5)
	_, swap := d.Switch(t.Context(), stack.Green)
	_, other := d.Deploy(t.Context(), "v3")
	for _, err := range []error{scale, swap, other, d.Drain(t.Context(), "app_blue-1"), d.Undrain(t.Context(), "blue")} {
		if err == nil || !strings.Contains(err.Error(), "a deploy of v2 is unfinished") || !strings.Contains(err.Error(), "switchyard rollback") {
			t.Error(err)
		}
	}
	plan, err := d.Plan(t.Context(), "v2")
	if err != nil || plan.Unfinished == "" || !strings.Contains(plan.String(), "would continue") {
		t.Error(plan, err)
	}
	if e, err := d.Rollback(t.Context()); e.Outcome != RolledBack || env.balancerRoute.Live != stack.Blue || len(env.replicas[stack.Green]) != 0 {
		t.Error(e, err)
	}
}

func TestThePlanListsTheStepsOfADeploy(t *testing.T) {
	env := newModelEnv(t)
	d := env.deployer(stateFolder(t))
	d.Settings.SharePercents = []int{10}
	plan, err := d.Plan(t.Context(), "v2")
	if err != nil {
		t.Fatal(err)
	}
	text := plan.String()
	for _, says := range []string{"v2 (id-v2) would go to green, 3 replicas; blue is live", "1. preflight", "send 10% of new connections to green", "move all clients from blue to green"} {
		if !strings.Contains(text, says) {
			t.Errorf("the plan does not say %q:\n%s", says, text)
		}
	}
	if len(env.replicas[stack.Green]) != 0 || env.route.Live != stack.Blue {
		t.Error("the plan changed the replicas or the route")
	}
	if _, err := d.Plan(t.Context(), "unknown"); err == nil || !strings.Contains(err.Error(), "no such image") {
		t.Error(err)
	}
}
