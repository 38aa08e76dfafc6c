package deploy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// Start brings a color up as the Launch says: Traefik's list, .env, containers.
// Replicas that are of the deployment already are not touched, whatever else
// changed in the files: that would cut off their clients. Of a color that is live
// Traefik hears nothing here: List tells it of replicas once they serve.
func (c *Compose) Start(ctx context.Context, l ColorSpec) error {
	if r, err := c.Balancer.Route(ctx); err != nil || r.Live != l.Color {
		if err := c.Balancer.SetServers(l.Color, l.Replicas); err != nil {
			return err
		}
	}
	ref, err := c.pinnedRef(ctx, l.Image)
	if err != nil {
		return err
	}
	written := l
	written.Image.Ref = ref
	if err := writeColorEnv(c.Dir, written); err != nil {
		return err
	}
	s, err := c.Inspect(ctx)
	if err != nil {
		return err
	}
	wrong := slices.ContainsFunc(s.Replicas[l.Color], func(r Replica) bool {
		return r.Deployment != l.Deployment || r.Image.ID != l.Image.ID
	})
	if wrong {
		if _, err := c.compose(ctx, startLimit, nil, "rm", "-s", "-f", l.Color.composeService()); err != nil {
			return fmt.Errorf("remove what ran on %s: %w", l.Color, err)
		}
	} else if names := staleReplicas(s.Replicas[l.Color]); len(names) > 0 {
		if _, err := c.docker(ctx, startLimit, append([]string{"rm", "-f"}, names...)...); err != nil {
			return fmt.Errorf("remove what was half made on %s: %w", l.Color, err)
		}
	}
	if _, err := c.compose(ctx, startLimit, nil, "up", "-d", "--no-deps", "--no-build", "--no-recreate", l.Color.composeService()); err != nil {
		return fmt.Errorf("start %s: %w", l.Color, err)
	}
	return nil
}

// staleReplicas are what an up that was killed may leave: containers that were made and
// never started, which may lack networks, and those that nobody is connected to
// and whose number follows a missing one. Compose numbers what it adds from the
// highest on, and Traefik's list has 1 to n.
func staleReplicas(replicas []Replica) (names []string) {
	contiguous := 0
	for _, r := range replicas { // by number
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

// pinnedRef is how an image is written into .env: with its digest where it has one,
// since a tag may be moved; by its id where its tag was.
func (c *Compose) pinnedRef(ctx context.Context, image Image) (string, error) {
	if strings.Contains(image.Ref, "@") || strings.HasPrefix(image.Ref, "sha256:") {
		return image.Ref, nil
	}
	found, err := c.inspectImage(ctx, image.Ref)
	if err != nil || found.ID != image.ID {
		if found, err = c.inspectImage(ctx, image.ID); err != nil {
			return "", fmt.Errorf("%s is not here any more: %w", image.Ref, err)
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

// splitRef takes a tag off a reference. A colon before a slash is a port.
func splitRef(ref string) (repository, tag string) {
	i := strings.LastIndex(ref, ":")
	if i < 0 || strings.Contains(ref[i:], "/") {
		return ref, ""
	}
	return ref[:i], ref[i+1:]
}

// Stop stops a color: .env first, so that nothing brings it up again.
func (c *Compose) Stop(ctx context.Context, color Color) error {
	if err := writeColorEnv(c.Dir, ColorSpec{Color: color}); err != nil {
		return err
	}
	if _, err := c.compose(ctx, startLimit, nil, "rm", "-s", "-f", color.composeService()); err != nil {
		return fmt.Errorf("stop %s: %w", color, err)
	}
	return nil
}

// Drain has replicas begin to let go of their clients.
func (c *Compose) Drain(ctx context.Context, replicas []string, scope, reason string) error {
	return c.forEachReplica(replicas, func(name string) error {
		_, err := c.docker(ctx, quickLimit, "exec", name, "/server", "drain", "-wait=false", "-scope", scope, "-reason", reason)
		return err
	})
}

// Undrain has replicas serve again.
func (c *Compose) Undrain(ctx context.Context, replicas []string) error {
	return c.forEachReplica(replicas, func(name string) error {
		_, err := c.docker(ctx, quickLimit, "exec", name, "/server", "undrain")
		return err
	})
}

// forEachReplica does something to all replicas at once.
func (c *Compose) forEachReplica(replicas []string, do func(name string) error) error {
	errs := make([]error, len(replicas))
	var wg sync.WaitGroup
	for i, name := range replicas {
		wg.Go(func() { errs[i] = do(name) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// SetServers has Traefik know a color's replicas 1 to n.
func (c *Compose) SetServers(_ context.Context, color Color, n int) error {
	return c.Balancer.SetServers(color, n)
}

// Remove stops single replicas and takes them off Traefik's list and out of
// .env. They are drained: stopping them takes no time.
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
