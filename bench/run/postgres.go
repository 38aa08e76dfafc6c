package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"switchyard/bench/report"
)

// A postgres is a server of this session's own. It waits 1 ms before each flush, so that
// one takes about as long as on a good cloud volume: test machines often do not flush.
type postgres struct {
	dir       string
	port      int
	cmd       *exec.Cmd
	databases int
}

// database returns the URL of a fresh database. The first call starts the server.
func (r *runner) database(ctx context.Context) (string, error) {
	if r.pg == nil {
		pg, err := r.startPostgres(ctx, filepath.Join(r.dir, "postgres"))
		if err != nil {
			return "", err
		}
		r.pg = pg
	}
	r.pg.databases++
	name := fmt.Sprintf("bench%d", r.pg.databases)
	if _, err := r.pg.psql(ctx, "postgres", "CREATE DATABASE "+name); err != nil {
		return "", err
	}
	return fmt.Sprintf("postgres://postgres@127.0.0.1:%d/%s?sslmode=disable", r.pg.port, name), nil
}

func (r *runner) startPostgres(ctx context.Context, dir string) (*postgres, error) {
	pg := &postgres{dir: dir, port: freePort()}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("PostgreSQL: %w", err)
	}
	attr, err := asPostgresUser(dir)
	if err != nil {
		return nil, err
	}
	initdb, err := pgProgram("initdb")
	if err != nil {
		return nil, err
	}
	data := filepath.Join(dir, "data")
	initCmd := exec.CommandContext(ctx, initdb, "-D", data, "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-sync")
	initCmd.SysProcAttr, initCmd.Dir = attr, dir
	if out, err := initCmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w\n%s", err, out)
	}
	server, err := pgProgram("postgres")
	if err != nil {
		return nil, err
	}
	args := []string{"-D", data}
	for _, setting := range []string{
		"listen_addresses=127.0.0.1", "port=" + strconv.Itoa(pg.port), "unix_socket_directories=" + dir,
		"max_connections=200", "shared_buffers=512MB", "max_wal_size=8GB", "commit_delay=1000", "commit_siblings=0",
	} {
		args = append(args, "-c", setting)
	}
	pg.cmd = r.command(context.Background(), "", server, args...)
	pg.cmd.SysProcAttr, pg.cmd.Dir = attr, dir
	if err := pg.cmd.Start(); err != nil {
		return nil, fmt.Errorf("PostgreSQL: %w", err)
	}
	for range 300 {
		if _, err = pg.psql(ctx, "postgres", "SELECT 1"); err == nil {
			return pg, nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	pg.stop()
	return nil, err
}

// asPostgresUser gives dir to the system user postgres, and returns what it takes to run
// as that user: the server refuses to run as root.
func asPostgresUser(dir string) (*syscall.SysProcAttr, error) {
	if os.Getuid() != 0 {
		return &syscall.SysProcAttr{}, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("the system user of the Debian package postgresql is needed: %w", err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2, os.Chown(dir, int(uid), int(gid))); err != nil {
		return nil, fmt.Errorf("PostgreSQL: %w", err)
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, nil
}

// pgProgram returns the path of a program of the newest version.
func pgProgram(name string) (string, error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	slices.Sort(found)
	if len(found) > 0 {
		return found[len(found)-1], nil
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%w: install postgresql", err)
	}
	return path, nil
}

func (pg *postgres) psql(ctx context.Context, database, sql string) (string, error) {
	out, err := exec.CommandContext(ctx, "psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-h", pg.dir,
		"-p", strconv.Itoa(pg.port), "-U", "postgres", "-d", database, "-c", sql).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("psql: %w: %s", err, out)
	}
	return string(out), nil
}

func (pg *postgres) pid() int { return pg.cmd.Process.Pid }

// stop ends the server at once, without a checkpoint.
func (pg *postgres) stop() {
	pids := report.WithDescendants([]int{pg.pid()})
	_ = pg.cmd.Process.Signal(syscall.SIGQUIT)
	timer := time.AfterFunc(10*time.Second, func() {
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	_ = pg.cmd.Wait()
	timer.Stop()
}
