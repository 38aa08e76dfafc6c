package deploy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Scaling adds single replicas to what the balancer knows, and takes them away.
type Scaling interface {
	// List has the balancer know the replicas numbered 1 to n.
	List(ctx context.Context, c Color, n int) error
	// Remove stops and removes replicas, so that those numbered 1 to left stay.
	Remove(ctx context.Context, c Color, replicas []string, left int) error
}

// Scale brings the live color to n replicas: new ones are waited for, and those
// that go let go of their clients first.
func (m *Machine) Scale(ctx context.Context, scaling Scaling, n int) (Entry, error) {
	if n < 1 || n > 100 {
		return Entry{}, &RefusedError{fmt.Errorf("replicas must be 1 to 100, not %d", n)}
	}
	if err := m.idle(); err != nil {
		return Entry{}, err
	}
	began := m.World.Clock.Now().UTC()
	route, err := m.World.Traffic.Route(ctx)
	if err != nil {
		return Entry{}, &RefusedError{err}
	}
	s, err := m.World.Containers.Look(ctx)
	if err != nil {
		return Entry{}, &RefusedError{err}
	}
	l := launchOf(route.Live, s)
	if l.Replicas == 0 {
		return Entry{}, &RefusedError{fmt.Errorf("%s is live and does not run: `switchyard deploy` starts a version", route.Live)}
	}
	before := l.Replicas
	var gone []string
	for _, r := range s.Of(route.Live) {
		if r.Number > n {
			gone = append(gone, r.Name)
		}
	}
	if len(gone) > 0 {
		err = m.shrink(ctx, scaling, route.Live, gone, n)
	} else {
		l.Replicas = n
		err = m.grow(ctx, scaling, l, before)
	}
	if err != nil {
		return Entry{}, &UnfinishedError{Step: "scale", Live: route.Live, Err: err, Next: fmt.Sprintf("`switchyard scale %d` goes on, `switchyard scale %d` takes it back", n, before)}
	}
	e := Entry{
		ID: began.Format("20060102T150405Z") + "-scale", Outcome: Scaled, Color: route.Live, Image: l.Image, Started: began, Ended: m.World.Clock.Now().UTC(),
		Notes: []string{fmt.Sprintf("from %d to %d replicas", before, n)},
	}
	return e, m.State.append(e)
}

// grow starts what is missing. The balancer hears of a replica once it serves: it
// takes a new one for up until it has asked, and users would be sent to nobody. A
// command that was killed may have come as far as that.
func (m *Machine) grow(ctx context.Context, scaling Scaling, l Launch, before int) error {
	if l.Replicas > before {
		m.say("scale", "begin", "%s from %d to %d replicas", l.Color, before, l.Replicas)
		if err := m.World.Containers.Start(ctx, l); err != nil {
			return err
		}
	}
	j := &Journal{ID: l.Deployment, To: l.Color, Replicas: l.Replicas}
	if err := m.ready(ctx, j, false); err != nil {
		return err
	}
	if err := scaling.List(ctx, l.Color, l.Replicas); err != nil {
		return err
	}
	return m.ready(ctx, j, true)
}

// shrink moves the clients of the replicas that go, and takes those away.
func (m *Machine) shrink(ctx context.Context, scaling Scaling, c Color, gone []string, left int) error {
	m.say("scale", "begin", "%s go, their clients first", strings.Join(gone, ", "))
	if err := m.drained(ctx, "scale", c, gone, "node"); err != nil {
		return err
	}
	return scaling.Remove(ctx, c, gone, left)
}

// drained drains replicas and waits until they are empty.
func (m *Machine) drained(ctx context.Context, step string, c Color, replicas []string, scope string) error {
	limit := m.World.Clock.Now().Add(m.Settings.DrainLimit)
	for told := -1; ; {
		s, err := m.look(ctx)
		if err != nil {
			return err
		}
		var begin, busy []string
		clients := 0
		for _, r := range s.Of(c) {
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
		if clients != told {
			told = clients
			m.say(step, "note", "%d clients are left", clients)
		}
		if m.World.Clock.Now().After(limit) {
			return fmt.Errorf("%s was not empty after %v", strings.Join(busy, ", "), m.Settings.DrainLimit)
		}
		if len(begin) > 0 {
			if err := m.World.Clients.Drain(ctx, begin, scope, step); err != nil {
				return err
			}
		}
		if err := m.World.Clock.Sleep(ctx, min(m.Settings.ProbeEvery, time.Second)); err != nil {
			return err
		}
	}
}

// which finds what a person named: a color, or one replica of it.
func which(s Sight, name string) (c Color, replicas []string, err error) {
	if c, err := ParseColor(name); err == nil {
		all := s.names(c, func(Replica) bool { return true })
		if len(all) == 0 {
			err = fmt.Errorf("%s does not run", c)
		}
		return c, all, err
	}
	for _, c := range Colors {
		if all := s.names(c, func(r Replica) bool { return r.Name == name }); len(all) == 1 {
			return c, all, nil
		}
	}
	return "", nil, fmt.Errorf("%q is no color and no replica that runs: `switchyard status` shows them", name)
}

// Drain moves the clients of an idle color, or of one replica, away, and
// returns when it is empty. Nobody who is needed is drained.
func (m *Machine) Drain(ctx context.Context, name string) error {
	if err := m.idle(); err != nil {
		return err
	}
	s, err := m.World.Containers.Look(ctx)
	if err != nil {
		return &RefusedError{err}
	}
	route, err := m.World.Traffic.Route(ctx)
	if err != nil {
		return &RefusedError{err}
	}
	c, replicas, err := which(s, name)
	if err != nil {
		return &RefusedError{err}
	}
	rest := s.names(route.Live, func(r Replica) bool { return r.Serves() && !slices.Contains(replicas, r.Name) })
	if len(rest) == 0 {
		return &RefusedError{fmt.Errorf("nobody would be left to take the clients: %s is live", route.Live)}
	}
	scope := "node"
	if len(replicas) == len(s.Of(c)) && c != route.Live {
		scope = "deployment"
	}
	if err := m.drained(ctx, "drain", c, replicas, scope); err != nil {
		if ctx.Err() != nil {
			err = errors.Join(ctx.Err(), errors.New("the drain goes on by itself; `switchyard undrain` takes it back"))
		}
		return err
	}
	return nil
}

// Undrain lets clients in again.
func (m *Machine) Undrain(ctx context.Context, name string) error {
	if err := m.idle(); err != nil {
		return err
	}
	s, err := m.World.Containers.Look(ctx)
	if err != nil {
		return &RefusedError{err}
	}
	_, replicas, err := which(s, name)
	if err != nil {
		return &RefusedError{err}
	}
	return m.World.Clients.Undrain(ctx, replicas)
}
