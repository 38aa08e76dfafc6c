package deploy

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"switchyard/internal/stack"
)

// composeFile checks that the compose file is valid and has both colors.
func (p *Preflight) composeFile(ctx context.Context, _ *checkInput) (string, error) {
	config, err := p.Stack.Config(ctx)
	if err != nil {
		return "", err
	}
	for _, c := range stack.Colors {
		if _, ok := config.Services[c.ComposeService()]; !ok {
			return "", fmt.Errorf("%s has no service %s", p.Stack.File, c.ComposeService())
		}
	}
	return fmt.Sprintf("%s is valid, %d services", p.Stack.File, len(config.Services)), nil
}

// traefikFiles checks that active.yml, blue.yml and green.yml agree, and that
// Traefik follows them.
func (p *Preflight) traefikFiles(ctx context.Context, in *checkInput) (string, error) {
	t := p.Replicas.Traefik
	if in.routeErr != nil {
		return "", in.routeErr
	}
	var texts []string
	for _, c := range stack.Colors {
		text, err := t.Render(stack.Route{Live: c})
		if err != nil {
			return "", err
		}
		texts = append(texts, strings.NewReplacer(stack.Blue.TraefikService(), "app", stack.Green.TraefikService(), "app", string(stack.Blue), "color", string(stack.Green), "color").Replace(string(text)))
	}
	if texts[0] != texts[1] {
		return "", errors.New("blue.yml and green.yml differ in more than the color")
	}
	want, err := t.Render(in.route)
	if err != nil {
		return "", err
	}
	if got, err := os.ReadFile(t.ActivePath()); err != nil || !bytes.Equal(got, want) {
		return "", errors.Join(fmt.Errorf("active.yml differs from %s.yml: `switchyard switch %s` rewrites it", in.route.Live, in.route.Live), err)
	}
	s, err := t.Status(ctx)
	if err != nil {
		return "", err
	}
	if s.Route != in.route {
		return "", fmt.Errorf("active.yml says %s and Traefik routes to %s: `switchyard switch %s` repairs it", in.route, s.Route, in.route.Live)
	}
	return fmt.Sprintf("the files agree, and Traefik routes to %s", s.Route), nil
}

// components checks that all services of the stack except the colors run and are
// healthy.
func (p *Preflight) components(ctx context.Context, in *checkInput) (string, error) {
	config, err := p.Stack.Config(ctx)
	if err != nil {
		return "", err
	}
	var bad []string
	n := 0
	for name, service := range config.Services {
		color := name == stack.Blue.ComposeService() || name == stack.Green.ComposeService() // checked by liveColor
		if color || len(service.Profiles) > 0 || p.WithoutMetrics && name == "prometheus" {
			continue
		}
		n++
		i := slices.IndexFunc(in.containers, func(c stack.Container) bool { return c.Service == name })
		switch {
		case i < 0:
			bad = append(bad, name+" is not there")
		case !in.containers[i].Running:
			bad = append(bad, fmt.Sprintf("%s does not run (exit code %d)", name, in.containers[i].ExitCode))
		case in.containers[i].Health != "" && in.containers[i].Health != "healthy":
			bad = append(bad, name+" is "+in.containers[i].Health)
		}
	}
	if len(bad) > 0 {
		slices.Sort(bad)
		return "", errors.New(strings.Join(bad, ", ") + ": `docker compose ps` and `docker compose logs` show more")
	}
	return fmt.Sprintf("%d services run and are healthy", n), nil
}

// liveColor checks that all replicas of the live color serve.
func (p *Preflight) liveColor(_ context.Context, in *checkInput) (string, error) {
	if in.routeErr != nil {
		return "", in.routeErr
	}
	replicas := in.snapshot.Replicas[in.route.Live]
	serving := in.snapshot.CountServing(in.route.Live)
	switch {
	case len(replicas) == 0 && len(in.snapshot.Running(in.route.Live.Other())) == 0:
		return "", warningf("neither color runs: this is a first deploy, which can't be rolled back")
	case serving == 0 && len(in.snapshot.Running(in.route.Live)) == 0:
		return "", fmt.Errorf("%s is live and does not run%s: `docker compose up -d` starts it as it was", in.route.Live, describeProblems(replicas))
	case serving < len(replicas) || serving == 0:
		return "", fmt.Errorf("%d of %d replicas of %s serve%s", serving, len(replicas), in.route.Live, describeProblems(replicas))
	}
	return fmt.Sprintf("%d replicas of %s serve %d clients", serving, in.route.Live, in.snapshot.CountClients(in.route.Live)), nil
}

// drainBudget checks that stopping a replica leaves time for a drain, and that a
// drain can move all present clients.
func (p *Preflight) drainBudget(ctx context.Context, in *checkInput) (string, error) {
	config, err := p.Stack.Config(ctx)
	if err != nil {
		return "", err
	}
	service := config.Services[stack.Blue.ComposeService()]
	budget := map[string]time.Duration{"DRAIN_TIMEOUT": 25 * time.Second, "DRAIN_WINDOW": 10 * time.Second}
	for name := range budget {
		if v := service.Environment[name]; v != "" {
			if budget[name], err = time.ParseDuration(v); err != nil {
				return "", fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	grace, err := time.ParseDuration(cmp.Or(service.StopGracePeriod, "10s"))
	if err != nil {
		return "", fmt.Errorf("stop_grace_period: %w", err)
	}
	if grace < budget["DRAIN_TIMEOUT"]+30*time.Second {
		return "", fmt.Errorf("stop_grace_period is %v, and DRAIN_TIMEOUT %v needs 30 s more", grace, budget["DRAIN_TIMEOUT"])
	}
	clients, replicas := in.snapshot.CountClients(in.route.Live), max(1, len(in.snapshot.Running(in.route.Live)))
	rate := 500.0
	if _, err := fmt.Sscan(cmp.Or(service.Environment["MAX_HANDSHAKE_RATE"], "500"), &rate); err != nil {
		return "", fmt.Errorf("MAX_HANDSHAKE_RATE: %w", err)
	}
	// A drain leaves a fifth of the rate to other clients that connect.
	need := time.Duration(float64(clients) / (0.8 * rate * float64(replicas)) * float64(time.Second)).Round(time.Millisecond)
	if need > budget["DRAIN_TIMEOUT"] {
		return "", fmt.Errorf("%d clients take %v to move at 80%% of MAX_HANDSHAKE_RATE, over DRAIN_TIMEOUT %v", clients, need, budget["DRAIN_TIMEOUT"])
	}
	return fmt.Sprintf("%d clients move within DRAIN_WINDOW %v; stopping waits %v", clients, budget["DRAIN_WINDOW"], grace), nil
}

// nofile checks that the containers may open enough files for all clients.
func (p *Preflight) nofile(_ context.Context, in *checkInput) (string, error) {
	clients := int64(in.snapshot.CountClients(stack.Blue) + in.snapshot.CountClients(stack.Green))
	limitsFound := 0
	for _, c := range in.containers {
		need := int64(0)
		switch c.Service {
		case stack.TraefikService:
			need = 4*clients + 1024 // both sides of each connection, and two connections for each client that moves
		case stack.Blue.ComposeService(), stack.Green.ComposeService():
			need = clients + 1024
		default:
			continue
		}
		if c.OpenFiles == 0 {
			continue
		}
		limitsFound++
		if c.OpenFiles < need {
			return "", fmt.Errorf("%s may open %d files and needs %d for %d clients", c.Name, c.OpenFiles, need, clients)
		}
	}
	if limitsFound == 0 {
		return "", warningf("no container has a limit of open files (ulimits: nofile)")
	}
	return fmt.Sprintf("enough for %d clients", clients), nil
}

// window checks that deploys are not frozen and that a deploy window is open.
func (p *Preflight) window(context.Context, *checkInput) (string, error) {
	freeze := filepath.Join(p.State.Dir, "freeze")
	if text, err := os.ReadFile(freeze); err == nil {
		return "", fmt.Errorf("deploys are frozen: %s (remove %s to end it)", cmp.Or(strings.TrimSpace(string(text)), "no reason given"), freeze)
	}
	if len(p.Settings.DeployWindows) == 0 {
		return "", warningf("no deploy window is set: a deploy may begin at any time")
	}
	now := p.Clock.Now()
	for _, w := range p.Settings.DeployWindows {
		if w.contains(now) {
			return "in " + w.String(), nil
		}
	}
	return "", fmt.Errorf("it is %s, and the deploy windows are %v", now.Format("Mon 15:04"), p.Settings.DeployWindows)
}

// scan runs the operator's image scan.
func (p *Preflight) scan(ctx context.Context, in *checkInput) (string, error) {
	command := cmp.Or(p.ScanCommand, p.Settings.ScanCommand)
	if command == "" {
		return "", warningf("no image scan ran: --scan names a command")
	}
	if in.image.Ref == "" {
		return "", warningf("no image was named")
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.Settings.ScanLimit)
	defer cancel()
	if _, err := stack.Shell(ctx, p.Settings.ScanLimit, p.Stack.Dir, command+` "$1"`, in.image.Ref); err != nil {
		return "", fmt.Errorf("the scan rejects the image: %w", err)
	}
	return command + " accepts the image", nil
}
