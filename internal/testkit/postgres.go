package testkit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// A PG is a database on a real PostgreSQL server, with fsync on as in production:
// tests of crashes would prove nothing without it. Its methods fail the test on an
// error, and belong to the test's goroutine.
type PG struct {
	tb       testing.TB
	server   *pgServer
	database string
	owned    bool // the server belongs to one test, which may stop it
}

// Postgres returns a new, empty database on the server that all tests of this
// binary share, which the first call starts. When the test ends, the database is
// dropped and its connections are closed.
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

// StartPostgres returns a database on a server that belongs to the test, which may
// stop and kill it. Each conf is a line of postgresql.conf, such as
// "max_wal_size=64MB". The server is stopped when the test ends.
//
// All servers of a test binary are copies of one cluster, and so have its system
// identifier.
func StartPostgres(tb testing.TB, conf ...string) *PG {
	tb.Helper()
	return StartPreparedPostgres(tb, copyFreshCluster, conf...)
}

// StartPreparedPostgres is StartPostgres with a data directory that prepare makes,
// for example as a copy of another one, which is faster than initdb. prepare gets
// the path, where nothing exists yet, and the user that must own the directory; nil
// means the current user.
func StartPreparedPostgres(tb testing.TB, prepare func(data string, user *User) error, conf ...string) *PG {
	tb.Helper()
	server, err := newPostgres(prepare, conf)
	if err != nil {
		tb.Fatalf("testkit: %v", err)
	}
	tb.Cleanup(func() {
		server.signalAll(sigCont) // a test may have failed while it was paused
		if err := server.process.Stop(syscall.SIGQUIT, 10*time.Second); err != nil {
			tb.Errorf("testkit: %v", err)
		}
		_ = os.RemoveAll(server.dir)
	})
	return &PG{tb: tb, server: server, database: "postgres", owned: true}
}

// URL returns the URL of the database over TCP.
func (pg *PG) URL() string { return pg.URLOf(pg.database) }

// URLOf returns the URL of another database of the same server.
func (pg *PG) URLOf(database string) string {
	return fmt.Sprintf("postgres://postgres@127.0.0.1:%d/%s?sslmode=disable", pg.server.port, database)
}

// SocketURL returns the URL of the database over the server's Unix socket.
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

// Exec runs statements as superuser, each in its own psql.
func (pg *PG) Exec(sql ...string) {
	pg.tb.Helper()
	for _, s := range sql {
		pg.Query(s)
	}
}

// Query runs SQL as superuser and returns the output of psql: one line for each row,
// with | between columns.
func (pg *PG) Query(sql string) string {
	pg.tb.Helper()
	out, err := pg.server.psql(pg.database, sql)
	if err != nil {
		pg.tb.Fatalf("testkit: %v", err)
	}
	return out
}

// RequirePasswords makes the server ask all roles but postgres for their passwords, over
// TCP and for new connections.
func (pg *PG) RequirePasswords() {
	pg.tb.Helper()
	pg.mustOwn()
	const rules = "local all all trust\nhost all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
	if err := os.WriteFile(filepath.Join(pg.DataDir(), "pg_hba.conf"), []byte(rules), 0o600); err != nil { // its owner stays
		pg.tb.Fatalf("testkit: %v", err)
	}
	pg.Exec("SELECT pg_reload_conf()")
}

// Stop shuts the server down cleanly (a "fast" shutdown, which closes connections).
func (pg *PG) Stop() {
	pg.tb.Helper()
	pg.mustOwn()
	if err := pg.server.process.Stop(syscall.SIGINT, 30*time.Second); err != nil {
		pg.tb.Fatalf("testkit: %v", err)
	}
}

// Crash stops the server as pg_ctl stop -m immediate does: backends quit at once
// without flushing, and Start recovers from the WAL.
func (pg *PG) Crash() {
	pg.tb.Helper()
	pg.mustOwn()
	if err := pg.server.process.Stop(syscall.SIGQUIT, 30*time.Second); err != nil {
		pg.tb.Fatalf("testkit: %v", err)
	}
}

// Kill kills the server and all its backends with SIGKILL. As after a crash of the
// machine, only flushed data is left.
func (pg *PG) Kill() {
	pg.tb.Helper()
	pg.mustOwn()
	if err := pg.server.kill(); err != nil {
		pg.tb.Fatalf("testkit: %v", err)
	}
}

// Start starts a server that was stopped or killed, on the same port and data, and
// returns when it accepts connections.
func (pg *PG) Start() {
	pg.tb.Helper()
	pg.mustOwn()
	if err := pg.server.start(); err != nil {
		pg.tb.Fatalf("testkit: %v", err)
	}
}

// Running reports whether the server's process is alive.
func (pg *PG) Running() bool { return alive(pg.server.process.Pid()) }

// Restart kills the server and starts it again.
func (pg *PG) Restart() {
	pg.tb.Helper()
	pg.Kill()
	pg.Start()
}

// Pause suspends the server and its backends (SIGSTOP): the kernel still accepts
// connections, and nothing answers, like a machine that hangs. Resume ends it.
func (pg *PG) Pause() { pg.tb.Helper(); pg.mustOwn(); pg.server.signalAll(sigStop) }

// Resume continues a paused server.
func (pg *PG) Resume() { pg.tb.Helper(); pg.mustOwn(); pg.server.signalAll(sigCont) }

// mustOwn fails a test that would stop the shared server.
func (pg *PG) mustOwn() {
	pg.tb.Helper()
	if !pg.owned {
		pg.tb.Fatal("testkit: other tests use this server: start another one with StartPostgres")
	}
}

var databaseCount atomic.Int64

// sharedPostgres starts the shared server at its first call. Later calls return the
// same server or the same error.
var sharedPostgres = sync.OnceValues(func() (*pgServer, error) {
	s, err := newPostgres(copyFreshCluster, nil)
	if err == nil {
		resources.onClose(func() error { return s.process.Stop(syscall.SIGQUIT, 10*time.Second) })
	}
	return s, err
})

// postgresTimeout bounds initdb, a start with crash recovery, and one psql.
const postgresTimeout = 60 * time.Second

// A pgServer is one database cluster and its postmaster.
type pgServer struct {
	dir     string // contains the data directory and the socket
	port    int
	user    *User    // nil: the user of the test
	process *Process // the running postmaster or the last one
}

func (s *pgServer) data() string { return filepath.Join(s.dir, "data") }

// newPostgres starts a server on the data directory that prepare makes, with these
// lines in postgresql.conf.
func newPostgres(prepare func(string, *User) error, conf []string) (*pgServer, error) {
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
	if err := prepare(s.data(), s.user); err != nil {
		return nil, err
	}
	lines := append([]string{
		"", // prepare's last line may have no end
		"listen_addresses='127.0.0.1'",
		fmt.Sprintf("port=%d", s.port),
		fmt.Sprintf("unix_socket_directories='%s'", s.dir),
		"max_connections=200",
		"shared_buffers=64MB",
	}, conf...)
	f, err := os.OpenFile(filepath.Join(s.data(), "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("configure PostgreSQL: %w", err)
	}
	_, err = f.WriteString(strings.Join(lines, "\n") + "\n")
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("configure PostgreSQL: %w", err)
	}
	return s, s.start()
}

// start starts the server and returns when it accepts connections, after recovery
// if it had crashed.
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
	return p.WaitOutput(ctx, "ready to accept ") // "connections", or of a standby "read-only connections"
}

// kill kills the postmaster and all its children: a backend that outlived the
// postmaster would keep the shared memory and prevent the next start.
func (s *pgServer) kill() error {
	pid := s.process.Pid()
	// SIGSTOP first, so that it starts no child after the list was made.
	if err := s.process.Signal(sigStop); err != nil {
		return err
	}
	children := childrenOf(pid)
	err := s.process.Stop(syscall.SIGKILL, 10*time.Second)
	for _, child := range children {
		_ = kill(child, syscall.SIGKILL)
	}
	deadline := time.Now().Add(10 * time.Second)
	for _, child := range children {
		for alive(child) {
			if time.Now().After(deadline) {
				return fmt.Errorf("PostgreSQL's child %d survived SIGKILL", child)
			}
			time.Sleep(time.Millisecond) // the kernel reports only one's own children
		}
	}
	return err
}

// signalAll signals the server before its children, so that with SIGSTOP it starts
// no further child.
func (s *pgServer) signalAll(sig syscall.Signal) {
	pid := s.process.Pid()
	_ = kill(pid, sig)
	for _, child := range childrenOf(pid) {
		_ = kill(child, sig)
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

// stat returns the state and the parent of a process from /proc.
func stat(pid int) (state string, parent int, ok bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", 0, false
	}
	// The name in parentheses may contain anything, so the fields are counted from
	// its end.
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

// PauseTree stops a process and its descendants, parents first so that no further ones
// start, until resume is called.
func PauseTree(pid int) (resume func()) {
	pids := []int{pid}
	_ = kill(pid, sigStop)
	for i := 0; i < len(pids); i++ {
		for _, child := range childrenOf(pids[i]) {
			_ = kill(child, sigStop)
			pids = append(pids, child)
		}
	}
	return func() {
		for _, pid := range pids {
			_ = kill(pid, sigCont) // it may have ended
		}
	}
}

// alive reports whether a process runs. A zombie does not.
func alive(pid int) bool {
	state, _, ok := stat(pid)
	return ok && state != "Z" && state != "X"
}
