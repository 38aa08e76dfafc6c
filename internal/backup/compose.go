package backup

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"switchyard/internal/stack"
)

// Compose implements Runner and ServiceManager with docker, for a stack of a
// compose file on this host.
type Compose struct{ *stack.Stack }

// The folders and users in the containers of PostgreSQL. They are those of
// deploy/compose, and a test compares them.
const (
	backupsMount    = "/backups"
	dataMount       = "/var/lib/postgresql"
	superuser       = "postgres"
	scratchLifetime = "86400"
)

// BackupDir returns the path of BACKUP_DIR on this host.
func (c Compose) BackupDir(ctx context.Context) (string, error) {
	config, err := c.Config(ctx)
	if err != nil {
		return "", err
	}
	for _, v := range config.Services[stack.PostgresService].Volumes {
		if v.Target == backupsMount && v.Type == "bind" {
			return v.Source, nil
		}
	}
	return "", fmt.Errorf("the service %s of %s mounts no folder of this host at %s: set BACKUP_DIR", stack.PostgresService, c.File, backupsMount)
}

// ConfigPaths returns the folder of the compose file, and the files and folders
// that its services mount from elsewhere on this host.
func (c Compose) ConfigPaths(ctx context.Context) ([]string, error) {
	config, err := c.Config(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("find the configuration: %w", err)
	}
	paths := []string{dir}
	for _, name := range sortedKeys(config.Services) {
		for _, v := range config.Services[name].Volumes {
			if v.Type == "bind" && v.Target != backupsMount && !isHostMount(v.Source) {
				paths = append(paths, v.Source)
			}
		}
	}
	for _, s := range config.Secrets {
		paths = append(paths, s.File)
	}
	return outermostPaths(paths), nil
}

// isHostMount reports whether a mount shows the host itself, as an exporter's does.
func isHostMount(path string) bool {
	return path == "/" || path == "/var/run/docker.sock" || path == "/run/docker.sock" ||
		strings.HasPrefix(path, "/proc") || strings.HasPrefix(path, "/sys") || strings.HasPrefix(path, "/dev")
}

// outermostPaths sorts the paths and removes those that lie in another one.
func outermostPaths(paths []string) (out []string) {
	slices.Sort(paths)
	for _, p := range paths {
		if p == "" || len(out) > 0 && (p == out[len(out)-1] || strings.HasPrefix(p, out[len(out)-1]+"/")) {
			continue
		}
		out = append(out, p)
	}
	return out
}

// ScratchServer starts a container of the primary's own image that only sleeps, and
// has no network. It first removes scratch servers that killed commands left.
func (c Compose) ScratchServer(ctx context.Context, disposable bool) (ScratchServer, error) {
	config, err := c.Config(ctx)
	if err != nil {
		return nil, err
	}
	service, err := c.Primary()
	if err != nil {
		return nil, err
	}
	if err := c.removeStaleScratchServers(ctx); err != nil {
		return nil, err
	}
	s := &composeScratchServer{stack: c.Stack, name: c.Project + "-bench-" + strings.ToLower(rand.Text()[:8])}
	s.paths = Paths{Dir: dataMount + "/bench", Archive: backupsMount + "/" + walFolder}
	args := []string{
		"run", "-d", "--rm", "--init", "--name", s.name, "--label", scratchLabel + "=" + c.Project, "--network", "none", "--cap-drop", "ALL",
		"--security-opt", "no-new-privileges:true", "--read-only", "--tmpfs", "/tmp:mode=1777", "--shm-size", "256m", "--pids-limit", "256",
		"--user", "70:70", "--entrypoint", "sleep",
	}
	if disposable {
		backups, err := c.BackupDir(ctx)
		if err != nil {
			return nil, err
		}
		args = append(args, "-v", dataMount, "-v", backups+":"+backupsMount+":ro")
	} else {
		container, err := c.ensureContainer(ctx, service)
		if err != nil {
			return nil, err
		}
		args = append(args, "--volumes-from", container)
		s.paths.LiveData = config.Services[service].Environment["PGDATA"]
		if s.paths.LiveData == "" {
			return nil, fmt.Errorf("the service %s of %s sets no PGDATA", service, c.File)
		}
		s.paths.Dir = path.Join(path.Dir(s.paths.LiveData), ".restore")
	}
	if _, err := c.Docker(ctx, stack.StartLimit, append(args, config.Services[service].Image, scratchLifetime)...); err != nil {
		return nil, err
	}
	if _, err := output(ctx, s.Run, "mkdir", "-p", s.paths.Dir); err != nil {
		return nil, errors.Join(err, s.Close(ctx))
	}
	return s, nil
}

// scratchLabel marks the containers of scratch servers.
const scratchLabel = "switchyard.bench"

// removeStaleScratchServers removes the scratch servers of killed commands. The
// lock on the repository ensures that no other command uses them.
func (c Compose) removeStaleScratchServers(ctx context.Context) error {
	out, err := c.Docker(ctx, stack.QuickLimit, "ps", "-aq", "--filter", "label="+scratchLabel+"="+c.Project)
	if err != nil {
		return fmt.Errorf("list stale scratch servers: %w", err)
	}
	if ids := strings.Fields(string(out)); len(ids) > 0 {
		if _, err := c.Docker(ctx, stack.StartLimit, append([]string{"rm", "-fv"}, ids...)...); err != nil {
			return fmt.Errorf("remove stale scratch servers: %w", err)
		}
	}
	return nil
}

// ensureContainer returns the id of a service's container. It creates a missing
// one, with which Compose creates the volumes.
func (c Compose) ensureContainer(ctx context.Context, service string) (string, error) {
	find := func() (string, error) {
		out, err := c.Compose(ctx, stack.QuickLimit, nil, "ps", "-aq", service)
		return strings.TrimSpace(string(out)), err
	}
	id, err := find()
	if err == nil && id == "" {
		if _, err = c.Compose(ctx, stack.StartLimit, nil, "up", "--no-start", "--no-deps", "--no-recreate", service); err == nil {
			id, err = find()
		}
	}
	if err == nil && id == "" {
		err = errors.New("docker compose up --no-start created no container")
	}
	if err != nil {
		return "", fmt.Errorf("find the container of %s: %w", service, err)
	}
	return strings.Fields(id)[0], nil
}

// A composeScratchServer is a container that only sleeps.
type composeScratchServer struct {
	stack *stack.Stack
	name  string
	paths Paths
}

func (s *composeScratchServer) Run(ctx context.Context, p stack.Program) error {
	p.Args = append([]string{"env", "PGUSER=" + superuser}, p.Args...)
	return s.stack.Exec(ctx, s.name, p)
}

func (s *composeScratchServer) Paths() Paths { return s.paths }

func (s *composeScratchServer) Close(ctx context.Context) error {
	if s.paths.LiveData != "" { // the volume remains: leave nothing in it
		if _, err := output(ctx, s.Run, "sh", "-c", cleanUpScript, s.paths.Dir, s.paths.stagingDir()); err != nil {
			return fmt.Errorf("clear the scratch server: %w", err)
		}
	}
	if _, err := s.stack.Docker(ctx, stack.StartLimit, "rm", "-fv", s.name); err != nil {
		return fmt.Errorf("remove the scratch server: %w", err)
	}
	return nil
}
