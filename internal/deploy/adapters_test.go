package deploy

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"switchyard/internal/stack"
	"switchyard/internal/testkit"
)

func TestTheOverviewShowsTheStatusOfEachColor(t *testing.T) {
	at := func(phases ...string) (all []stack.Replica) {
		for i, phase := range phases {
			all = append(all, stack.Replica{Name: fmt.Sprintf("app-%d", i+1), Running: true, Health: stack.Health{Reachable: true, Ready: phase == "", Drain: phase}})
		}
		return all
	}
	for says, replicas := range map[string][]stack.Replica{
		"blue     serving, 3 of 3 replicas":  at("", "", ""),
		"         app-2: drained":            at("", "drained", ""),
		"blue     draining, 0 of 2 replicas": at("moving", "drained"),
		"blue     drained, 0 of 2 replicas":  at("drained", "drained"),
		"blue     stopped":                   nil,
	} {
		o := &Overview{Route: &stack.Route{Live: stack.Blue}, Traefik: &stack.BalancerStatus{Route: stack.Route{Live: stack.Blue}}, Replicas: map[stack.Color][]stack.Replica{stack.Blue: replicas}}
		if text := o.String(); !strings.Contains(text, says+"\n") && !strings.Contains(text, says+" ready") {
			t.Errorf("the overview does not say %q:\n%s", says, text)
		}
	}
}

// A migration ends at migrate_limit, and at no other bound.
func TestAMigrationEndsAtItsLimit(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "docker"), []byte("#!/bin/sh\nexec sleep infinity\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	d := newModelEnv(t).deployer(stateFolder(t))
	d.Deps.Images, d.Settings.MigrateLimit = stack.Images{Stack: &stack.Stack{Dir: dir}}, 50*time.Millisecond
	migrate := d.steps(new(Journal), nil)[0]
	if _, err := migrate.do(ctx); migrate.name != "migrate" || err == nil || !strings.Contains(err.Error(), "no end within 50ms") {
		t.Errorf("%s: %v", migrate.name, err)
	}
}

// withReplaced replaces a text in all answers.
func withReplaced(old, with string) func(testkit.Transport) testkit.Transport {
	return func(w testkit.Transport) testkit.Transport {
		return func(url, query string) (int, string) {
			status, text := w(url, query)
			return status, strings.ReplaceAll(text, old, with)
		}
	}
}

// withoutPort refuses connections to a port.
func withoutPort(port string) func(testkit.Transport) testkit.Transport {
	return func(w testkit.Transport) testkit.Transport {
		return func(url, query string) (int, string) {
			if strings.Contains(url, ":"+port+"/") {
				return 0, ""
			}
			return w(url, query)
		}
	}
}
