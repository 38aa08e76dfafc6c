package stack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"
)

// The services that the commands use, by their names in the compose file.
const (
	PostgresService        = "postgres"
	PostgresReplicaService = "postgres_replica"
	RedisService           = "redis"
	TraefikService         = "traefik"
)

// ErrNoService says that the stack does not have a service.
var ErrNoService = errors.New("the stack has no such service")

// Docker runs docker for at most limit, and returns its output.
func (s *Stack) Docker(ctx context.Context, limit time.Duration, args ...string) ([]byte, error) {
	return s.output(ctx, limit, false, nil, "docker", args...)
}

// Compose runs docker compose on the stack for at most limit, with env in its
// environment, and returns its output.
func (s *Stack) Compose(ctx context.Context, limit time.Duration, env []string, args ...string) ([]byte, error) {
	return s.output(ctx, limit, false, env, "docker", composeArgs(s, args...)...)
}

func composeArgs(s *Stack, args ...string) []string {
	return append([]string{"compose", "-p", s.Project, "-f", s.File}, args...)
}

// Run runs a program beside a running service, as a user who may connect to it
// without a password. The environment leads psql and similar programs to the right
// server and database.
func (s *Stack) Run(ctx context.Context, service string, p Program) error {
	args := []string{"exec", "-T"}
	program := p.Args
	switch service {
	case RedisService:
		// The container's shell reads Redis' password from its file, so that no command
		// line shows it.
		program = append([]string{"sh", "-c", `REDISCLI_AUTH=$(sed -n 's/^requirepass //p' /run/secrets/redis_auth 2>/dev/null) exec "$0" "$@"`}, program...)
	case PostgresService, PostgresReplicaService:
		args = append(args, "-e", "PGUSER=postgres", "-e", "PGDATABASE=switchyard")
	}
	args = append(append(args, service), program...)
	err := Execute(ctx, s.command(ctx, "docker", composeArgs(s, args...)...), p)
	if err != nil && strings.Contains(err.Error(), "no such service") {
		return fmt.Errorf("%w: %s", ErrNoService, service)
	}
	return err
}

// Exec runs a program in a container by the container's name.
func (s *Stack) Exec(ctx context.Context, container string, p Program) error {
	return Execute(ctx, s.command(ctx, "docker", append([]string{"exec", "-i", container}, p.Args...)...), p)
}

// Logs writes the log lines of services since a moment to w, without prefixes.
func (s *Stack) Logs(ctx context.Context, since time.Time, w io.Writer, services ...string) error {
	args := composeArgs(s, append([]string{"logs", "--no-color", "--no-log-prefix", "--since", since.UTC().Format(time.RFC3339)}, services...)...)
	if err := Execute(ctx, s.command(ctx, "docker", args...), Program{Args: []string{"docker"}, Stdout: w}); err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	return nil
}

// Tail returns the last lines that a container logged, with their times.
func (s *Stack) Tail(ctx context.Context, limit time.Duration, container, lines string) ([]byte, error) {
	return s.output(ctx, limit, true, nil, "docker", "logs", "--timestamps", "--tail", lines, container)
}

// Services returns the services that have containers, and whether each one runs.
func (s *Stack) Services(ctx context.Context) (map[string]bool, error) {
	all, err := s.containers(ctx)
	if err != nil {
		return nil, err
	}
	services := map[string]bool{}
	for _, c := range all {
		services[c.Service] = services[c.Service] || c.Status == "running" || c.Status == "restarting"
	}
	return services, nil
}

// Stop stops services with one command, so that nodes do not wait for each other's
// drains. Compose begins with the services that depend on others.
func (s *Stack) Stop(ctx context.Context, services ...string) error {
	if _, err := s.Compose(ctx, StartLimit, nil, append([]string{"stop"}, services...)...); err != nil {
		return fmt.Errorf("stop %s: %w", strings.Join(services, " "), err)
	}
	return nil
}

// Start starts services without recreating their containers, and waits until they
// are healthy.
func (s *Stack) Start(ctx context.Context, services ...string) error {
	args := append([]string{"up", "-d", "--no-deps", "--no-recreate", "--wait"}, services...)
	if _, err := s.Compose(ctx, StartLimit, nil, args...); err != nil {
		return fmt.Errorf("start %s: %w", strings.Join(services, " "), err)
	}
	return nil
}

// A Config is what the commands read of a compose file with the values of .env.
type Config struct {
	Services map[string]struct {
		Image           string
		Profiles        []string
		StopGracePeriod string `json:"stop_grace_period"`
		Environment     map[string]string
		Volumes         []struct{ Type, Source, Target string }
	}
	Secrets map[string]struct{ File string }
}

// Config returns the stack's compose file with the values of .env.
func (s *Stack) Config(ctx context.Context) (*Config, error) {
	out, err := s.Compose(ctx, QuickLimit, nil, "config", "--format", "json")
	config := new(Config)
	if err == nil {
		err = json.Unmarshal(out, config)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(s.Dir, s.File), err)
	}
	return config, nil
}
