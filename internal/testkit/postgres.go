package testkit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// A PG is a database on a real PostgreSQL server, with fsync on as in
// production: what the tests prove about crashes would be worth nothing without.
type PG struct {
	tb       testing.TB
	server   *pgServer
	database string
	owned    bool
}

// Postgres returns a fresh, empty database on the server that the tests of
// this binary share; it is started at the first call. The database is dropped,
// with whoever is still connected, when the test ends.
func Postgres(tb testing.TB) *PG {
	tb.Helper()
	server, err := sharedPostgres()
	if err != nil {
		tb.Fatalf("testkit: %v", err)
	}
	pg := &PG{tb: tb, server: server, database: fmt.Sprintf("test_%d", databaseCount.Add(1))}
	if _, err := server.psql("postgres", "CREATE DATABASE "+pg.database); err != nil {
		tb.Fatalf("testkit: %v", err)
	}
	tb.Cleanup(func() {
		if _, err := server.psql("postgres", "DROP DATABASE IF EXISTS "+pg.database+" WITH (FORCE)"); err != nil {
			tb.Errorf("testkit: %v", err)
		}
	})
	return pg
}

// StartPostgres returns a database on a server of the test's own, which may be
// stopped and killed. Each conf is a line of postgresql.conf, such as
// "max_wal_size=64MB". The server ends with the test.
func StartPostgres(tb testing.TB, conf ...string) *PG {
	tb.Helper()
	server, err := newPostgres(conf)
	if err != nil {
		tb.Fatalf("testkit: %v", err)
	}
	tb.Cleanup(func() {
		server.signalAll(syscall.SIGCONT) // a test may have failed while it was paused
		if err := server.process.Stop(syscall.SIGQUIT, 10*time.Second); err != nil {
			tb.Errorf("testkit: %v", err)
		}
		_ = os.RemoveAll(server.dir)
	})
	return &PG{tb: tb, server: server, database: "postgres", owned: true}
}

// URL returns how to reach the database over TCP.
func (pg *PG) URL() string { return pg.URLOf(pg.database) }

// URLOf returns how to reach another database of the same server.
func (pg *PG) URLOf(database string) string {
	return fmt.Sprintf("postgres://postgres@127.0.0.1:%d/%s?sslmode=disable", pg.server.port, database)
}

// SocketURL returns how to reach the database over its Unix socket.
func (pg *PG) SocketURL() string {
	return fmt.Sprintf("postgres:///%s?user=postgres&host=%s&port=%d",
		pg.database, url.QueryEscape(pg.server.dir), pg.server.port)
}

// Database returns the name of the database.
func (pg *PG) Database() string { return pg.database }

// Port returns the TCP port on 127.0.0.1.
func (pg *PG) Port() int { return pg.server.port }

// DataDir returns the server's data directory.
func (pg *PG) DataDir() string { return pg.server.data() }

// Exec runs SQL as superuser, each statement by itself, and fails the test when
// it fails.
func (pg *PG) Exec(sql ...string) {
	pg.tb.Helper()
	for _, s := range sql {
		pg.Query(s)
	}
}

// Query runs SQL as superuser and returns what psql prints: a line a row,
// columns parted by |. It fails the test when the SQL fails.
func (pg *PG) Query(sql string) string {
	pg.tb.Helper()
	out, err := pg.server.psql(pg.database, sql)
	if err != nil {
		pg.tb.Fatalf("testkit: %v", err)
	}
	return out
}

// Stop shuts the server down in order (a "fast" shutdown: clients are cut).
func (pg *PG) Stop() {
	pg.tb.Helper()
	pg.mustOwn()
	if err := pg.server.process.Stop(syscall.SIGINT, 30*time.Second); err != nil {
		pg.tb.Fatalf("testkit: %v", err)
	}
}

// Crash ends the server as pg_ctl stop -m immediate does: backends quit at
// once, nothing is finished or flushed, and Start recovers from the WAL.
func (pg *PG) Crash() {
	pg.tb.Helper()
	pg.mustOwn()
	if err := pg.server.process.Stop(syscall.SIGQUIT, 30*time.Second); err != nil {
		pg.tb.Fatalf("testkit: %v", err)
	}
}

// Kill kills the server and all its backends with SIGKILL, as a crash of the
// machine would: only what was flushed is there afterwards.
func (pg *PG) Kill() {
	pg.tb.Helper()
	pg.mustOwn()
	if err := pg.server.kill(); err != nil {
		pg.tb.Fatalf("testkit: %v", err)
	}
}

// Start starts a server that was stopped or killed, on the same port and data,
// and returns when it takes connections.
func (pg *PG) Start() {
	pg.tb.Helper()
	pg.mustOwn()
	if err := pg.server.start(); err != nil {
		pg.tb.Fatalf("testkit: %v", err)
	}
}

// Running says whether the server's process lives.
func (pg *PG) Running() bool { return alive(pg.server.process.Pid()) }

// Restart kills the server and starts it again.
func (pg *PG) Restart() {
	pg.tb.Helper()
	pg.Kill()
	pg.Start()
}

// Pause stops the server and its backends in their tracks (SIGSTOP): it takes
// connections and answers nothing, like a machine that hangs. Resume ends that.
func (pg *PG) Pause() { pg.tb.Helper(); pg.mustOwn(); pg.server.signalAll(syscall.SIGSTOP) }

// Resume lets a paused server go on.
func (pg *PG) Resume() { pg.tb.Helper(); pg.mustOwn(); pg.server.signalAll(syscall.SIGCONT) }

// mustOwn keeps a test from killing the server of all others.
func (pg *PG) mustOwn() {
	pg.tb.Helper()
	if !pg.owned {
		pg.tb.Fatal("testkit: other tests use this server: take one of your own with StartPostgres")
	}
}

var databaseCount atomic.Int64

// sharedPostgres is tried once: a server that cannot start now will not later.
var sharedPostgres = sync.OnceValues(func() (*pgServer, error) {
	s, err := newPostgres(nil)
	if err == nil {
		resources.onClose(func() error { return s.process.Stop(syscall.SIGQUIT, 10*time.Second) })
	}
	return s, err
})

// postgresTimeout bounds initdb, a start with crash recovery, and one psql.
const postgresTimeout = 60 * time.Second

// A pgServer is one cluster and, while it runs, its postmaster.
type pgServer struct {
	dir     string // holds data and the socket
	port    int
	user    *syscall.Credential
	process *Process
}

func (s *pgServer) data() string { return filepath.Join(s.dir, "data") }

// newPostgres makes a cluster with lines of configuration and starts it.
func newPostgres(conf []string) (*pgServer, error) {
	s := &pgServer{port: FreePort()}
	var err error
	if os.Getuid() == 0 { // PostgreSQL refuses to run as root
		if s.user, err = credential("postgres"); err != nil {
			return nil, err
		}
	}
	if s.dir, err = TempDir("postgres", s.user); err != nil {
		return nil, err
	}
	if err := s.initdb(conf); err != nil {
		return nil, err
	}
	return s, s.start()
}

// initdb makes the cluster in a language other than C, as most production
// databases are: what relies on byte order must say so.
func (s *pgServer) initdb(conf []string) error {
	initdb, err := FindPostgresProgram("initdb")
	if err != nil {
		return err
	}
	p, err := Start(Program{Path: initdb, Dir: s.dir, User: s.user, Args: []string{
		"-D", s.data(), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-sync",
		"--locale=C", "--locale-provider=icu", "--icu-locale=en-US"}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), postgresTimeout)
	defer cancel()
	if err := p.Wait(ctx); err != nil {
		return fmt.Errorf("initdb: %w; it printed:\n%s", err, p.Output())
	}
	lines := append([]string{
		"listen_addresses='127.0.0.1'",
		fmt.Sprintf("port=%d", s.port),
		fmt.Sprintf("unix_socket_directories='%s'", s.dir),
		"max_connections=200",
		"shared_buffers=64MB",
	}, conf...)
	f, err := os.OpenFile(filepath.Join(s.data(), "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("configure PostgreSQL: %w", err)
	}
	_, err = f.WriteString(strings.Join(lines, "\n") + "\n")
	return errors.Join(err, f.Close())
}

// start returns when the server takes connections, recovered if it had crashed.
func (s *pgServer) start() error {
	postgres, err := FindPostgresProgram("postgres")
	if err != nil {
		return err
	}
	p, err := Start(Program{Path: postgres, Args: []string{"-D", s.data()}, Dir: s.dir, User: s.user})
	if err != nil {
		return err
	}
	s.process = p
	ctx, cancel := context.WithTimeout(context.Background(), postgresTimeout)
	defer cancel()
	return p.WaitOutput(ctx, "ready to accept ") // connections, or a standby: read-only connections
}

// kill leaves nothing of the server: a backend that outlived the postmaster
// would keep its shared memory and so hinder the next start.
func (s *pgServer) kill() error {
	pid := s.process.Pid()
	// Stopped first, so that it starts no child between the list and the kill.
	if err := s.process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	children := childrenOf(pid)
	err := s.process.Stop(syscall.SIGKILL, 10*time.Second)
	for _, child := range children {
		_ = syscall.Kill(child, syscall.SIGKILL)
	}
	deadline := time.Now().Add(10 * time.Second)
	for _, child := range children {
		for alive(child) {
			if time.Now().After(deadline) {
				return fmt.Errorf("PostgreSQL's child %d survived SIGKILL", child)
			}
			time.Sleep(time.Millisecond) // no event tells of another's child
		}
	}
	return err
}

// signalAll signals the server first, so that no child is born meanwhile.
func (s *pgServer) signalAll(sig syscall.Signal) {
	pid := s.process.Pid()
	_ = syscall.Kill(pid, sig)
	for _, child := range childrenOf(pid) {
		_ = syscall.Kill(child, sig)
	}
}

// psql runs one command and returns its output without the last newline.
func (s *pgServer) psql(database, sql string) (string, error) {
	psql, err := FindPostgresProgram("psql")
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), postgresTimeout)
	defer cancel()
	var out, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, psql, "-XqAt", "-v", "ON_ERROR_STOP=1", "-h", s.dir,
		"-p", strconv.Itoa(s.port), "-U", "postgres", "-d", database, "-c", sql)
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("psql %q: %w: %s", sql, err, stderr.String())
	}
	return strings.TrimSuffix(out.String(), "\n"), nil
}

// credential returns what it takes to run as a system user.
func credential(name string) (*syscall.Credential, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return nil, fmt.Errorf("this test needs the system user %s, whom the Debian package postgresql makes: "+
			"apt-get install -y postgresql (%w)", name, err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, errors.Join(err1, err2)
}

// stat returns state and parent of a process, as /proc tells them.
func stat(pid int) (state string, parent int, ok bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", 0, false
	}
	// The name, in parentheses, may hold anything: count from its end.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 2 {
		return "", 0, false
	}
	parent, err = strconv.Atoi(fields[1])
	return fields[0], parent, err == nil
}

// childrenOf returns the direct children of a process.
func childrenOf(pid int) []int {
	var children []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		child, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if _, parent, ok := stat(child); ok && parent == pid {
			children = append(children, child)
		}
	}
	return children
}

// alive says whether a process still runs; a zombie does not.
func alive(pid int) bool {
	state, _, ok := stat(pid)
	return ok && state != "Z" && state != "X"
}
