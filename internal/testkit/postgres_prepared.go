package testkit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// StartPreparedPostgres is StartPostgres with a data directory that prepare makes,
// for example as a copy of another one, which is faster than initdb. prepare gets
// the path, where nothing exists yet, and the user that must own the directory; nil
// means the current user.
func StartPreparedPostgres(tb testing.TB, prepare func(data string, user *syscall.Credential) error, conf ...string) *PG {
	tb.Helper()
	server, err := newPreparedPostgres(prepare, conf)
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

func newPreparedPostgres(prepare func(string, *syscall.Credential) error, conf []string) (*pgServer, error) {
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

// freshCluster is a data directory as initdb makes it, for copyFreshCluster.
var freshCluster = sync.OnceValues(func() (string, error) {
	var owner *syscall.Credential
	var err error
	if os.Getuid() == 0 {
		if owner, err = credential("postgres"); err != nil {
			return "", err
		}
	}
	dir, err := TempDir("cluster", owner)
	if err != nil {
		return "", err
	}
	data := filepath.Join(dir, "data")
	return data, initCluster(data, owner)
})

// copyFreshCluster makes a data directory in a fraction of the time of initdb.
func copyFreshCluster(data string, _ *syscall.Credential) error {
	from, err := freshCluster()
	if err != nil {
		return err
	}
	if out, err := exec.Command("cp", "-a", from, data).CombinedOutput(); err != nil {
		return fmt.Errorf("copy the cluster: %w: %s", err, out)
	}
	return nil
}

// initCluster makes a data directory with a locale other than C, as most production
// databases have, so that queries that rely on byte order without saying so fail.
func initCluster(data string, user *syscall.Credential) error {
	initdb, err := FindPostgresProgram("initdb")
	if err != nil {
		return err
	}
	p, err := Start(Program{Path: initdb, Dir: filepath.Dir(data), User: user, Args: []string{
		"-D", data, "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-sync",
		"--locale=C", "--locale-provider=icu", "--icu-locale=en-US"}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), postgresTimeout)
	defer cancel()
	if err := p.Wait(ctx); err != nil {
		return fmt.Errorf("initdb: %w; it printed:\n%s", err, p.Output())
	}
	return nil
}
