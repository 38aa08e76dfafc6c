package deploy

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	pm "github.com/prometheus/common/model"
)

// Ports inside the stack's networks.
const (
	appPort        = "8000"
	traefikPort    = "8080"
	prometheusPort = "9090"
)

// Compose operates the stack on this host: it calls docker, and queries containers
// at their addresses, which a Linux host reaches.
type Compose struct {
	// Dir is the folder of the compose file and of .env.
	Dir string
	// File is the compose file's name, Project the stack's name in Compose.
	File, Project string
	// Balancer writes the lists of servers.
	Balancer *Traefik
	// Lock, if set, is inherited by each docker command.
	Lock *Lock
}

func (c *Compose) docker(ctx context.Context, limit time.Duration, args ...string) ([]byte, error) {
	return c.dockerEnv(ctx, limit, nil, args...)
}

func (c *Compose) dockerEnv(ctx context.Context, limit time.Duration, env []string, args ...string) ([]byte, error) {
	cmd := command{}
	if c.Lock != nil {
		cmd.inheritedFile = c.Lock.file
	}
	return cmd.run(ctx, limit, c.Dir, env, "docker", args...)
}

func (c *Compose) compose(ctx context.Context, limit time.Duration, env []string, args ...string) ([]byte, error) {
	return c.dockerEnv(ctx, limit, env, append([]string{"compose", "-p", c.Project, "-f", c.File}, args...)...)
}

// container is the part of docker inspect's output that this package reads.
type container struct {
	ID    string `json:"Id"`
	Name  string
	Image string // the image's id
	State struct {
		Status     string
		Running    bool
		OOMKilled  bool
		ExitCode   int
		Error      string
		StartedAt  time.Time
		FinishedAt time.Time
		Health     *struct{ Status string }
	}
	RestartCount int
	Config       struct {
		Image  string
		Env    []string
		Labels map[string]string
	}
	HostConfig struct {
		Memory  int64
		Ulimits []struct {
			Name string
			Soft int64
		}
	}
	NetworkSettings struct {
		Networks map[string]struct{ IPAddress string }
	}
}

func (c container) service() string { return c.Config.Labels["com.docker.compose.service"] }

func (c container) oneOff() bool { return c.Config.Labels["com.docker.compose.oneoff"] == "True" }

func (c container) env(name string) string {
	for _, e := range c.Config.Env {
		if value, ok := strings.CutPrefix(e, name+"="); ok {
			return value
		}
	}
	return ""
}

// address returns the container's address in the network whose name sorts first,
// or "" when it has none.
func (c container) address() string {
	names := make([]string, 0, len(c.NetworkSettings.Networks))
	for name, n := range c.NetworkSettings.Networks {
		if n.IPAddress != "" {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return c.NetworkSettings.Networks[slices.Min(names)].IPAddress
}

// containers returns all containers of the stack, running or not, except those of
// docker compose run.
func (c *Compose) containers(ctx context.Context) ([]container, error) {
	out, err := c.docker(ctx, quickLimit, "ps", "-aq", "--no-trunc", "--filter", "label=com.docker.compose.project="+c.Project)
	if err != nil {
		return nil, fmt.Errorf("look at the containers: %w", err)
	}
	ids := strings.Fields(string(out))
	if len(ids) == 0 {
		return nil, nil
	}
	out, err = c.docker(ctx, quickLimit, append([]string{"inspect", "--type", "container"}, ids...)...)
	// A container that is removed between ps and inspect makes inspect fail, but it
	// still prints the others. After any other failure some may be missing.
	if err != nil && !strings.Contains(err.Error(), "No such container") {
		return nil, fmt.Errorf("look at the containers: %w", err)
	}
	var all []container
	if err := json.Unmarshal(out, &all); err != nil {
		return nil, fmt.Errorf("look at the containers: %w", err)
	}
	return slices.DeleteFunc(all, container.oneOff), nil
}

// Inspect lists the replicas of both colors and queries the health of each.
func (c *Compose) Inspect(ctx context.Context) (Snapshot, error) {
	all, err := c.containers(ctx)
	if err != nil {
		return Snapshot{}, err
	}
	s := Snapshot{At: time.Now(), Replicas: map[Color][]Replica{}}
	for _, each := range all {
		for _, color := range Colors {
			if each.service() == color.composeService() {
				s.Replicas[color] = append(s.Replicas[color], each.replica())
			}
		}
	}
	var wg sync.WaitGroup
	for _, color := range Colors {
		replicas := s.Replicas[color]
		slices.SortFunc(replicas, func(a, b Replica) int { return a.Number - b.Number })
		for i := range replicas {
			if r := &replicas[i]; r.Running && r.Address != "" {
				wg.Go(func() { r.Health, r.Version = queryReplica(ctx, r.Address) })
			}
		}
	}
	wg.Wait()
	return s, ctx.Err()
}

func (c container) replica() Replica {
	r := Replica{
		Name: strings.TrimPrefix(c.Name, "/"), Image: Image{Ref: c.Config.Image, ID: c.Image},
		Deployment: c.env("DEPLOYMENT"), Running: c.State.Running && c.State.Status == "running",
		Restarts: c.RestartCount, MemoryLimit: c.HostConfig.Memory,
	}
	r.Number, _ = strconv.Atoi(c.Config.Labels["com.docker.compose.container-number"])
	if ip := c.address(); ip != "" {
		r.Address = net.JoinHostPort(ip, appPort)
	}
	switch {
	case c.State.OOMKilled:
		r.ExitReason = "killed: out of memory"
	case c.RestartCount > 0, !r.Running && !c.State.FinishedAt.IsZero() && c.State.Status != "created":
		r.ExitReason = fmt.Sprintf("exit code %d", c.State.ExitCode)
	}
	if !r.Running && c.State.Error != "" {
		r.ExitReason = c.State.Error
	}
	return r
}

// queryReplica asks a replica for its health, its number of clients and its
// version. A replica that does not answer is not Reachable.
func queryReplica(ctx context.Context, address string) (h Health, version string) {
	_, body, err := fetch(ctx, containerClient, "http://"+address+"/readyz")
	if err != nil {
		return h, ""
	}
	var ready struct {
		Status string `json:"status"`
		Drain  struct {
			Phase string `json:"phase"`
			Lost  int    `json:"lost"`
		} `json:"drain"`
	}
	parts := map[string]any{}
	if json.Unmarshal(body, &ready) != nil || json.Unmarshal(body, &parts) != nil {
		return h, ""
	}
	h = Health{Reachable: true, Ready: ready.Status == "ready", Drain: ready.Drain.Phase, LostClients: ready.Drain.Lost, UnhealthyComponents: map[string]string{}}
	if ready.Status == "draining" && h.Drain == "" {
		h.Drain = "delay"
	}
	for _, part := range []string{"log", "delivery", "broker"} {
		if state, ok := parts[part].(string); ok && state != "up" {
			h.UnhealthyComponents[part] = state
		}
	}
	samples, err := fetchMetrics(ctx, address)
	if err != nil {
		return h, ""
	}
	for _, s := range samples {
		switch s.Metric[pm.MetricNameLabel] {
		case "websocket_active_connections":
			h.Clients = int(s.Value)
		case "switchyard_build_info":
			version = string(s.Metric["version"])
		}
	}
	return h, version
}

// serviceURL returns the URL at which the host reaches a service of the stack.
func (c *Compose) serviceURL(ctx context.Context, service, port string) (string, error) {
	all, err := c.containers(ctx)
	if err != nil {
		return "", err
	}
	for _, each := range all {
		if ip := each.address(); each.service() == service && each.State.Running && ip != "" {
			return "http://" + net.JoinHostPort(ip, port), nil
		}
	}
	return "", fmt.Errorf("%s does not run", service)
}
