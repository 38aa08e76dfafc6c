package deploy

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// Remove takes replicas away, which must be empty.
func (m *modelEnv) Remove(_ context.Context, c Color, names []string, _ int) error {
	defer m.trackCall()()
	for _, r := range m.snapshot().Replicas[c] {
		if slices.Contains(names, r.Name) && r.Drain != "drained" {
			m.t.Fatalf("%s was removed with its clients", r.Name)
		}
	}
	m.replicas[c] = slices.DeleteFunc(m.replicas[c], func(r Replica) bool { return slices.Contains(names, r.Name) })
	return nil
}

// SetServers has the balancer know replicas: users are sent to them at once.
func (m *modelEnv) SetServers(_ context.Context, c Color, n int) error {
	defer m.trackCall()()
	if s := m.snapshot(); s.countServing(c) < n {
		m.t.Fatalf("%d replicas of %s are listed, and %d serve", n, c, s.countServing(c))
	}
	m.listedServers = n
	return nil
}

func TestScaling(t *testing.T) {
	w := newModelEnv(t)
	m := w.deployer(stateFolder(t))
	if e, err := m.Scale(t.Context(), w, 5); err != nil || w.snapshot().countServing(Blue) != 5 || w.listedServers != 5 || e.Outcome != Scaled {
		t.Fatal(e, err)
	}
	if e, err := m.Scale(t.Context(), w, 2); err != nil || w.snapshot().countServing(Blue) != 2 || w.clients[Blue] != 1000 {
		t.Fatal(e, err, w.clients)
	}
	if e, err := m.Scale(t.Context(), w, 2); err != nil {
		t.Fatal(e, err)
	}
	// Killed before the balancer knew of the new one, and run again.
	if _, _, died := w.runUntilKilled(12, func() (HistoryEntry, error) { return m.Scale(t.Context(), w, 3) }); !died || w.listedServers == 3 {
		t.Fatalf("died %v, listed %d", died, w.listedServers)
	}
	if e, err := m.Scale(t.Context(), w, 3); err != nil || w.listedServers != 3 || w.snapshot().countServing(Blue) != 3 {
		t.Fatal(e, err, w.listedServers)
	}
	var refused *RefusedError
	if _, err := m.Scale(t.Context(), w, 0); !errors.As(err, &refused) || !strings.Contains(err.Error(), "1 to 100") {
		t.Error(err)
	}
}

func TestDrainingByHand(t *testing.T) {
	w := newModelEnv(t)
	m := w.deployer(stateFolder(t))
	var refused *RefusedError
	for name, says := range map[string]string{
		"blue": "nobody would be left", "green": "green does not run", "app_red-1": "no color and no replica",
	} {
		if err := m.Drain(t.Context(), name); !errors.As(err, &refused) || !strings.Contains(err.Error(), says) {
			t.Errorf("drain %s: %v", name, err)
		}
	}
	if err := m.Drain(t.Context(), "app_blue-2"); err != nil || w.snapshot().countServing(Blue) != 2 {
		t.Fatal(err)
	}
	if err := m.Undrain(t.Context(), "app_blue-2"); err != nil || w.snapshot().countServing(Blue) != 3 {
		t.Fatal(err)
	}
	if _, err := m.Deploy(t.Context(), "v2"); err != nil {
		t.Fatal(err)
	}
	// Switched back by hand: new connections only, then the rest.
	if err := m.Undrain(t.Context(), "blue"); err != nil {
		t.Fatal(err)
	}
	if e, err := m.Switch(t.Context(), Blue); err != nil || e.Outcome != Switched || w.balancerRoute.Live != Blue || w.clients[Green] != 1000 {
		t.Fatal(e, err)
	}
	if err := m.Drain(t.Context(), "green"); err != nil || w.clients[Blue] != 1000 {
		t.Fatal(err, w.clients)
	}
}

// A half-written active.yml leaves the balancer without routers: a switch writes it
// anew, and so does the way back of a deploy that is in its watch.
func TestABrokenRouteIsRewritten(t *testing.T) {
	w := newModelEnv(t)
	m := w.deployer(stateFolder(t))
	w.routeErr = ErrRoute
	began := w.now
	if e, err := m.Switch(t.Context(), Blue); err != nil || e.Color != Blue || w.routeErr != nil {
		t.Errorf("%+v, %v", e, err)
	}
	if took := w.now.Sub(began); took > 10*time.Second {
		t.Errorf("it waited for %v", took)
	}
	if _, _, died := w.runUntilKilled(60, func() (HistoryEntry, error) { return m.Deploy(t.Context(), "v2") }); !died {
		t.Fatal("it was not killed")
	}
	w.routeErr, began = ErrRoute, w.now
	if e, err := m.Rollback(t.Context()); err != nil || e.Outcome != RolledBack || w.route != (Route{Live: Blue}) || w.routeErr != nil {
		t.Errorf("%+v, %v", e, err)
	}
	if took := w.now.Sub(began); took > 30*time.Second {
		t.Errorf("the way back waited for %v", took)
	}
}

// What people do by hand does not come in a deploy's way.
func TestAnUnfinishedDeployBlocksOtherCommands(t *testing.T) {
	w := newModelEnv(t)
	m := w.deployer(stateFolder(t))
	if _, _, died := w.runUntilKilled(60, func() (HistoryEntry, error) { return m.Deploy(t.Context(), "v2") }); !died {
		t.Fatal("it was not killed")
	}
	_, scale := m.Scale(t.Context(), w, 5)
	_, swap := m.Switch(t.Context(), Green)
	_, other := m.Deploy(t.Context(), "v3")
	for _, err := range []error{scale, swap, other, m.Drain(t.Context(), "app_blue-1"), m.Undrain(t.Context(), "blue")} {
		if err == nil || !strings.Contains(err.Error(), "a deploy of v2 is unfinished") || !strings.Contains(err.Error(), "switchyard rollback") {
			t.Error(err)
		}
	}
	plan, err := m.Plan(t.Context(), "v2")
	if err != nil || plan.Unfinished == "" || !strings.Contains(plan.String(), "go on with") {
		t.Error(plan, err)
	}
	if e, err := m.Rollback(t.Context()); e.Outcome != RolledBack || w.balancerRoute.Live != Blue || len(w.replicas[Green]) != 0 {
		t.Error(e, err)
	}
}

func TestThePlanListsTheStepsOfADeploy(t *testing.T) {
	w := newModelEnv(t)
	m := w.deployer(stateFolder(t))
	m.Settings.CanaryPercents = []int{10}
	plan, err := m.Plan(t.Context(), "v2")
	if err != nil {
		t.Fatal(err)
	}
	text := plan.String()
	for _, says := range []string{"v2 (id-v2) would go to green, 3 replicas; blue is live", "1. preflight", "send 10 % of new connections to green", "move everybody from blue to green"} {
		if !strings.Contains(text, says) {
			t.Errorf("the plan does not say %q:\n%s", says, text)
		}
	}
	if len(w.replicas[Green]) != 0 || w.route.Live != Blue {
		t.Error("a plan did something")
	}
	if _, err := m.Plan(t.Context(), "unknown"); err == nil || !strings.Contains(err.Error(), "no such image") {
		t.Error(err)
	}
}
