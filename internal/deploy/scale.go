package deploy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"switchyard/internal/stack"
)

// Scale gives the live color n replicas. It waits until new replicas serve, and
// drains replicas before it removes them.
func (d *Deployer) Scale(ctx context.Context, n int) (HistoryEntry, error) {
	if n < 1 || n > 100 {
		return HistoryEntry{}, &RefusedError{fmt.Errorf("replicas must be 1 to 100, not %d", n)}
	}
	if err := d.requireNoDeploy(); err != nil {
		return HistoryEntry{}, err
	}
	began := d.Deps.Clock.Now().UTC()
	route, err := d.Deps.Traffic.Route(ctx)
	if err != nil {
		return HistoryEntry{}, &RefusedError{err}
	}
	s, err := d.Deps.Containers.Inspect(ctx)
	if err != nil {
		return HistoryEntry{}, &RefusedError{err}
	}
	l := s.Spec(route.Live)
	if l.Replicas == 0 {
		return HistoryEntry{}, &RefusedError{fmt.Errorf("%s is live and does not run: `switchyard deploy` starts a version", route.Live)}
	}
	before := l.Replicas
	var surplus []string
	kept, highest := 0, 0 // of the other replicas: how many, and the highest number
	for _, r := range s.Running(route.Live) {
		if r.Number > n {
			surplus = append(surplus, r.Name)
		} else {
			kept, highest = kept+1, max(highest, r.Number)
		}
	}
	if len(surplus) > 0 {
		err = d.shrink(ctx, route.Live, surplus, highest)
	}
	if err == nil && (len(surplus) == 0 || kept < n) { // a killed command may have left few replicas with high numbers
		l.Replicas = n
		err = d.grow(ctx, l, kept)
	}
	if err != nil {
		return HistoryEntry{}, &UnfinishedError{Step: "scale", Live: route.Live, Err: err, Next: fmt.Sprintf("`switchyard scale %d` continues, `switchyard scale %d` undoes it", n, before)}
	}
	e := HistoryEntry{
		ID: began.Format("20060102T150405Z") + "-scale", Outcome: Scaled, Color: route.Live, Image: l.Image, Started: began, Ended: d.Deps.Clock.Now().UTC(),
		Notes: []string{fmt.Sprintf("from %d to %d replicas", before, n)},
	}
	return e, d.State.appendHistory(e)
}

// grow starts the missing replicas, and adds them to the balancer once they serve:
// the balancer assumes that a new server is up until its first health check, and
// would send users to a replica that is not ready. A killed command may have started the
// replicas already.
func (d *Deployer) grow(ctx context.Context, spec stack.ColorSpec, before int) error {
	if spec.Replicas > before {
		d.report("scale", "begin", "%s from %d to %d replicas", spec.Color, before, spec.Replicas)
		if err := d.Deps.Containers.Start(ctx, spec); err != nil {
			return err
		}
	}
	if err := d.waitReady(ctx, spec, false); err != nil {
		return err
	}
	if err := d.Deps.Traffic.SetServers(spec.Color, spec.Replicas); err != nil {
		return err
	}
	return d.waitReady(ctx, spec, true)
}

// shrink drains the surplus replicas and removes them.
func (d *Deployer) shrink(ctx context.Context, c stack.Color, surplus []string, remaining int) error {
	d.report("scale", "begin", "drain and remove %s", strings.Join(surplus, ", "))
	if err := d.drainAndWait(ctx, "scale", c, surplus, "node"); err != nil {
		return err
	}
	return d.Deps.Containers.Remove(ctx, c, surplus, remaining)
}

// drainAndWait drains replicas and waits until they are drained, for at most
// DrainLimit.
func (d *Deployer) drainAndWait(ctx context.Context, step string, c stack.Color, replicas []string, scope string) error {
	limit := d.Deps.Clock.Now().Add(d.Settings.DrainLimit)
	for lastReported := -1; ; {
		s, err := d.inspect(ctx)
		if err != nil {
			return err
		}
		var undrained, busy []string
		clients := 0
		for _, r := range s.Running(c) {
			if !slices.Contains(replicas, r.Name) || r.Drain == "drained" {
				continue
			}
			busy = append(busy, r.Name)
			clients += r.Clients
			if r.Drain == "" {
				undrained = append(undrained, r.Name)
			}
		}
		if len(busy) == 0 {
			return nil
		}
		if clients != lastReported {
			lastReported = clients
			d.report(step, "note", "%d clients are left", clients)
		}
		if d.Deps.Clock.Now().After(limit) {
			return fmt.Errorf("%s was not drained after %v", strings.Join(busy, ", "), d.Settings.DrainLimit)
		}
		if len(undrained) > 0 {
			if err := d.Deps.Clients.Drain(ctx, undrained, scope, step); err != nil {
				return err
			}
		}
		if err := d.Deps.Clock.Sleep(ctx, min(d.Settings.ProbeEvery, time.Second)); err != nil {
			return err
		}
	}
}

// findReplicas returns all running replicas of the color with this name, or the one running
// replica with this name.
func findReplicas(s stack.Snapshot, name string) (c stack.Color, replicas []string, err error) {
	if c, err := stack.ParseColor(name); err == nil {
		all := s.RunningNames(c, func(stack.Replica) bool { return true })
		if len(all) == 0 {
			err = fmt.Errorf("%s does not run", c)
		}
		return c, all, err
	}
	for _, c := range stack.Colors {
		if all := s.RunningNames(c, func(r stack.Replica) bool { return r.Name == name }); len(all) == 1 {
			return c, all, nil
		}
	}
	return "", nil, fmt.Errorf("%q is neither a color nor a running replica: `switchyard status` shows them", name)
}

// Drain drains an idle color, or one replica, and returns when it is drained. It
// refuses to drain the last replicas that serve.
func (d *Deployer) Drain(ctx context.Context, name string) error {
	if err := d.requireNoDeploy(); err != nil {
		return err
	}
	s, err := d.Deps.Containers.Inspect(ctx)
	if err != nil {
		return &RefusedError{err}
	}
	route, err := d.Deps.Traffic.Route(ctx)
	if err != nil {
		return &RefusedError{err}
	}
	c, replicas, err := findReplicas(s, name)
	if err != nil {
		return &RefusedError{err}
	}
	rest := s.RunningNames(route.Live, func(r stack.Replica) bool { return r.Serves() && !slices.Contains(replicas, r.Name) })
	if len(rest) == 0 {
		return &RefusedError{fmt.Errorf("no replica would be left to take the clients: %s is live", route.Live)}
	}
	scope := "node"
	if len(replicas) == len(s.Running(c)) && c != route.Live {
		scope = "deployment"
	}
	if err := d.drainAndWait(ctx, "drain", c, replicas, scope); err != nil {
		if ctx.Err() != nil {
			err = errors.Join(ctx.Err(), errors.New("the drain continues in the background; `switchyard undrain` cancels it"))
		}
		return err
	}
	return nil
}

// Undrain lets a color or a replica take clients again.
func (d *Deployer) Undrain(ctx context.Context, name string) error {
	if err := d.requireNoDeploy(); err != nil {
		return err
	}
	s, err := d.Deps.Containers.Inspect(ctx)
	if err != nil {
		return &RefusedError{err}
	}
	_, replicas, err := findReplicas(s, name)
	if err != nil {
		return &RefusedError{err}
	}
	return d.Deps.Clients.Undrain(ctx, replicas)
}
