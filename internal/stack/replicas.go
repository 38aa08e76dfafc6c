package stack

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Replicas are the replicas of both colors on this host. Each call is idempotent: a
// command that was killed in a call is followed by another command that makes it again.
type Replicas struct {
	Stack *Stack
	// Traefik has the lists of servers.
	Traefik *Traefik
}

// Inspect lists the replicas of both colors and queries the health of each.
func (r *Replicas) Inspect(ctx context.Context) (Snapshot, error) {
	all, err := r.Stack.containers(ctx)
	if err != nil {
		return Snapshot{}, err
	}
	s := Snapshot{At: time.Now(), Replicas: map[Color][]Replica{}}
	for _, c := range all {
		for _, color := range Colors {
			if c.Service == color.ComposeService() {
				s.Replicas[color] = append(s.Replicas[color], c.replica())
			}
		}
	}
	var wg sync.WaitGroup
	for _, color := range Colors {
		replicas := s.Replicas[color]
		slices.SortFunc(replicas, func(a, b Replica) int { return a.Number - b.Number })
		for i := range replicas {
			if one := &replicas[i]; one.Running && one.Address != "" {
				wg.Go(func() { one.Health, one.Version = queryReplica(ctx, r.Stack.Client, one.Address) })
			}
		}
	}
	wg.Wait()
	return s, ctx.Err()
}

// Start makes a color match its spec: Traefik's list of servers, .env, containers.
// It does not touch replicas that already run the deployment, whatever else
// changed in the files, since that would disconnect their clients. It leaves the
// list of servers of the live color alone: a caller adds new replicas once they
// serve.
func (r *Replicas) Start(ctx context.Context, spec ColorSpec) error {
	if route, err := r.Traefik.Route(ctx); err != nil || route.Live != spec.Color {
		if err := r.Traefik.SetServers(spec.Color, spec.Replicas); err != nil {
			return err
		}
	}
	ref, err := (Images{r.Stack}).pinnedRef(ctx, spec.Image)
	if err != nil {
		return err
	}
	written := spec
	written.Image.Ref = ref
	if err := writeColorEnv(r.Stack.Dir, written); err != nil {
		return err
	}
	s, err := r.Inspect(ctx)
	if err != nil {
		return err
	}
	wrong := slices.ContainsFunc(s.Replicas[spec.Color], func(one Replica) bool {
		return one.Deployment != spec.Deployment || one.Image.ID != spec.Image.ID
	})
	if wrong {
		if _, err := r.Stack.Compose(ctx, StartLimit, nil, "rm", "-s", "-f", spec.Color.ComposeService()); err != nil {
			return fmt.Errorf("remove what ran on %s: %w", spec.Color, err)
		}
	} else if names := staleReplicas(s.Replicas[spec.Color]); len(names) > 0 {
		if _, err := r.Stack.Docker(ctx, StartLimit, append([]string{"rm", "-f"}, names...)...); err != nil {
			return fmt.Errorf("remove stale replicas of %s: %w", spec.Color, err)
		}
	}
	if _, err := r.Stack.Compose(ctx, StartLimit, nil, "up", "-d", "--no-deps", "--no-build", "--no-recreate", spec.Color.ComposeService()); err != nil {
		return fmt.Errorf("start %s: %w", spec.Color, err)
	}
	return nil
}

// staleReplicas returns the names of replicas that a killed docker compose up may
// leave behind: containers that were created and never started, which may lack
// networks, and replicas without clients whose number follows a missing one.
// Compose numbers new replicas from the highest number on, but Traefik's list has
// the numbers 1 to n.
func staleReplicas(replicas []Replica) (names []string) {
	contiguous := 0
	for _, r := range replicas { // sorted by number
		neverStarted := !r.Running && r.ExitReason == ""
		switch {
		case r.Number == contiguous+1 && !neverStarted:
			contiguous++
		case neverStarted || r.Clients == 0:
			names = append(names, r.Name)
		}
	}
	return names
}

// Stop stops a color. It writes .env first, so that no later `docker compose up`
// starts the color again.
func (r *Replicas) Stop(ctx context.Context, color Color) error {
	if err := writeColorEnv(r.Stack.Dir, ColorSpec{Color: color}); err != nil {
		return err
	}
	if _, err := r.Stack.Compose(ctx, StartLimit, nil, "rm", "-s", "-f", color.ComposeService()); err != nil {
		return fmt.Errorf("stop %s: %w", color, err)
	}
	return nil
}

// Drain starts a drain on each replica, and does not wait for it.
func (r *Replicas) Drain(ctx context.Context, replicas []string, scope, reason string) error {
	return forEachReplica(replicas, func(name string) error {
		_, err := r.Stack.Docker(ctx, QuickLimit, "exec", name, "/server", "drain", "-wait=false", "-scope", scope, "-reason", reason)
		return err
	})
}

// Undrain lets replicas serve again.
func (r *Replicas) Undrain(ctx context.Context, replicas []string) error {
	return forEachReplica(replicas, func(name string) error {
		_, err := r.Stack.Docker(ctx, QuickLimit, "exec", name, "/server", "undrain")
		return err
	})
}

// forEachReplica calls do for all replicas concurrently, and joins the errors.
func forEachReplica(replicas []string, do func(name string) error) error {
	errs := make([]error, len(replicas))
	var wg sync.WaitGroup
	for i, name := range replicas {
		wg.Go(func() { errs[i] = do(name) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Remove stops single replicas, which are drained, and removes them from Traefik's
// list and from .env.
func (r *Replicas) Remove(ctx context.Context, color Color, replicas []string, remaining int) error {
	if err := r.Traefik.SetServers(color, remaining); err != nil {
		return err
	}
	if err := writeColorEnv(r.Stack.Dir, ColorSpec{Color: color, Replicas: remaining}); err != nil {
		return err
	}
	err := forEachReplica(replicas, func(name string) error {
		if _, err := r.Stack.Docker(ctx, StartLimit, "stop", name); err != nil {
			return err
		}
		_, err := r.Stack.Docker(ctx, QuickLimit, "rm", name)
		return err
	})
	if err != nil {
		return fmt.Errorf("remove replicas of %s: %w", color, err)
	}
	return nil
}
