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

// A Compose is a Site and a Switchboard: the stack of a Compose file on this
// host, by way of docker.
type Compose struct {
	// Dir is the folder of the compose file, .env, secrets/ and state/.
	Dir string
	// File is the compose file's name in it, Project what Compose calls the stack.
	File, Project string
}

// Where the containers of PostgreSQL have their folders, and who is who there:
// deploy/compose holds the other end of this, and a test both.
const (
	backupsMount    = "/backups"
	dataMount       = "/var/lib/postgresql/data"
	superuser       = "postgres"
	database        = "switchyard"
	composeLimit    = 5 * time.Minute
	scratchLifetime = "86400"
)

// DefaultFile is the compose file that a stack is known by.
const DefaultFile = "docker-compose.prod.yml"

// OpenCompose finds the stack: in dir, or where its files are usually.
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

// docker returns a command of docker that ends with ctx.
func (c *Compose) docker(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Dir = c.Dir
	// A group of its own: Ctrl-C is for this command, which ends docker itself.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

func (c *Compose) compose(ctx context.Context, args ...string) *exec.Cmd {
	return c.docker(ctx, append([]string{"compose", "-p", c.Project, "-f", c.File}, args...)...)
}

// dockerOutput runs a command of docker and returns what it printed.
func (c *Compose) dockerOutput(ctx context.Context, cmd func(context.Context, ...string) *exec.Cmd, args ...string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, composeLimit, fmt.Errorf("docker did not end within %v", composeLimit))
	defer cancel()
	run := func(ctx context.Context, p Program) error {
		return execute(ctx, cmd(ctx, args...), p)
	}
	return output(ctx, run, append([]string{"docker"}, args...)...)
}

// Run runs a program by docker compose exec. Redis' password is read where it
// lies, so that no command line shows it.
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
		program.Args = p.Args[3:] // who is told of when it fails
	}
	err := execute(ctx, c.compose(ctx, append(append(args, service), p.Args...)...), program)
	if err != nil && strings.Contains(err.Error(), "no such service") {
		return fmt.Errorf("%w: %s", ErrNoService, service)
	}
	return err
}

// BackupDir returns BACKUP_DIR as this host sees it.
func (c *Compose) BackupDir(ctx context.Context) (string, error) {
	m, err := c.config(ctx)
	if err != nil {
		return "", err
	}
	for _, v := range m.Services[PostgresService].Volumes {
		if v.Target == backupsMount && v.Type == "bind" {
			return v.Source, nil
		}
	}
	return "", fmt.Errorf("the service %s of %s mounts no folder of this host at %s: set BACKUP_DIR", PostgresService, c.File, backupsMount)
}

// Services asks docker for all containers of the project.
func (c *Compose) Services(ctx context.Context) (map[string]bool, error) {
	out, err := c.dockerOutput(ctx, c.docker, "ps", "-a", "--filter", "label=com.docker.compose.project="+c.Project, "--filter", "label=com.docker.compose.oneoff=False",
		"--format", `{{.Label "com.docker.compose.service"}} {{.State}}`)
	if err != nil {
		return nil, fmt.Errorf("look at the services: %w", err)
	}
	services := map[string]bool{}
	for line := range strings.Lines(out) {
		name, state, _ := strings.Cut(strings.TrimSpace(line), " ")
		services[name] = services[name] || state == "running" || state == "restarting"
	}
	return services, nil
}

// Stop stops services together, so that nodes do not wait for each other's
// drains; Compose begins with those that depend on others.
func (c *Compose) Stop(ctx context.Context, services ...string) error {
	if _, err := c.dockerOutput(ctx, c.compose, append([]string{"stop"}, services...)...); err != nil {
		return fmt.Errorf("stop %s: %w", strings.Join(services, " "), err)
	}
	return nil
}

// Start starts services as they are, and waits until they are healthy.
func (c *Compose) Start(ctx context.Context, services ...string) error {
	args := append([]string{"up", "-d", "--no-deps", "--no-recreate", "--wait"}, services...)
	if _, err := c.dockerOutput(ctx, c.compose, args...); err != nil {
		return fmt.Errorf("start %s: %w", strings.Join(services, " "), err)
	}
	return nil
}

// StateDir is where promotions and deploys write down how things stand.
func (c *Compose) StateDir() string { return filepath.Join(c.Dir, "state") }

func (c *Compose) primaryFile() string { return filepath.Join(c.StateDir(), "postgres", "primary") }

// Primary reads the file by which the two PostgreSQL start as what they are.
func (c *Compose) Primary() (string, error) {
	b, err := os.ReadFile(c.primaryFile())
	if errors.Is(err, fs.ErrNotExist) {
		return PostgresService, nil
	}
	if err != nil {
		return "", fmt.Errorf("who is the primary: %w", err)
	}
	name := strings.TrimSpace(string(b))
	if name != PostgresService && name != PostgresReplicaService {
		return "", fmt.Errorf("%s says %q, which is neither %s nor %s", c.primaryFile(), name, PostgresService, PostgresReplicaService)
	}
	return name, nil
}

// SetPrimary writes that file.
func (c *Compose) SetPrimary(service string) error {
	return writeFileAtomic(c.primaryFile(), []byte(service+"\n"), 0o644)
}

// ConfigPaths returns the folder of the compose file, and what its services mount
// from elsewhere on this host, but for the machine itself.
func (c *Compose) ConfigPaths(ctx context.Context) ([]string, error) {
	m, err := c.config(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("find the configuration: %w", err)
	}
	paths := []string{dir}
	for _, name := range sortedKeys(m.Services) {
		for _, v := range m.Services[name].Volumes {
			if v.Type == "bind" && v.Target != backupsMount && !isHostMount(v.Source) {
				paths = append(paths, v.Source)
			}
		}
	}
	for _, s := range m.Secrets {
		paths = append(paths, s.File)
	}
	return outermostPaths(paths), nil
}

// isHostMount says whether a mount shows the host, as exporters have it.
func isHostMount(path string) bool {
	return path == "/" || path == "/var/run/docker.sock" || path == "/run/docker.sock" ||
		strings.HasPrefix(path, "/proc") || strings.HasPrefix(path, "/sys") || strings.HasPrefix(path, "/dev")
}

// outermostPaths leaves out what lies in another one.
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

// A composeConfig is what docker compose config tells, as far as it matters here.
type composeConfig struct {
	Services map[string]struct {
		Image   string
		Volumes []mount
	}
	Secrets map[string]struct{ File string }
}

type mount struct{ Type, Source, Target string }

func (c *Compose) config(ctx context.Context) (*composeConfig, error) {
	out, err := c.dockerOutput(ctx, c.compose, "config", "--format", "json")
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(c.Dir, c.File), err)
	}
	m := new(composeConfig)
	if err := json.Unmarshal([]byte(out), m); err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(c.Dir, c.File), err)
	}
	return m, nil
}

// ScratchServer starts a container of the primary's own image that does nothing, and
// has no network.
func (c *Compose) ScratchServer(ctx context.Context, disposable bool) (ScratchServer, error) {
	m, err := c.config(ctx)
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
	b := &composeScratchServer{stack: c, name: c.Project + "-bench-" + strings.ToLower(rand.Text()[:8])}
	b.paths = Paths{Dir: dataMount + "/bench", Archive: backupsMount + "/" + walFolder}
	args := []string{
		"run", "-d", "--rm", "--init", "--name", b.name, "--label", scratchLabel + "=" + c.Project, "--network", "none", "--cap-drop", "ALL",
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
		b.paths.Dir, b.paths.LiveData = dataMount+"/.restore", dataMount+"/pgdata"
	}
	if _, err := c.dockerOutput(ctx, c.docker, append(args, m.Services[service].Image, scratchLifetime)...); err != nil {
		return nil, err
	}
	if _, err := output(ctx, b.Run, "mkdir", "-p", b.paths.Dir); err != nil {
		return nil, errors.Join(err, b.Close(ctx))
	}
	return b, nil
}

// scratchLabel marks containers of benches.
const scratchLabel = "switchyard.bench"

// removeStaleScratchServers removes benches of commands that were killed: the lock on the folder of
// backups says that none is at work.
func (c *Compose) removeStaleScratchServers(ctx context.Context) error {
	out, err := c.dockerOutput(ctx, c.docker, "ps", "-aq", "--filter", "label="+scratchLabel+"="+c.Project)
	if err != nil {
		return fmt.Errorf("look for benches left behind: %w", err)
	}
	if ids := strings.Fields(out); len(ids) > 0 {
		if _, err := c.dockerOutput(ctx, c.docker, append([]string{"rm", "-fv"}, ids...)...); err != nil {
			return fmt.Errorf("remove benches left behind: %w", err)
		}
	}
	return nil
}

// ensureContainer returns the id of a service's container, which is made where there
// is none: with it Compose makes the volumes.
func (c *Compose) ensureContainer(ctx context.Context, service string) (string, error) {
	find := func() (string, error) { return c.dockerOutput(ctx, c.compose, "ps", "-aq", service) }
	id, err := find()
	if err == nil && id == "" {
		if _, err = c.dockerOutput(ctx, c.compose, "up", "--no-start", "--no-deps", "--no-recreate", service); err == nil {
			id, err = find()
		}
	}
	if err == nil && id == "" {
		err = errors.New("docker compose up --no-start made no container")
	}
	if err != nil {
		return "", fmt.Errorf("find the container of %s: %w", service, err)
	}
	return strings.Fields(id)[0], nil
}

// A composeScratchServer is a container that sleeps.
type composeScratchServer struct {
	stack *Compose
	name  string
	paths Paths
}

func (b *composeScratchServer) Run(ctx context.Context, p Program) error {
	args := append([]string{"exec", "-i", "-e", "PGUSER=" + superuser, b.name}, p.Args...)
	return execute(ctx, b.stack.docker(ctx, args...), p)
}

func (b *composeScratchServer) Paths() Paths { return b.paths }

func (b *composeScratchServer) Close(ctx context.Context) error {
	if b.paths.LiveData != "" { // the volume stays: leave nothing in it
		if _, err := output(ctx, b.Run, "sh", "-c", cleanUpScript, b.paths.Dir, b.paths.stagingDir()); err != nil {
			return fmt.Errorf("clear the bench: %w", err)
		}
	}
	if _, err := b.stack.dockerOutput(ctx, b.stack.docker, "rm", "-fv", b.name); err != nil {
		return fmt.Errorf("remove the bench: %w", err)
	}
	return nil
}
