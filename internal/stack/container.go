package stack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Container is the state of one of the stack's containers.
type Container struct {
	Name, Service string
	// Number is Compose's number of the container among those of its service.
	Number  int
	Image   Image
	Running bool
	// Status is docker's status, with the exit code of a container that exited.
	// Health is empty if the container has no health check.
	Status, Health string
	ExitCode       int
	Restarts       int
	// ExitReason says how the container ended last. It is empty if it never did.
	ExitReason string
	// Address is an address on a network of the stack, or empty.
	Address string
	// Deployment is the container's DEPLOYMENT, empty if it is no replica.
	Deployment string
	// MemoryLimit is in bytes, OpenFiles the limit of open files; 0 means no limit.
	MemoryLimit, OpenFiles int64
}

// ErrNoContainers says that a stack has no containers.
var ErrNoContainers = errors.New("is the stack up? --project and --dir name it")

// ErrNoNode says that no node of the service runs.
var ErrNoNode = errors.New("no node of the service runs: neither app_blue nor app_green")

// IsNode reports whether the container is a replica of a color.
func (c Container) IsNode() bool {
	return c.Service == Blue.ComposeService() || c.Service == Green.ComposeService()
}

// errNotRunning says that a service does not run.
var errNotRunning = errors.New("does not run in the stack")

// Containers returns the stack's containers, running or not, sorted by name, except
// those of docker compose run. None is ErrNoContainers.
func (s *Stack) Containers(ctx context.Context) ([]Container, error) {
	all, err := s.containers(ctx)
	if err == nil && len(all) == 0 {
		err = fmt.Errorf("%s has no container: %w", s.Project, ErrNoContainers)
	}
	return all, err
}

// containers returns the same, and no error if there are none.
func (s *Stack) containers(ctx context.Context) ([]Container, error) {
	out, err := s.Docker(ctx, QuickLimit, "ps", "-aq", "--no-trunc", "--filter", "label=com.docker.compose.project="+s.Project, "--filter", "label=com.docker.compose.oneoff=False")
	if err != nil {
		return nil, fmt.Errorf("list the containers: %w", err)
	}
	ids := strings.Fields(string(out))
	if len(ids) == 0 {
		return nil, nil
	}
	out, err = s.Docker(ctx, QuickLimit, append([]string{"inspect", "--type", "container"}, ids...)...)
	// A container that is removed between ps and inspect makes inspect fail, but it
	// still prints the others. After any other failure some may be missing.
	if err != nil && !strings.Contains(err.Error(), "No such container") {
		return nil, fmt.Errorf("list the containers: %w", err)
	}
	var found []inspectedContainer
	if e := json.Unmarshal(out, &found); e != nil {
		return nil, fmt.Errorf("list the containers: docker inspect: %w", e)
	}
	if len(found) == 0 && err == nil {
		return nil, errors.New("list the containers: docker inspect: it printed no container")
	}
	all := make([]Container, len(found))
	for i, each := range found {
		all[i] = each.container()
	}
	slices.SortFunc(all, func(a, b Container) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// inspectedContainer is the part of docker inspect's output that this package reads.
type inspectedContainer struct {
	Name  string
	Image string // the image's id
	State struct {
		Status     string
		Running    bool
		OOMKilled  bool
		ExitCode   int
		Error      string
		FinishedAt time.Time
		Health     struct{ Status string }
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

func (i *inspectedContainer) container() Container {
	c := Container{
		Name: strings.TrimPrefix(i.Name, "/"), Service: i.Config.Labels["com.docker.compose.service"], Image: Image{Ref: i.Config.Image, ID: i.Image},
		Running: i.State.Running && i.State.Status == "running", Status: i.State.Status, Health: i.State.Health.Status,
		ExitCode: i.State.ExitCode, Restarts: i.RestartCount, MemoryLimit: i.HostConfig.Memory,
	}
	c.Number, _ = strconv.Atoi(i.Config.Labels["com.docker.compose.container-number"])
	if c.Status == "exited" {
		c.Status = "exited with " + strconv.Itoa(c.ExitCode)
	}
	switch {
	case !c.Running && i.State.Error != "":
		c.ExitReason = i.State.Error
	case i.State.OOMKilled:
		c.ExitReason = "killed: out of memory"
	case c.Restarts > 0, !c.Running && !i.State.FinishedAt.IsZero() && i.State.Status != "created":
		c.ExitReason = fmt.Sprintf("exit code %d", c.ExitCode)
	}
	first := "" // of several networks, the one whose name sorts first
	for name, network := range i.NetworkSettings.Networks {
		if network.IPAddress != "" && (first == "" || name < first) {
			first, c.Address = name, network.IPAddress
		}
	}
	for _, each := range i.Config.Env {
		if value, ok := strings.CutPrefix(each, "DEPLOYMENT="); ok {
			c.Deployment = value
		}
	}
	for _, limit := range i.HostConfig.Ulimits {
		if limit.Name == "nofile" {
			c.OpenFiles = limit.Soft
		}
	}
	return c
}

// ServiceURL returns the URL at which the host reaches a service of the stack.
func (s *Stack) ServiceURL(ctx context.Context, service, port string) (string, error) {
	all, err := s.Containers(ctx)
	if err != nil {
		return "", err
	}
	for _, c := range all {
		if c.Service == service && c.Running && c.Address != "" {
			return "http://" + net.JoinHostPort(c.Address, port), nil
		}
	}
	return "", fmt.Errorf("%s %w", service, errNotRunning)
}
