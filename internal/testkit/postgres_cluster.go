package testkit

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

// freshCluster is a data directory as initdb makes it, for copyFreshCluster.
var freshCluster = sync.OnceValues(func() (string, error) {
	var owner *User
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
	return data, initdb(data, owner)
})

// copyFreshCluster makes a data directory in a fraction of the time of initdb.
func copyFreshCluster(data string, _ *User) error {
	from, err := freshCluster()
	if err != nil {
		return err
	}
	if out, err := exec.Command("cp", "-a", from, data).CombinedOutput(); err != nil {
		return fmt.Errorf("copy the cluster: %w: %s", err, out)
	}
	return nil
}

// initdb makes a data directory with a locale other than C, as most production
// databases have, so that queries that rely on byte order without saying so fail.
func initdb(data string, user *User) error {
	path, err := FindPostgresProgram("initdb")
	if err != nil {
		return err
	}
	p, err := Start(Program{Path: path, Dir: filepath.Dir(data), User: user, Args: []string{
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
