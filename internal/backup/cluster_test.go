package backup

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"switchyard/internal/testkit"
)

// cluster prepares a data directory, once, and returns its path. The tests copy it.
// It is as small as possible, since each backup, restore and verify reads all of it:
// its segments have 1 MiB instead of 16, and it has no template databases.
var cluster = sync.OnceValues(func() (string, error) {
	return prepareCluster("--wal-segsize=1")
})

// copyCluster copies the prepared data directory.
func copyCluster(data string, _ *syscall.Credential) error {
	from, err := cluster()
	if err != nil {
		return err
	}
	if out, err := exec.Command("cp", "-a", from, data).CombinedOutput(); err != nil {
		return fmt.Errorf("copy the cluster: %w: %s", err, out)
	}
	return nil
}

// initCluster makes a data directory with segments of PostgreSQL's default size.
func initCluster(data string, _ *syscall.Credential) error {
	from, err := prepareCluster()
	if err != nil {
		return err
	}
	if out, err := exec.Command("mv", from, data).CombinedOutput(); err != nil {
		return fmt.Errorf("move the cluster: %w: %s", err, out)
	}
	return nil
}

// prepareCluster runs initdb, with the locale that testkit uses, and drops the
// template databases.
func prepareCluster(args ...string) (string, error) {
	user, err := findPostgresUser()
	if err != nil {
		return "", err
	}
	dir, err := testkit.TempDir("cluster", user)
	if err != nil {
		return "", err
	}
	data := filepath.Join(dir, "data")
	initdb, err := testkit.FindPostgresProgram("initdb")
	if err != nil {
		return "", err
	}
	p, err := testkit.Start(testkit.Program{Path: initdb, Dir: dir, User: user, Args: append([]string{
		"-D", data, "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-sync",
		"--locale=C", "--locale-provider=icu", "--icu-locale=en-US"}, args...)})
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Timeout)
	defer cancel()
	if err := p.Wait(ctx); err != nil {
		return "", fmt.Errorf("initdb: %w; it printed:\n%s", err, p.Output())
	}
	postgres, err := testkit.FindPostgresProgram("postgres")
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, postgres, "--single", "-F", "-D", data, "postgres")
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: user}
	cmd.Stdin = strings.NewReader("UPDATE pg_database SET datistemplate = false\nDROP DATABASE template0\nDROP DATABASE template1\n")
	if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "ERROR") {
		return "", fmt.Errorf("drop the template databases: %w: %s", err, out)
	}
	return data, nil
}
