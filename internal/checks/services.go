package checks

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"switchyard/internal/stack"
)

// composeFile checks that the compose file is valid and has both colors.
func composeFile(f *Facts, config *stack.Config) []Finding {
	for _, c := range stack.Colors {
		if _, ok := config.Services[c.ComposeService()]; !ok {
			return Failf("%s has no service %s", f.Stack.File, c.ComposeService())
		}
	}
	return Okf("%s is valid, %d services", f.Stack.File, len(config.Services))
}

// traefikFiles checks that active.yml, blue.yml and green.yml agree, and that
// Traefik follows them.
func traefikFiles(ctx context.Context, f *Facts) []Finding {
	t := f.Traefik
	if f.RouteErr != nil {
		return Failed(f.RouteErr)
	}
	var texts []string
	for _, c := range stack.Colors {
		text, err := t.Render(stack.Route{Live: c})
		if err != nil {
			return Failed(err)
		}
		texts = append(texts, strings.NewReplacer(stack.Blue.TraefikService(), "app", stack.Green.TraefikService(), "app", string(stack.Blue), "color", string(stack.Green), "color").Replace(string(text)))
	}
	if texts[0] != texts[1] {
		return Failf("blue.yml and green.yml differ in more than the color")
	}
	want, err := t.Render(f.Route)
	if err != nil {
		return Failed(err)
	}
	if got, err := os.ReadFile(t.ActivePath()); err != nil || !bytes.Equal(got, want) {
		return Failed(errors.Join(fmt.Errorf("active.yml differs from %s.yml: `switchyard switch %s` rewrites it", f.Route.Live, f.Route.Live), err))
	}
	s, err := t.Status(ctx)
	if err != nil {
		return Failed(err)
	}
	return FollowsRoute(f.Route, s)
}

// FollowsRoute checks that Traefik follows the route of active.yml.
func FollowsRoute(route stack.Route, traefik stack.BalancerStatus) []Finding {
	if traefik.Route != route {
		return Failf("active.yml says %s and Traefik routes to %s: `switchyard switch %s` repairs it", route, traefik.Route, route.Live)
	}
	return Okf("the files agree, and Traefik routes to %s", route)
}

// components checks that all services of the compose file run and are healthy. The colors
// are checked by liveColor.
func components(f *Facts, config *stack.Config) []Finding {
	var expected []stack.Container
	for _, name := range slices.Sorted(maps.Keys(config.Services)) {
		c := stack.Container{Name: name, Service: name, Status: "it is not there"}
		if c.IsNode() || len(config.Services[name].Profiles) > 0 || f.WithoutPrometheus && name == "prometheus" {
			continue
		}
		if i := slices.IndexFunc(f.Containers, func(c stack.Container) bool { return c.Service == name }); i >= 0 {
			c = f.Containers[i]
			c.Name = name
		}
		expected = append(expected, c)
	}
	if findings := judgeContainers(expected); len(findings) > 0 {
		return findings
	}
	return Okf("%d services run and are healthy", len(expected))
}

// containers checks that all containers run and are healthy, except those of a color
// that was stopped, and that a node runs.
func containers(_ context.Context, f *Facts) []Finding {
	if f.ContainersErr != nil {
		return Failed(f.ContainersErr)
	}
	nodes := 0
	judged := slices.DeleteFunc(slices.Clone(f.Containers), func(c stack.Container) bool {
		if c.IsNode() && c.Running {
			nodes++
		}
		return c.IsNode() && !c.Running && c.ExitCode == 0 // the color that is not live
	})
	findings := judgeContainers(judged)
	healthy := len(judged)
	for _, found := range findings {
		if found.Level == Fail {
			healthy--
		}
	}
	if nodes == 0 {
		findings = append(findings, Finding{Fail, "nodes", stack.ErrNoNode.Error()})
	}
	return append(findings, Okf("%d are healthy; %d nodes run", healthy, nodes)...)
}

// judgeContainers returns a finding for each container that is not healthy, or was not for
// a while.
func judgeContainers(all []stack.Container) (findings []Finding) {
	for _, c := range all {
		switch {
		case !c.Running:
			findings = append(findings, Finding{Fail, c.Name, "does not run: " + c.Status})
		case c.Health == "starting": // not checked yet
			findings = append(findings, Finding{Warn, c.Name, "was just started"})
		case c.Health != "" && c.Health != "healthy":
			findings = append(findings, Finding{Fail, c.Name, "running, but " + c.Health})
		case c.Restarts > 0:
			findings = append(findings, Finding{Warn, c.Name, fmt.Sprintf("was restarted %d times", c.Restarts)})
		}
	}
	return findings
}

func liveColor(_ context.Context, f *Facts) []Finding {
	if f.RouteErr != nil {
		return Failed(f.RouteErr)
	}
	return LiveColorServes(f.Snapshot, f.Route.Live)
}

// LiveColorServes checks that all replicas of the live color serve.
func LiveColorServes(s stack.Snapshot, live stack.Color) []Finding {
	serving := s.CountServing(live)
	switch {
	case len(s.Replicas[live]) == 0 && len(s.Running(live.Other())) == 0:
		return Warnf("neither color runs: this is a first deploy, which can't be rolled back")
	case len(s.Running(live)) == 0:
		return Failf("%s is live and does not run%s: `docker compose up -d` starts it as it was", live, s.DescribeProblems(live))
	case serving < len(s.Replicas[live]):
		return Failf("%d of %d replicas of %s serve%s", serving, len(s.Replicas[live]), live, s.DescribeProblems(live))
	}
	return Okf("%d replicas of %s serve %d clients", serving, live, s.CountClients(live))
}

// drainBudget checks that stopping a replica leaves time for a drain, and that a
// drain can move all present clients.
func drainBudget(f *Facts, config *stack.Config) []Finding {
	service := config.Services[stack.Blue.ComposeService()]
	budget := map[string]time.Duration{"DRAIN_TIMEOUT": 25 * time.Second, "DRAIN_WINDOW": 10 * time.Second}
	for name, byDefault := range budget {
		var err error
		if budget[name], err = time.ParseDuration(cmp.Or(service.Environment[name], byDefault.String())); err != nil {
			return Failf("%s: %v", name, err)
		}
	}
	grace, err := time.ParseDuration(cmp.Or(service.StopGracePeriod, "10s"))
	if err != nil {
		return Failf("stop_grace_period: %v", err)
	}
	if grace < budget["DRAIN_TIMEOUT"]+stopReserve {
		return Failf("stop_grace_period is %v, and DRAIN_TIMEOUT %v needs %.0f s more", grace, budget["DRAIN_TIMEOUT"], stopReserve.Seconds())
	}
	clients, replicas := f.Snapshot.CountClients(f.Route.Live), max(1, len(f.Snapshot.Running(f.Route.Live)))
	rate := 500.0
	if _, err := fmt.Sscan(cmp.Or(service.Environment["MAX_HANDSHAKE_RATE"], "500"), &rate); err != nil {
		return Failf("MAX_HANDSHAKE_RATE: %v", err)
	}
	// A drain leaves a fifth of the rate to other clients that connect.
	need := time.Duration(float64(clients) / (0.8 * rate * float64(replicas)) * float64(time.Second)).Round(time.Millisecond)
	if need > budget["DRAIN_TIMEOUT"] {
		return Failf("%d clients take %v to move at 80%% of MAX_HANDSHAKE_RATE, over DRAIN_TIMEOUT %v", clients, need, budget["DRAIN_TIMEOUT"])
	}
	if need > budget["DRAIN_WINDOW"] {
		return Okf("%d clients take %v to move, longer than DRAIN_WINDOW %v and within DRAIN_TIMEOUT %v; stopping waits %v",
			clients, need, budget["DRAIN_WINDOW"], budget["DRAIN_TIMEOUT"], grace)
	}
	return Okf("%d clients move within DRAIN_WINDOW %v; stopping waits %v", clients, budget["DRAIN_WINDOW"], grace)
}

// openFiles checks that the containers may open enough files for all clients.
func openFiles(_ context.Context, f *Facts) []Finding {
	clients := int64(f.Snapshot.CountClients(stack.Blue) + f.Snapshot.CountClients(stack.Green))
	limitsFound := 0
	for _, c := range f.Containers {
		need := int64(0)
		switch c.Service {
		case stack.TraefikService:
			need = 4*clients + openFilesReserve // both sides of each connection, and two connections for each client that moves
		case stack.Blue.ComposeService(), stack.Green.ComposeService():
			need = clients + openFilesReserve
		default:
			continue
		}
		if c.OpenFiles == 0 {
			continue
		}
		limitsFound++
		if c.OpenFiles < need {
			return Failf("%s may open %d files and needs %d for %d clients", c.Name, c.OpenFiles, need, clients)
		}
	}
	if limitsFound == 0 {
		return Warnf("no container has a limit of open files (ulimits: nofile)")
	}
	return Okf("enough for %d clients", clients)
}

// redis checks that the live replicas are connected to their broker, and that Redis
// stores what they share.
func redis(_ context.Context, f *Facts) []Finding {
	replicas := f.Snapshot.Running(f.Route.Live)
	for _, r := range replicas {
		if state := r.UnhealthyComponents["broker"]; state != "" {
			return Failf("%s: the broker is %s", r.Name, state)
		}
		switch state := r.UnhealthyComponents["sessions"]; state {
		case "":
		case "refused":
			return Failf("%s: Redis refuses to store sessions: it is full, can't write to its disk or replicas, or the password or a right is missing; the replica's log has the reason", r.Name)
		default:
			return Failf("%s: the shared state is %s", r.Name, state)
		}
	}
	if len(replicas) == 0 {
		return Warnf("no replica is running")
	}
	return Okf("%d replicas are connected to their broker and store sessions", len(replicas))
}

// standby checks that the database's standby follows the primary without much lag.
func standby(ctx context.Context, f *Facts) []Finding {
	primary, err := f.Stack.Primary()
	if err != nil {
		return Failed(err)
	}
	out, err := f.Stack.Compose(ctx, stack.QuickLimit, nil, "exec", "-T", primary, "psql", "-U", "postgres", "-d", "postgres", "-Atc",
		`SELECT count(*), coalesce(max(extract(epoch FROM replay_lag)), 0)::bigint FROM pg_stat_replication WHERE state = 'streaming'`)
	if err != nil {
		return Failf("query %s: %v", primary, err)
	}
	var standbys, lag int64
	if _, err := fmt.Sscanf(strings.TrimSpace(string(out)), "%d|%d", &standbys, &lag); err != nil {
		return Failf("query %s: %q: %v", primary, out, err)
	}
	if standbys == 0 {
		return Failf("no standby follows %s", primary)
	}
	return found(standbyBound.level(float64(lag)), "", "%d standbys follow %s, %d s behind", standbys, primary, lag)
}
