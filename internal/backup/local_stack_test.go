package backup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"switchyard/internal/stack"
	"switchyard/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// postgresUser returns the user for PostgreSQL if the tests run as root, or nil.
func postgresUser(t testing.TB) *syscall.Credential {
	t.Helper()
	user, err := findPostgresUser()
	if err != nil {
		t.Fatal(err)
	}
	return user
}

func findPostgresUser() (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, err
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, errors.Join(err1, err2)
}

// chownTo changes the owner of a folder and all below it. It does nothing for nil.
func chownTo(user *syscall.Credential, dir string) error {
	if user == nil {
		return nil
	}
	return filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chown(path, int(user.Uid), int(user.Gid))
	})
}

// A localStack implements Runner and ServiceManager without containers, with servers
// that testkit started on this host.
type localStack struct {
	t        testing.TB
	user     *syscall.Credential
	postgres map[string]*testkit.PG // by service
	redis    *testkit.RedisServer
	files    []string
	stateDir string // the folder in files that is not restored
	acmeDir  string // Traefik's folder; empty means that there is no Traefik
	walDir   string
	primary  string

	// apps are the other services, and whether each one runs. Start and Stop call
	// onStart and onStop, if set, for every service.
	apps    map[string]bool
	onStart func(service string)
	onStop  func(service string)
	// beforeRun, if set, may change or refuse a program before it runs. The service is
	// "scratch" for a program on a scratch server.
	beforeRun func(service string, p *stack.Program) error
	// scratchRoot holds the folders of disposable scratch servers.
	scratchRoot string
	// startFails is how many more starts of a service fail.
	startFails map[string]int
	// stopKills makes Stop kill PostgreSQL, as at the end of a grace period.
	stopKills bool
}

// exec runs a program on this host as a user, with PostgreSQL's programs in PATH.
func (l *localStack) exec(ctx context.Context, env []string, as *syscall.Credential, p stack.Program) error {
	cmd := exec.CommandContext(ctx, "/usr/bin/env", append(env, p.Args...)...)
	postgres, err := testkit.FindPostgresProgram("postgres")
	if err != nil {
		return err
	}
	path := "PATH=" + filepath.Dir(postgres) + ":" + os.Getenv("PATH")
	// Containers have no locale; this host's may translate errors.
	cmd.Env = append(os.Environ(), path, "LC_ALL=C")
	cmd.Args = append([]string{"env", path}, cmd.Args[1:]...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	return stack.Execute(ctx, cmd, p)
}

func (l *localStack) Run(ctx context.Context, service string, p stack.Program) error {
	if l.beforeRun != nil {
		if err := l.beforeRun(service, &p); err != nil {
			return err
		}
	}
	if service == stack.RedisService {
		if l.redis == nil {
			return stack.ErrNoService
		}
		_, port, _ := strings.Cut(l.redis.Addr(), ":")
		if p.Args[0] == "redis-cli" {
			cli, err := testkit.FindProgram("redis-cli", "redis-tools")
			if err != nil {
				return err
			}
			p.Args = append([]string{cli, "-p", port}, p.Args[1:]...)
		}
		return l.exec(ctx, nil, nil, p)
	}
	if service == stack.TraefikService && l.acmeDir != "" {
		for i := range p.Args {
			if p.Args[i] == acmeFolder {
				p.Args[i] = l.acmeDir
			}
		}
		return l.exec(ctx, nil, nil, p)
	}
	pg := l.postgres[service]
	if pg == nil {
		return stack.ErrNoService
	}
	env := []string{"PGHOST=" + filepath.Dir(pg.DataDir()), fmt.Sprintf("PGPORT=%d", pg.Port()), "PGUSER=postgres", "PGDATABASE=" + pg.Database()}
	return l.exec(ctx, env, l.user, p)
}

func (l *localStack) ConfigPaths(context.Context) ([]string, error) { return l.files, nil }

func (l *localStack) StateDir() string { return l.stateDir }

func (l *localStack) ScratchServer(_ context.Context, disposable bool) (ScratchServer, error) {
	s := &localScratchServer{localStack: l, paths: Paths{Archive: l.walDir}}
	if !disposable {
		s.paths.LiveData = l.postgres[l.primary].DataDir()
		s.paths.Dir = filepath.Join(filepath.Dir(s.paths.LiveData), ".restore")
	} else {
		dir, err := os.MkdirTemp(l.scratchRoot, "scratch-")
		if err != nil {
			return nil, err
		}
		s.paths.Dir = dir
	}
	if err := os.MkdirAll(s.paths.Dir, 0o700); err != nil {
		return nil, err
	}
	if l.user != nil {
		if err := os.Chown(s.paths.Dir, int(l.user.Uid), int(l.user.Gid)); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (l *localStack) Primary() (string, error) { return l.primary, nil }

func (l *localStack) SetPrimary(service string) error { l.primary = service; return nil }

func (l *localStack) Services(context.Context) (map[string]bool, error) {
	services := map[string]bool{}
	for name, pg := range l.postgres {
		services[name] = pg.Running()
	}
	for name, on := range l.apps {
		services[name] = on
	}
	return services, nil
}

func (l *localStack) Stop(_ context.Context, services ...string) error {
	for _, name := range services {
		pg := l.postgres[name]
		switch {
		case pg != nil && l.stopKills:
			pg.Kill()
		case pg != nil:
			pg.Stop()
		case name == stack.RedisService:
			l.redis.Stop()
		default:
			l.apps[name] = false
		}
		if l.onStop != nil {
			l.onStop(name)
		}
	}
	return nil
}

func (l *localStack) Start(_ context.Context, services ...string) error {
	for _, name := range services {
		if l.startFails[name] > 0 {
			l.startFails[name]--
			return errors.New("the start failed")
		}
		if pg := l.postgres[name]; pg != nil {
			pg.Start()
		} else if name == stack.RedisService {
			l.redis.Restart()
		} else {
			l.apps[name] = true
		}
		if l.onStart != nil {
			l.onStart(name)
		}
	}
	return nil
}

func (l *localStack) failStarts(service string, times int) { l.startFails[service] = times }

// A localScratchServer is a scratch server in a folder of this host.
type localScratchServer struct {
	*localStack
	paths Paths
}

func (s *localScratchServer) Run(ctx context.Context, p stack.Program) error {
	if s.beforeRun != nil {
		if err := s.beforeRun("scratch", &p); err != nil {
			return err
		}
	}
	return s.exec(ctx, []string{"PGUSER=postgres"}, s.user, p)
}

func (s *localScratchServer) Paths() Paths { return s.paths }

func (s *localScratchServer) Close(ctx context.Context) error {
	if s.paths.LiveData != "" {
		return s.exec(ctx, nil, s.user, stack.Program{Args: []string{"sh", "-c", cleanUpScript, s.paths.Dir, s.paths.stagingDir()}})
	}
	_ = s.exec(ctx, nil, s.user, stack.Program{Args: []string{"pg_ctl", "stop", "--mode=immediate", "--silent", "--pgdata=" + s.paths.Dir + "/data"}})
	return os.RemoveAll(s.paths.Dir)
}
