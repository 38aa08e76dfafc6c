package backup

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"switchyard/internal/client"
	"switchyard/internal/message"
	"switchyard/internal/stack"
	"switchyard/internal/testkit"
)

// A fixture is a primary with a WAL archive, a repository, and a node of the service
// once startNode was called.
type fixture struct {
	t          testing.TB
	pg         *testkit.PG
	stack      *localStack
	repository *Repository
	node       *testkit.Server
}

// newFixture starts PostgreSQL with an archive. Its archive_command accepts a segment
// that the archive has already, as the shipped one does: a promoted standby may
// archive one that the former primary archived. Each conf is a line of
// postgresql.conf.
func newFixture(t testing.TB, conf ...string) *fixture {
	t.Helper()
	return newFixtureOn(t, copyCluster, conf...)
}

// newFixtureOn is newFixture with another way to prepare the data directory.
func newFixtureOn(t testing.TB, prepare func(string, *syscall.Credential) error, conf ...string) *fixture {
	t.Helper()
	cred := postgresUser(t)
	dir, err := testkit.TempDir("repository", nil)
	if err != nil {
		t.Fatal(err)
	}
	wal := filepath.Join(dir, walFolder)
	scratchRoot, err := testkit.TempDir("scratch", cred)
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
	pg := testkit.StartPreparedPostgres(t, prepare, append([]string{
		"archive_mode=on", "wal_level=replica", "track_commit_timestamp=on", "max_wal_size=256MB",
		fmt.Sprintf(`archive_command='if test -f %s/%%f.gz; then gzip -dc %[1]s/%%f.gz | cmp -s - %%p; else gzip -1 < %%p > %[1]s/.%%f.tmp && mv %[1]s/.%%f.tmp %[1]s/%%f.gz; fi'`, wal),
	}, conf...)...)
	fx := &fixture{t: t, pg: pg, stack: &localStack{
		t: t, user: cred, walDir: wal, primary: stack.PostgresService, scratchRoot: scratchRoot,
		postgres: map[string]*testkit.PG{stack.PostgresService: pg}, apps: map[string]bool{}, startFails: map[string]int{},
	}}
	settings := filepath.Join(t.TempDir(), "settings")
	if err := os.WriteFile(settings, []byte("API_KEYS=secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	fx.stack.files = []string{settings}
	fx.repository = &Repository{
		Dir: dir, Runner: fx.stack, ServiceManager: fx.stack, Keep: 3, Version: "test",
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), archiveTimeout: testkit.Timeout,
	}
	return fx
}

// startRedis starts the stack's Redis, with a key, so that it sends a snapshot at
// once: by default it waits 5 s for further replicas.
func (fx *fixture) startRedis(args ...string) {
	fx.t.Helper()
	fx.stack.redis = testkit.StartRedis(fx.t, append([]string{"--repl-diskless-sync-delay", "0"}, args...)...)
	fx.stack.redis.Do(fx.t, "SET", "session", "ann")
}

// startNode starts a node on the primary. A restore stops and starts it as the
// service app_blue.
func (fx *fixture) startNode() *testkit.Server {
	fx.t.Helper()
	fx.node = testkit.StartServer(fx.t, map[string]string{"DATABASE_URL": fx.pg.URL(), "API_KEYS": "tests:0123456789abcdef", "RATE_PUBLISH": "0"})
	fx.stack.apps["app_blue"] = true
	fx.stack.onStop = func(name string) {
		if name == "app_blue" {
			fx.node.Kill()
		}
	}
	fx.stack.onStart = func(name string) {
		if name == "app_blue" {
			fx.node.Restart()
		}
	}
	return fx.node
}

// client connects a client to the node.
func (fx *fixture) client(o client.Options) *client.Client {
	fx.t.Helper()
	o.URLs = []string{fx.node.SocketURL()}
	c, err := client.Dial(fx.t.Context(), o)
	if err != nil {
		fx.t.Fatal(err)
	}
	fx.t.Cleanup(c.Close)
	return c
}

// publish publishes n messages to a room and returns their acks.
func publish(t testing.TB, c *client.Client, room message.Room, n int) (acks []client.Ack) {
	t.Helper()
	for i := range n {
		ctx, cancel := context.WithTimeout(t.Context(), testkit.Timeout)
		ack, err := c.Publish(ctx, room, json.RawMessage(strconv.Itoa(i)), "")
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		acks = append(acks, ack)
	}
	return acks
}

// switchWAL ends the current segment, and returns when it is archived.
func (fx *fixture) switchWAL() {
	fx.t.Helper()
	name := fx.pg.Query("SELECT pg_walfile_name(pg_switch_wal() - 1)")
	testkit.Eventually(fx.t, "the segment is archived", func() bool {
		_, err := os.Stat(filepath.Join(fx.stack.walDir, name+gz))
		return err == nil
	})
}

// createBackup creates a backup.
func (fx *fixture) createBackup() *Set {
	fx.t.Helper()
	s, err := fx.repository.Create(fx.t.Context(), Options{})
	if err != nil {
		fx.t.Fatal(err)
	}
	return s
}
