package testkit

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// A PgBouncer is a real PgBouncer before a database. Its methods belong to the
// test's goroutine.
type PgBouncer struct {
	tb       testing.TB
	port     int
	database string
	settings map[string]string
	file     string
	user     *User
	process  *Process
}

// StartPgBouncer starts a PgBouncer before a database, with its defaults and these
// settings of its section [pgbouncer]. It is stopped when the test ends.
func StartPgBouncer(tb testing.TB, pg *PG, settings map[string]string) *PgBouncer {
	tb.Helper()
	b := &PgBouncer{tb: tb, port: FreePort(), database: pg.Database(), settings: maps.Clone(settings)}
	if err := b.start(pg.Port()); err != nil {
		tb.Fatalf("testkit: %v", err)
	}
	tb.Cleanup(func() {
		_ = b.process.Stop(syscall.SIGKILL, redisTimeout)
		_ = os.RemoveAll(filepath.Dir(b.file))
	})
	return b
}

func (b *PgBouncer) start(server int) error {
	path, err := FindProgram("pgbouncer", "pgbouncer", "/usr/sbin")
	if err != nil {
		return err
	}
	if os.Getuid() == 0 { // PgBouncer refuses to run as root
		if b.user, err = credential("postgres"); err != nil {
			return err
		}
	}
	dir, err := TempDir("pgbouncer", b.user)
	if err != nil {
		return err
	}
	b.file = filepath.Join(dir, "pgbouncer.ini")
	if err := b.write(server); err != nil {
		return err
	}
	if b.process, err = Start(Program{Path: path, Args: []string{b.file}, Dir: dir, User: b.user}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), postgresTimeout)
	defer cancel()
	return b.process.WaitOutput(ctx, "process up")
}

// write writes the configuration file.
func (b *PgBouncer) write(server int) error {
	lines := []string{
		"[databases]",
		fmt.Sprintf("* = host=127.0.0.1 port=%d", server),
		"[pgbouncer]",
		"listen_addr = 127.0.0.1",
		fmt.Sprintf("listen_port = %d", b.port),
		"unix_socket_dir =",
		"auth_type = any",
	}
	lines[1] += " user=postgres"
	for _, name := range slices.Sorted(maps.Keys(b.settings)) {
		lines = append(lines, name+" = "+b.settings[name])
	}
	err := os.WriteFile(b.file, []byte(strings.Join(lines, "\n")+"\n"), 0o644)
	if err == nil && b.user != nil {
		err = own(b.file, b.user)
	}
	if err != nil {
		return fmt.Errorf("configure PgBouncer: %w", err)
	}
	return nil
}

// URL returns the URL of the database through PgBouncer.
func (b *PgBouncer) URL() string {
	return fmt.Sprintf("postgres://postgres@127.0.0.1:%d/%s?sslmode=disable", b.port, b.database)
}

// Set changes a setting while PgBouncer runs, as an operator does: in its file, and
// then with SIGHUP.
func (b *PgBouncer) Set(pg *PG, name, value string) {
	b.tb.Helper()
	b.settings[name] = value
	if err := errors.Join(b.write(pg.Port()), b.process.Signal(syscall.SIGHUP)); err != nil {
		b.tb.Fatalf("testkit: %v", err)
	}
}
