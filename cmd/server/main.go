// Command server is the service: serve (the default), migrate, healthcheck and
// version. Its settings come from the environment; docs/configuration.md lists
// them.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"switchyard/internal/app"
	"switchyard/internal/config"
)

// version is set by the build.
var version = "dev"

const usage = `usage: server [serve | migrate | healthcheck | version]

  serve        run the service (the default)
  migrate      bring the database to this version's schema, and exit
  healthcheck  ask the service on this host's LISTEN_ADDR for /healthz, and exit
  version      print the version, and exit
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
}

// run does what the arguments ask for; ctx ends when the process is to stop.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	command := "serve"
	if len(args) > 0 {
		command = args[0]
	}
	if len(args) > 1 {
		return fmt.Errorf("%s takes no arguments\n%s", command, usage)
	}
	switch command {
	case "version":
		fmt.Fprintln(stdout, version)
		return nil
	case "help", "-h", "--help":
		fmt.Fprint(stdout, usage)
		return nil
	}
	do, known := map[string]func(config.Config) error{
		"serve":       func(c config.Config) error { return app.Serve(ctx, c, version, stdout, stderr) },
		"migrate":     func(c config.Config) error { return app.Migrate(ctx, c) },
		"healthcheck": func(c config.Config) error { return app.Healthcheck(ctx, c) },
	}[command]
	if !known {
		return fmt.Errorf("unknown command %q\n%s", command, usage)
	}
	cfg, err := config.Load()
	if err != nil {
		return err
	}
	return do(cfg)
}
