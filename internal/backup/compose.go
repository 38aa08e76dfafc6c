package backup

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Compose implements Runner and ServiceManager with docker, for a stack of a
// compose file on this host.
type Compose struct {
	// Dir is the folder of the compose file, .env, secrets/ and state/.
	Dir string
	// File is the compose file's name, Project the stack's name in Compose.
	File, Project string
}

// The folders and users in the containers of PostgreSQL. They are those of
// deploy/compose, and a test compares them.
const (
	backupsMount    = "/backups"
	dataMount       = "/var/lib/postgresql/data"
	superuser       = "postgres"
	database        = "switchyard"
	composeLimit    = 5 * time.Minute
	scratchLifetime = "86400"
)

// DefaultFile is the name of a stack's compose file.
const DefaultFile = "docker-compose.prod.yml"

// OpenCompose finds the stack in dir, or if dir is empty in the current folder or
// deploy/compose.
func OpenCompose(dir, file, project string) (*Compose, error) {
	if dir == "" {
		for _, dir = range []string{".", filepath.Join("deploy", "compose")} {
			if _, err := os.Stat(filepath.Join(dir, file)); err == nil {
				break
			}
		}
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("find the stack: %w", err)
	}
	if _, err := os.Stat(filepath.Join(dir, file)); err != nil {
		return nil, fmt.Errorf("%s is not in %s: name its folder with --dir", file, dir)
	}
	return &Compose{Dir: dir, File: file, Project: project}, nil
}

// docker returns a command that runs docker and ends with ctx.
func (c *Compose) docker(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Dir = c.Dir
	// The program has its own process group: Ctrl-C reaches only this command,
	// which then ends docker.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// compose returns a command that runs docker compose on the stack.
func (c *Compose) compose(ctx context.Context, args ...string) *exec.Cmd {
	return c.docker(ctx, append([]string{"compose", "-p", c.Project, "-f", c.File}, args...)...)
}

// dockerOutput runs a docker command within composeLimit and returns its output.
func (c *Compose) dockerOutput(ctx context.Context, cmd func(context.Context, ...string) *exec.Cmd, args ...string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, composeLimit, fmt.Errorf("docker did not end within %v", composeLimit))
	defer cancel()
	run := func(ctx context.Context, p Program) error {
		return execute(ctx, cmd(ctx, args...), p)
	}
	return output(ctx, run, append([]string{"docker"}, args...)...)
}

// Run runs a program with docker compose exec. The container's shell reads Redis'
// password from its file, so that no command line shows it.
func (c *Compose) Run(ctx context.Context, service string, p Program) error {
	args := []string{"exec", "-T"}
	switch service {
	case RedisService:
		p.Args = append([]string{"sh", "-c", `REDISCLI_AUTH=$(sed -n 's/^requirepass //p' /run/secrets/redis_auth 2>/dev/null) exec "$0" "$@"`}, p.Args...)
	case PostgresService, PostgresReplicaService:
		args = append(args, "-e", "PGUSER="+superuser, "-e", "PGDATABASE="+database)
	}
	program := p
	if service == RedisService {
		program.Args = p.Args[3:] // an error names the program, not the shell
	}
	err := execute(ctx, c.compose(ctx, append(append(args, service), p.Args...)...), program)
	if err != nil && strings.Contains(err.Error(), "no such service") {
		return fmt.Errorf("%w: %s", ErrNoService, service)
	}
	return err
}

// BackupDir returns the path of BACKUP_DIR on this host.
func (c *Compose) BackupDir(ctx context.Context) (string, error) {
	config, err := c.config(ctx)
	if err != nil {
		return "", err
	}
	for _, v := range config.Services[PostgresService].Volumes {
		if v.Target == backupsMount && v.Type == "bind" {
			return v.Source, nil
		}
	}
	return "", fmt.Errorf("the service %s of %s mounts no folder of this host at %s: set BACKUP_DIR", PostgresService, c.File, backupsMount)
}

// Services returns the services that have containers, and whether each one runs.
func (c *Compose) Services(ctx context.Context) (map[string]bool, error) {
	out, err := c.dockerOutput(ctx, c.docker, "ps", "-a", "--filter", "label=com.docker.compose.project="+c.Project, "--filter", "label=com.docker.compose.oneoff=False",
		"--format", `{{.Label "com.docker.compose.service"}} {{.State}}`)
	if err != nil {
		return nil, fmt.Errorf("list the services: %w", err)
	}
	services := map[string]bool{}
	for line := range strings.Lines(out) {
		name, state, _ := strings.Cut(strings.TrimSpace(line), " ")
		services[name] = services[name] || state == "running" || state == "restarting"
	}
	return services, nil
}

// Stop stops services with one command, so that nodes do not wait for each other's
// drains. Compose begins with the services that depend on others.
func (c *Compose) Stop(ctx context.Context, services ...string) error {
	if _, err := c.dockerOutput(ctx, c.compose, append([]string{"stop"}, services...)...); err != nil {
		return fmt.Errorf("stop %s: %w", strings.Join(services, " "), err)
	}
	return nil
}

// Start starts services without recreating their containers, and waits until they
// are healthy.
func (c *Compose) Start(ctx context.Context, services ...string) error {
	args := append([]string{"up", "-d", "--no-deps", "--no-recreate", "--wait"}, services...)
	if _, err := c.dockerOutput(ctx, c.compose, args...); err != nil {
		return fmt.Errorf("start %s: %w", strings.Join(services, " "), err)
	}
	return nil
}

// StateDir returns the folder in which promotions and deploys record their state.
func (c *Compose) StateDir() string { return filepath.Join(c.Dir, "state") }

// primaryFile returns the path of the file that names the primary. Both PostgreSQL
// servers read it when they start.
func (c *Compose) primaryFile() string { return filepath.Join(c.StateDir(), "postgres", "primary") }

// Primary returns the service that primaryFile names. Without the file it is
// PostgresService.
func (c *Compose) Primary() (string, error) {
	b, err := os.ReadFile(c.primaryFile())
	if errors.Is(err, fs.ErrNotExist) {
		return PostgresService, nil
	}
	if err != nil {
		return "", fmt.Errorf("find the primary: %w", err)
	}
	name := strings.TrimSpace(string(b))
	if name != PostgresService && name != PostgresReplicaService {
		return "", fmt.Errorf("%s names %q, which is neither %s nor %s", c.primaryFile(), name, PostgresService, PostgresReplicaService)
	}
	return name, nil
}

// SetPrimary writes primaryFile.
func (c *Compose) SetPrimary(service string) error {
	return writeFileAtomic(c.primaryFile(), []byte(service+"\n"), 0o644)
}

// ConfigPaths returns the folder of the compose file, and the files and folders
// that its services mount from elsewhere on this host.
func (c *Compose) ConfigPaths(ctx context.Context) ([]string, error) {
	config, err := c.config(ctx)
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

// A composeConfig is the part of docker compose config's output that this package
// reads.
type composeConfig struct {
	Services map[string]struct {
		Image   string
		Volumes []mount
	}
	Secrets map[string]struct{ File string }
}

type mount struct{ Type, Source, Target string }

// config returns the stack's compose file with the values of .env.
func (c *Compose) config(ctx context.Context) (*composeConfig, error) {
	out, err := c.dockerOutput(ctx, c.compose, "config", "--format", "json")
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(c.Dir, c.File), err)
	}
	config := new(composeConfig)
	if err := json.Unmarshal([]byte(out), config); err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(c.Dir, c.File), err)
	}
	return config, nil
}

// ScratchServer starts a container of the primary's own image that only sleeps, and
// has no network. It first removes scratch servers that killed commands left.
func (c *Compose) ScratchServer(ctx context.Context, disposable bool) (ScratchServer, error) {
	config, err := c.config(ctx)
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
	s := &composeScratchServer{stack: c, name: c.Project + "-bench-" + strings.ToLower(rand.Text()[:8])}
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
		s.paths.Dir, s.paths.LiveData = dataMount+"/.restore", dataMount+"/pgdata"
	}
	if _, err := c.dockerOutput(ctx, c.docker, append(args, config.Services[service].Image, scratchLifetime)...); err != nil {
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
func (c *Compose) removeStaleScratchServers(ctx context.Context) error {
	out, err := c.dockerOutput(ctx, c.docker, "ps", "-aq", "--filter", "label="+scratchLabel+"="+c.Project)
	if err != nil {
		return fmt.Errorf("list stale scratch servers: %w", err)
	}
	if ids := strings.Fields(out); len(ids) > 0 {
		if _, err := c.dockerOutput(ctx, c.docker, append([]string{"rm", "-fv"}, ids...)...); err != nil {
			return fmt.Errorf("remove stale scratch servers: %w", err)
		}
	}
	return nil
}

// ensureContainer returns the id of a service's container. It creates a missing
// one, with which Compose creates the volumes.
func (c *Compose) ensureContainer(ctx context.Context, service string) (string, error) {
	find := func() (string, error) { return c.dockerOutput(ctx, c.compose, "ps", "-aq", service) }
	id, err := find()
	if err == nil && id == "" {
		if _, err = c.dockerOutput(ctx, c.compose, "up", "--no-start", "--no-deps", "--no-recreate", service); err == nil {
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
	stack *Compose
	name  string
	paths Paths
}

func (s *composeScratchServer) Run(ctx context.Context, p Program) error {
	args := append([]string{"exec", "-i", "-e", "PGUSER=" + superuser, s.name}, p.Args...)
	return execute(ctx, s.stack.docker(ctx, args...), p)
}

func (s *composeScratchServer) Paths() Paths { return s.paths }

func (s *composeScratchServer) Close(ctx context.Context) error {
	if s.paths.LiveData != "" { // the volume remains: leave nothing in it
		if _, err := output(ctx, s.Run, "sh", "-c", cleanUpScript, s.paths.Dir, s.paths.stagingDir()); err != nil {
			return fmt.Errorf("clear the scratch server: %w", err)
		}
	}
	if _, err := s.stack.dockerOutput(ctx, s.stack.docker, "rm", "-fv", s.name); err != nil {
		return fmt.Errorf("remove the scratch server: %w", err)
	}
	return nil
}
