package deploy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// Start makes a color match its spec: Traefik's list of servers, .env, containers.
// It does not touch replicas that already run the deployment, whatever else
// changed in the files, since that would disconnect their clients. It leaves the
// list of servers of the live color alone: SetServers adds new replicas once they
// serve.
func (c *Compose) Start(ctx context.Context, spec ColorSpec) error {
	if r, err := c.Balancer.Route(ctx); err != nil || r.Live != spec.Color {
		if err := c.Balancer.SetServers(spec.Color, spec.Replicas); err != nil {
			return err
		}
	}
	ref, err := c.pinnedRef(ctx, spec.Image)
	if err != nil {
		return err
	}
	written := spec
	written.Image.Ref = ref
	if err := writeColorEnv(c.Dir, written); err != nil {
		return err
	}
	s, err := c.Inspect(ctx)
	if err != nil {
		return err
	}
	wrong := slices.ContainsFunc(s.Replicas[spec.Color], func(r Replica) bool {
		return r.Deployment != spec.Deployment || r.Image.ID != spec.Image.ID
	})
	if wrong {
		if _, err := c.compose(ctx, startLimit, nil, "rm", "-s", "-f", spec.Color.composeService()); err != nil {
			return fmt.Errorf("remove what ran on %s: %w", spec.Color, err)
		}
	} else if names := staleReplicas(s.Replicas[spec.Color]); len(names) > 0 {
		if _, err := c.docker(ctx, startLimit, append([]string{"rm", "-f"}, names...)...); err != nil {
			return fmt.Errorf("remove stale replicas of %s: %w", spec.Color, err)
		}
	}
	if _, err := c.compose(ctx, startLimit, nil, "up", "-d", "--no-deps", "--no-build", "--no-recreate", spec.Color.composeService()); err != nil {
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

// pinnedRef returns the reference of an image for .env. A tag can be moved, so the
// reference has the digest where there is one; if the tag was already moved, it is
// the image's id.
func (c *Compose) pinnedRef(ctx context.Context, image Image) (string, error) {
	if strings.Contains(image.Ref, "@") || strings.HasPrefix(image.Ref, "sha256:") {
		return image.Ref, nil
	}
	found, err := c.inspectImage(ctx, image.Ref)
	if err != nil || found.ID != image.ID {
		if found, err = c.inspectImage(ctx, image.ID); err != nil {
			return "", fmt.Errorf("%s is no longer on this host: %w", image.Ref, err)
		}
		return image.ID, nil
	}
	repository, _ := splitRef(image.Ref)
	for _, digest := range found.RepoDigests {
		if name, sum, ok := strings.Cut(digest, "@"); ok && name == repository {
			return image.Ref + "@" + sum, nil
		}
	}
	return image.Ref, nil
}

// splitRef splits a reference into repository and tag. A colon before a slash is
// a port's.
func splitRef(ref string) (repository, tag string) {
	i := strings.LastIndex(ref, ":")
	if i < 0 || strings.Contains(ref[i:], "/") {
		return ref, ""
	}
	return ref[:i], ref[i+1:]
}

// Stop stops a color. It writes .env first, so that no later `docker compose up`
// starts the color again.
func (c *Compose) Stop(ctx context.Context, color Color) error {
	if err := writeColorEnv(c.Dir, ColorSpec{Color: color}); err != nil {
		return err
	}
	if _, err := c.compose(ctx, startLimit, nil, "rm", "-s", "-f", color.composeService()); err != nil {
		return fmt.Errorf("stop %s: %w", color, err)
	}
	return nil
}

// Drain starts a drain on each replica, and does not wait for it.
func (c *Compose) Drain(ctx context.Context, replicas []string, scope, reason string) error {
	return c.forEachReplica(replicas, func(name string) error {
		_, err := c.docker(ctx, quickLimit, "exec", name, "/server", "drain", "-wait=false", "-scope", scope, "-reason", reason)
		return err
	})
}

// Undrain lets replicas serve again.
func (c *Compose) Undrain(ctx context.Context, replicas []string) error {
	return c.forEachReplica(replicas, func(name string) error {
		_, err := c.docker(ctx, quickLimit, "exec", name, "/server", "undrain")
		return err
	})
}

// forEachReplica calls do for all replicas concurrently, and joins the errors.
func (c *Compose) forEachReplica(replicas []string, do func(name string) error) error {
	errs := make([]error, len(replicas))
	var wg sync.WaitGroup
	for i, name := range replicas {
		wg.Go(func() { errs[i] = do(name) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// SetServers lists a color's replicas 1 to n in Traefik's configuration.
func (c *Compose) SetServers(_ context.Context, color Color, n int) error {
	return c.Balancer.SetServers(color, n)
}

// Remove stops single replicas, which are drained, and removes them from Traefik's
// list and from .env.
func (c *Compose) Remove(ctx context.Context, color Color, replicas []string, remaining int) error {
	if err := c.Balancer.SetServers(color, remaining); err != nil {
		return err
	}
	if err := writeColorEnv(c.Dir, ColorSpec{Color: color, Replicas: remaining}); err != nil {
		return err
	}
	err := c.forEachReplica(replicas, func(name string) error {
		if _, err := c.docker(ctx, startLimit, "stop", name); err != nil {
			return err
		}
		_, err := c.docker(ctx, quickLimit, "rm", name)
		return err
	})
	if err != nil {
		return fmt.Errorf("remove replicas of %s: %w", color, err)
	}
	return nil
}
