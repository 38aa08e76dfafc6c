package deploy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Scaler adds single replicas to what the balancer knows, and takes them away.
type Scaler interface {
	// SetServers has the balancer know the replicas numbered 1 to n.
	SetServers(ctx context.Context, c Color, n int) error
	// Remove stops and removes replicas, so that those numbered 1 to left stay.
	Remove(ctx context.Context, c Color, replicas []string, remaining int) error
}

// Scale brings the live color to n replicas: new ones are waited for, and those
// that go let go of their clients first.
func (m *Deployer) Scale(ctx context.Context, scaler Scaler, n int) (HistoryEntry, error) {
	if n < 1 || n > 100 {
		return HistoryEntry{}, &RefusedError{fmt.Errorf("replicas must be 1 to 100, not %d", n)}
	}
	if err := m.requireNoDeploy(); err != nil {
		return HistoryEntry{}, err
	}
	began := m.Deps.Clock.Now().UTC()
	route, err := m.Deps.Traffic.Route(ctx)
	if err != nil {
		return HistoryEntry{}, &RefusedError{err}
	}
	s, err := m.Deps.Containers.Inspect(ctx)
	if err != nil {
		return HistoryEntry{}, &RefusedError{err}
	}
	l := currentSpec(route.Live, s)
	if l.Replicas == 0 {
		return HistoryEntry{}, &RefusedError{fmt.Errorf("%s is live and does not run: `switchyard deploy` starts a version", route.Live)}
	}
	before := l.Replicas
	var surplus []string
	for _, r := range s.Running(route.Live) {
		if r.Number > n {
			surplus = append(surplus, r.Name)
		}
	}
	if len(surplus) > 0 {
		err = m.shrink(ctx, scaler, route.Live, surplus, n)
	} else {
		l.Replicas = n
		err = m.grow(ctx, scaler, l, before)
	}
	if err != nil {
		return HistoryEntry{}, &UnfinishedError{Step: "scale", Live: route.Live, Err: err, Next: fmt.Sprintf("`switchyard scale %d` goes on, `switchyard scale %d` takes it back", n, before)}
	}
	e := HistoryEntry{
		ID: began.Format("20060102T150405Z") + "-scale", Outcome: Scaled, Color: route.Live, Image: l.Image, Started: began, Ended: m.Deps.Clock.Now().UTC(),
		Notes: []string{fmt.Sprintf("from %d to %d replicas", before, n)},
	}
	return e, m.State.appendHistory(e)
}

// grow starts what is missing. The balancer hears of a replica once it serves: it
// takes a new one for up until it has asked, and users would be sent to nobody. A
// command that was killed may have come as far as that.
func (m *Deployer) grow(ctx context.Context, scaler Scaler, l ColorSpec, before int) error {
	if l.Replicas > before {
		m.report("scale", "begin", "%s from %d to %d replicas", l.Color, before, l.Replicas)
		if err := m.Deps.Containers.Start(ctx, l); err != nil {
			return err
		}
	}
	j := &Journal{ID: l.Deployment, To: l.Color, Replicas: l.Replicas}
	if err := m.waitReady(ctx, j, false); err != nil {
		return err
	}
	if err := scaler.SetServers(ctx, l.Color, l.Replicas); err != nil {
		return err
	}
	return m.waitReady(ctx, j, true)
}

// shrink moves the clients of the replicas that go, and takes those away.
func (m *Deployer) shrink(ctx context.Context, scaler Scaler, c Color, surplus []string, remaining int) error {
	m.report("scale", "begin", "%s go, their clients first", strings.Join(surplus, ", "))
	if err := m.drainAndWait(ctx, "scale", c, surplus, "node"); err != nil {
		return err
	}
	return scaler.Remove(ctx, c, surplus, remaining)
}

// drainAndWait drains replicas and waits until they are empty.
func (m *Deployer) drainAndWait(ctx context.Context, step string, c Color, replicas []string, scope string) error {
	limit := m.Deps.Clock.Now().Add(m.Settings.DrainLimit)
	for lastReported := -1; ; {
		s, err := m.inspect(ctx)
		if err != nil {
			return err
		}
		var begin, busy []string
		clients := 0
		for _, r := range s.Running(c) {
			if !slices.Contains(replicas, r.Name) || r.Drain == "drained" {
				continue
			}
			busy = append(busy, r.Name)
			clients += r.Clients
			if r.Drain == "" {
				begin = append(begin, r.Name)
			}
		}
		if len(busy) == 0 {
			return nil
		}
		if clients != lastReported {
			lastReported = clients
			m.report(step, "note", "%d clients are left", clients)
		}
		if m.Deps.Clock.Now().After(limit) {
			return fmt.Errorf("%s was not empty after %v", strings.Join(busy, ", "), m.Settings.DrainLimit)
		}
		if len(begin) > 0 {
			if err := m.Deps.Clients.Drain(ctx, begin, scope, step); err != nil {
				return err
			}
		}
		if err := m.Deps.Clock.Sleep(ctx, min(m.Settings.ProbeEvery, time.Second)); err != nil {
			return err
		}
	}
}

// findReplicas finds what a person named: a color, or one replica of it.
func findReplicas(s Snapshot, name string) (c Color, replicas []string, err error) {
	if c, err := ParseColor(name); err == nil {
		all := s.runningNames(c, func(Replica) bool { return true })
		if len(all) == 0 {
			err = fmt.Errorf("%s does not run", c)
		}
		return c, all, err
	}
	for _, c := range Colors {
		if all := s.runningNames(c, func(r Replica) bool { return r.Name == name }); len(all) == 1 {
			return c, all, nil
		}
	}
	return "", nil, fmt.Errorf("%q is no color and no replica that runs: `switchyard status` shows them", name)
}

// Drain moves the clients of an idle color, or of one replica, away, and
// returns when it is empty. Nobody who is needed is drained.
func (m *Deployer) Drain(ctx context.Context, name string) error {
	if err := m.requireNoDeploy(); err != nil {
		return err
	}
	s, err := m.Deps.Containers.Inspect(ctx)
	if err != nil {
		return &RefusedError{err}
	}
	route, err := m.Deps.Traffic.Route(ctx)
	if err != nil {
		return &RefusedError{err}
	}
	c, replicas, err := findReplicas(s, name)
	if err != nil {
		return &RefusedError{err}
	}
	rest := s.runningNames(route.Live, func(r Replica) bool { return r.Serves() && !slices.Contains(replicas, r.Name) })
	if len(rest) == 0 {
		return &RefusedError{fmt.Errorf("nobody would be left to take the clients: %s is live", route.Live)}
	}
	scope := "node"
	if len(replicas) == len(s.Running(c)) && c != route.Live {
		scope = "deployment"
	}
	if err := m.drainAndWait(ctx, "drain", c, replicas, scope); err != nil {
		if ctx.Err() != nil {
			err = errors.Join(ctx.Err(), errors.New("the drain goes on by itself; `switchyard undrain` takes it back"))
		}
		return err
	}
	return nil
}

// Undrain lets clients in again.
func (m *Deployer) Undrain(ctx context.Context, name string) error {
	if err := m.requireNoDeploy(); err != nil {
		return err
	}
	s, err := m.Deps.Containers.Inspect(ctx)
	if err != nil {
		return &RefusedError{err}
	}
	_, replicas, err := findReplicas(s, name)
	if err != nil {
		return &RefusedError{err}
	}
	return m.Deps.Clients.Undrain(ctx, replicas)
}
