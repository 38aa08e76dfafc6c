package backup

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Container is the state of one of the stack's containers.
type Container struct {
	Name, Service string
	Running       bool
	// Status is docker's status, with the exit code of a container that exited.
	// Health is empty if the container has no health check.
	Status, Health string
	ExitCode       int
	Restarts       int
	// Address is an address on a network of the stack, or empty.
	Address string
}

// Containers returns the stack's containers, running or not, sorted by name, except
// those of docker compose run.
func (c *Compose) Containers(ctx context.Context) ([]Container, error) {
	out, err := c.dockerOutput(ctx, c.docker, "ps", "-aq", "--filter", "label=com.docker.compose.project="+c.Project, "--filter", "label=com.docker.compose.oneoff=False")
	if err != nil {
		return nil, fmt.Errorf("list the containers: %w", err)
	}
	ids := strings.Fields(out)
	if len(ids) == 0 {
		return nil, fmt.Errorf("%s has no container: is the stack up? --project and --dir name it", c.Project)
	}
	// A container that is removed between ps and inspect makes inspect fail, but it
	// still prints the others.
	out, err = c.dockerOutput(ctx, c.docker, append([]string{"inspect", "--type", "container"}, ids...)...)
	var all []inspectedContainer
	if e := json.Unmarshal([]byte(out), &all); e != nil || len(all) == 0 {
		if err == nil { // docker itself reports no error
			err = cmp.Or(e, errors.New("it printed no container"))
		}
		return nil, fmt.Errorf("list the containers: docker inspect: %w", err)
	}
	containers := make([]Container, len(all))
	for i, each := range all {
		containers[i] = each.container()
	}
	slices.SortFunc(containers, func(a, b Container) int { return strings.Compare(a.Name, b.Name) })
	return containers, nil
}

// inspectedContainer is the part of docker inspect's output that this package reads.
type inspectedContainer struct {
	Name  string
	State struct {
		Status   string
		Running  bool
		ExitCode int
		Health   *struct{ Status string }
	}
	RestartCount    int
	Config          struct{ Labels map[string]string }
	NetworkSettings struct {
		Networks map[string]struct{ IPAddress string }
	}
}

func (i inspectedContainer) container() Container {
	c := Container{
		Name: strings.TrimPrefix(i.Name, "/"), Service: i.Config.Labels["com.docker.compose.service"],
		Running: i.State.Running && i.State.Status == "running", Status: i.State.Status, ExitCode: i.State.ExitCode, Restarts: i.RestartCount,
	}
	if c.Status == "exited" {
		c.Status = "exited with " + strconv.Itoa(c.ExitCode)
	}
	if i.State.Health != nil {
		c.Health = i.State.Health.Status
	}
	for _, name := range sortedKeys(i.NetworkSettings.Networks) {
		if ip := i.NetworkSettings.Networks[name].IPAddress; ip != "" && c.Address == "" {
			c.Address = ip
		}
	}
	return c
}

// Logs writes the log lines of services since a moment to w, without prefixes.
func (c *Compose) Logs(ctx context.Context, since time.Time, w io.Writer, services ...string) error {
	args := append([]string{"logs", "--no-color", "--no-log-prefix", "--since", since.UTC().Format(time.RFC3339)}, services...)
	err := execute(ctx, c.compose(ctx, args...), Program{Args: append([]string{"docker", "compose"}, args...), Stdout: w})
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	return nil
}

// Exec runs a program in a container by the container's name.
func (c *Compose) Exec(ctx context.Context, container string, p Program) error {
	return execute(ctx, c.docker(ctx, append([]string{"exec", "-i", container}, p.Args...)...), p)
}
