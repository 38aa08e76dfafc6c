package deploy

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// composeConfig is the part of `docker compose config` that this package reads: the
// compose file with the values of .env.
type composeConfig struct {
	Services map[string]struct {
		Image           string            `json:"image"`
		Profiles        []string          `json:"profiles"`
		StopGracePeriod string            `json:"stop_grace_period"`
		Environment     map[string]string `json:"environment"`
		Deploy          struct {
			Replicas *int `json:"replicas"`
		} `json:"deploy"`
	} `json:"services"`
}

// config returns the stack's compose file with the values of .env.
func (p *Preflight) config(ctx context.Context) (composeConfig, error) {
	var config composeConfig
	out, err := p.Compose.compose(ctx, quickLimit, nil, "config", "--format", "json")
	if err == nil {
		err = json.Unmarshal(out, &config)
	}
	return config, err
}

// composeFile checks that the compose file is valid and has both colors.
func (p *Preflight) composeFile(ctx context.Context, _ *checkInput) (string, error) {
	config, err := p.config(ctx)
	if err != nil {
		return "", err
	}
	for _, c := range Colors {
		if _, ok := config.Services[c.composeService()]; !ok {
			return "", fmt.Errorf("%s has no service %s", p.Stack.File, c.composeService())
		}
	}
	return fmt.Sprintf("%s is valid, %d services", p.Stack.File, len(config.Services)), nil
}

// traefikFiles checks that active.yml, blue.yml and green.yml agree, and that
// Traefik follows them.
func (p *Preflight) traefikFiles(ctx context.Context, in *checkInput) (string, error) {
	t := p.Compose.Balancer
	if in.routeErr != nil {
		return "", in.routeErr
	}
	var texts []string
	for _, c := range Colors {
		text, err := t.render(Route{Live: c})
		if err != nil {
			return "", err
		}
		texts = append(texts, strings.NewReplacer(Blue.traefikService(), "app", Green.traefikService(), "app", string(Blue), "color", string(Green), "color").Replace(string(text)))
	}
	if texts[0] != texts[1] {
		return "", errors.New("blue.yml and green.yml differ in more than the color")
	}
	want, err := t.render(in.route)
	if err != nil {
		return "", err
	}
	if got, err := os.ReadFile(t.activePath()); err != nil || !bytes.Equal(got, want) {
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
	config, err := p.config(ctx)
	if err != nil {
		return "", err
	}
	var bad []string
	n := 0
	for name, service := range config.Services {
		color := name == Blue.composeService() || name == Green.composeService() // checked by liveColor
		if color || len(service.Profiles) > 0 || p.WithoutMetrics && name == "prometheus" {
			continue
		}
		n++
		i := slices.IndexFunc(in.containers, func(c container) bool { return c.service() == name })
		switch {
		case i < 0:
			bad = append(bad, name+" is not there")
		case !in.containers[i].State.Running:
			bad = append(bad, fmt.Sprintf("%s does not run (exit code %d)", name, in.containers[i].State.ExitCode))
		case in.containers[i].State.Health != nil && in.containers[i].State.Health.Status != "healthy":
			bad = append(bad, name+" is "+in.containers[i].State.Health.Status)
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
	serving := in.snapshot.countServing(in.route.Live)
	switch {
	case len(replicas) == 0 && len(in.snapshot.Running(in.route.Live.Other())) == 0:
		return "", warningf("neither color runs: this is a first deploy, which can't be rolled back")
	case serving == 0 && len(in.snapshot.Running(in.route.Live)) == 0:
		return "", fmt.Errorf("%s is live and does not run%s: `docker compose up -d` starts it as it was", in.route.Live, describeProblems(replicas))
	case serving < len(replicas) || serving == 0:
		return "", fmt.Errorf("%d of %d replicas of %s serve%s", serving, len(replicas), in.route.Live, describeProblems(replicas))
	}
	return fmt.Sprintf("%d replicas of %s serve %d clients", serving, in.route.Live, in.snapshot.countClients(in.route.Live)), nil
}

// drainBudget checks that stopping a replica leaves time for a drain, and that a
// drain can move all present clients.
func (p *Preflight) drainBudget(ctx context.Context, in *checkInput) (string, error) {
	config, err := p.config(ctx)
	if err != nil {
		return "", err
	}
	service := config.Services[Blue.composeService()]
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
	clients, replicas := in.snapshot.countClients(in.route.Live), max(1, len(in.snapshot.Running(in.route.Live)))
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
	clients := int64(in.snapshot.countClients(Blue) + in.snapshot.countClients(Green))
	limitsFound := 0
	for _, c := range in.containers {
		need := int64(0)
		switch c.service() {
		case "traefik":
			need = 4*clients + 1024 // both sides of each connection, and two connections for each client that moves
		case Blue.composeService(), Green.composeService():
			need = clients + 1024
		default:
			continue
		}
		for _, u := range c.HostConfig.Ulimits {
			if u.Name != "nofile" {
				continue
			}
			limitsFound++
			if u.Soft < need {
				return "", fmt.Errorf("%s may open %d files and needs %d for %d clients", strings.TrimPrefix(c.Name, "/"), u.Soft, need, clients)
			}
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
	run := (&Compose{Dir: p.Stack.Dir}).shell
	if _, err := run(ctx, p.Settings.ScanLimit, command+` "$1"`, in.image.Ref); err != nil {
		return "", fmt.Errorf("the scan rejects the image: %w", err)
	}
	return command + " accepts the image", nil
}

// shell runs a shell command of the operator in the stack's folder.
func (c *Compose) shell(ctx context.Context, limit time.Duration, script string, args ...string) ([]byte, error) {
	return command{}.run(ctx, limit, c.Dir, nil, "sh", append([]string{"-c", script, "sh"}, args...)...)
}
