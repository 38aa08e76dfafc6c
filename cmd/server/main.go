// Command server is the service: serve (the default), migrate, healthcheck, drain,
// undrain, profile, look and version. Its settings come from the environment;
// docs/configuration.md lists them.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"switchyard/internal/app"
	"switchyard/internal/config"
)

// version is set by the build.
var version = "dev"

const usage = `usage: server [serve | migrate | healthcheck | drain | undrain | profile | look | version]

  serve        run the service (the default)
  migrate      bring the database to this version's schema, and exit
                 -plan                   print the pending migrations as JSON instead
  healthcheck  exit with 0 if the service on this host's LISTEN_ADDR answers /healthz
  drain        have the service on this host's ADMIN_ADDR move its clients away, and
               wait until it is empty; it goes on running
                 -scope node|deployment  what clients must avoid (node)
                 -reason text            the reason that is sent to clients (drain)
                 -wait=false             do not wait
  undrain      have a drained service serve again
  profile      write a profile of the service on this host's ADMIN_ADDR: heap (the
               default), goroutine, allocs, block or mutex; for go tool pprof
  look         print a debug page of the service on this host's ADMIN_ADDR: rooms (the
               default, JSON), heap or goroutines
  version      print the version, and exit
`

func main() {
	if err := run(signalContext(), os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
}

// signalContext returns a context that ends with the first SIGINT or SIGTERM. After
// that a second signal ends the process at once.
func signalContext() context.Context {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		s := <-signals
		signal.Stop(signals)
		cancel(fmt.Errorf("signal: %s", s))
	}()
	return ctx
}

// run runs the command that the arguments name. When ctx ends, the command stops.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	command := "serve"
	if len(args) > 0 {
		command = args[0]
	}
	args = args[min(len(args), 1):]
	if len(args) > 0 && !slices.Contains([]string{"migrate", "drain", "undrain", "profile", "look"}, command) {
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
		"migrate":     func(c config.Config) error { return app.Migrate(ctx, c, args, stdout, stderr) },
		"healthcheck": func(c config.Config) error { return app.Healthcheck(ctx, c) },
		"drain":       func(c config.Config) error { return app.Drain(ctx, c, args, stdout) },
		"undrain":     func(c config.Config) error { return app.Undrain(ctx, c, args, stdout) },
		"profile":     func(c config.Config) error { return app.Profile(ctx, c, args, stdout) },
		"look":        func(c config.Config) error { return app.PrintDebugPage(ctx, c, args, stdout) },
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
