package testkit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
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
