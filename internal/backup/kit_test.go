package backup

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"switchyard/internal/client"
	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// postgresUser is whom PostgreSQL runs as where the tests run as root; nil
// elsewhere.
func postgresUser(t testing.TB) *syscall.Credential {
	t.Helper()
	if os.Getuid() != 0 {
		return nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// chownTo gives a folder and what is in it to whom PostgreSQL runs as.
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

// A localStack is a Site and a Switchboard without containers: servers that the test
// kit started, on this host.
type localStack struct {
	t        testing.TB
	user     *syscall.Credential
	postgres map[string]*testkit.PG // by service
	redis    *testkit.RedisServer
	files    []string
	stateDir string // of files, the folder that is not restored
	acmeDir  string // Traefik's folder; empty: there is no Traefik
	walDir   string
	primary  string

	// apps are what else runs; what Start and Stop do to them.
	apps    map[string]bool
	onStart func(service string)
	onStop  func(service string)
	// spoil, if set, may change or stop a program before it runs.
	beforeRun func(service string, p *Program) error
	// scratchRoot holds scratch benches.
	scratchRoot string
	// startFails is how often starting a service fails.
	startFails map[string]int
	// stopKills makes Stop end PostgreSQL as a grace period that is over does.
	stopKills bool
}

func (l *localStack) exec(ctx context.Context, env []string, as *syscall.Credential, p Program) error {
	cmd := exec.CommandContext(ctx, "/usr/bin/env", append(env, p.Args...)...)
	postgres, err := testkit.FindPostgresProgram("postgres")
	if err != nil {
		return err
	}
	path := "PATH=" + filepath.Dir(postgres) + ":" + os.Getenv("PATH")
	cmd.Env = append(os.Environ(), path)
	cmd.Args = append([]string{"env", path}, cmd.Args[1:]...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	return execute(ctx, cmd, p)
}

func (l *localStack) Run(ctx context.Context, service string, p Program) error {
	if l.beforeRun != nil {
		if err := l.beforeRun(service, &p); err != nil {
			return err
		}
	}
	if service == RedisService {
		if l.redis == nil {
			return ErrNoService
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
	if service == TraefikService && l.acmeDir != "" {
		for i := range p.Args {
			if p.Args[i] == acmeFolder {
				p.Args[i] = l.acmeDir
			}
		}
		return l.exec(ctx, nil, nil, p)
	}
	pg := l.postgres[service]
	if pg == nil {
		return ErrNoService
	}
	env := []string{"PGHOST=" + filepath.Dir(pg.DataDir()), fmt.Sprintf("PGPORT=%d", pg.Port()), "PGUSER=postgres", "PGDATABASE=" + pg.Database()}
	return l.exec(ctx, env, l.user, p)
}

func (l *localStack) ConfigPaths(context.Context) ([]string, error) { return l.files, nil }

func (l *localStack) StateDir() string { return l.stateDir }

func (l *localStack) ScratchServer(_ context.Context, disposable bool) (ScratchServer, error) {
	b := &localScratchServer{localStack: l, paths: Paths{Archive: l.walDir}}
	if !disposable {
		b.paths.LiveData = l.postgres[l.primary].DataDir()
		b.paths.Dir = filepath.Join(filepath.Dir(b.paths.LiveData), ".restore")
	} else {
		dir, err := os.MkdirTemp(l.scratchRoot, "bench-")
		if err != nil {
			return nil, err
		}
		b.paths.Dir = dir
	}
	if err := os.MkdirAll(b.paths.Dir, 0o700); err != nil {
		return nil, err
	}
	if l.user != nil {
		if err := os.Chown(b.paths.Dir, int(l.user.Uid), int(l.user.Gid)); err != nil {
			return nil, err
		}
	}
	return b, nil
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
		case name == RedisService:
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
			return errors.New("no such luck")
		}
		if pg := l.postgres[name]; pg != nil {
			pg.Start()
		} else if name == RedisService {
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

type localScratchServer struct {
	*localStack
	paths Paths
}

func (b *localScratchServer) Run(ctx context.Context, p Program) error {
	if b.beforeRun != nil {
		if err := b.beforeRun("bench", &p); err != nil {
			return err
		}
	}
	return b.exec(ctx, []string{"PGUSER=postgres"}, b.user, p)
}

func (b *localScratchServer) Paths() Paths { return b.paths }

func (b *localScratchServer) Close(ctx context.Context) error {
	if b.paths.LiveData != "" {
		return b.exec(ctx, nil, b.user, Program{Args: []string{"sh", "-c", cleanUpScript, b.paths.Dir, b.paths.stagingDir()}})
	}
	_ = b.exec(ctx, nil, b.user, Program{Args: []string{"pg_ctl", "stop", "--mode=immediate", "--silent", "--pgdata=" + b.paths.Dir + "/data"}})
	return os.RemoveAll(b.paths.Dir)
}

// A fixture is a primary with a WAL archive, a node of the service on it, and a
// vault.
type fixture struct {
	t          testing.TB
	pg         *testkit.PG
	stack      *localStack
	repository *Repository
	node       *testkit.Server
}

// newFixture starts PostgreSQL with an archive, that takes the same segment twice as
// the shipped one does (a promoted standby may send one that the former sent), and a node that publishes to it.
func newFixture(t testing.TB, conf ...string) *fixture {
	t.Helper()
	cred := postgresUser(t)
	dir, err := testkit.TempDir("vault", nil)
	if err != nil {
		t.Fatal(err)
	}
	wal := filepath.Join(dir, walFolder)
	scratchRoot, err := testkit.TempDir("benches", cred)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{os.Mkdir(wal, 0o700), os.Chmod(dir, 0o711)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if cred != nil {
		if err := os.Chown(wal, int(cred.Uid), int(cred.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	pg := testkit.StartPostgres(t, append([]string{
		"archive_mode=on", "wal_level=replica", "track_commit_timestamp=on", "max_wal_size=256MB",
		fmt.Sprintf(`archive_command='if test -f %s/%%f.gz; then gzip -dc %[1]s/%%f.gz | cmp -s - %%p; else gzip -1 < %%p > %[1]s/.%%f.tmp && mv %[1]s/.%%f.tmp %[1]s/%%f.gz; fi'`, wal),
	}, conf...)...)
	w := &fixture{t: t, pg: pg, stack: &localStack{t: t, user: cred, walDir: wal, primary: PostgresService, scratchRoot: scratchRoot, postgres: map[string]*testkit.PG{PostgresService: pg}, apps: map[string]bool{}, startFails: map[string]int{}}}
	settings := filepath.Join(t.TempDir(), "settings")
	if err := os.WriteFile(settings, []byte("API_KEYS=secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.stack.files = []string{settings}
	w.repository = &Repository{Dir: dir, Runner: w.stack, ServiceManager: w.stack, Keep: 3, Version: "test", Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), archiveTimeout: 20 * time.Second}
	return w
}

// startNode starts a node on the primary, and lets restores stop and start it.
func (w *fixture) startNode() *testkit.Server {
	w.t.Helper()
	w.node = testkit.StartServer(w.t, map[string]string{"DATABASE_URL": w.pg.URL(), "API_KEYS": "tests:0123456789abcdef", "RATE_PUBLISH": "0"})
	w.stack.apps["app_blue"] = true
	w.stack.onStop = func(name string) {
		if name == "app_blue" {
			w.node.Kill()
		}
	}
	w.stack.onStart = func(name string) {
		if name == "app_blue" {
			w.node.Restart()
		}
	}
	return w.node
}

// client connects a resuming client to the node.
func (w *fixture) client(o client.Options) *client.Client {
	w.t.Helper()
	o.URLs = []string{w.node.SocketURL()}
	c, err := client.Dial(w.t.Context(), o)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(c.Close)
	return c
}

// publish publishes n messages to a room and returns their acks.
func publish(t testing.TB, c *client.Client, room message.Room, n int) (acks []client.Ack) {
	t.Helper()
	for i := range n {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		ack, err := c.Publish(ctx, room, json.RawMessage(strconv.Itoa(i)), "")
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		acks = append(acks, ack)
	}
	return acks
}

// switchWAL ends the segment under way, and returns once it is archived.
func (w *fixture) switchWAL() {
	w.t.Helper()
	name := w.pg.Query("SELECT pg_walfile_name(pg_switch_wal() - 1)")
	until(w.t, "the segment is archived", func() bool {
		_, err := os.Stat(filepath.Join(w.stack.walDir, name+gz))
		return err == nil
	})
}

func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited a minute: %s", what)
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-t.Context().Done():
			t.FailNow()
		}
	}
}

// createBackup makes a backup.
func (w *fixture) createBackup() *Set {
	w.t.Helper()
	s, err := w.repository.Create(w.t.Context(), Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// writeGzip writes a gzip file.
func writeGzip(t *testing.T, path string, b []byte) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(f)
	_, err = z.Write(b)
	if err := errors.Join(err, z.Close(), f.Close(), os.Chmod(path, 0o644)); err != nil {
		t.Fatal(err)
	}
}

// failWrites makes every further write to an open file fail as on a full disk: its
// descriptor is made one of /dev/full.
func failWrites(t *testing.T, path string) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		link := filepath.Join("/proc/self/fd", e.Name())
		if target, err := os.Readlink(link); err != nil || target != path {
			continue
		}
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		device, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(syscall.Dup3(int(device.Fd()), fd, syscall.O_CLOEXEC), device.Close()); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatalf("%s is not open", path)
}
