package app

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"switchyard/internal/config"
	"switchyard/internal/store"
)

const healthcheckTimeout = 2 * time.Second

// Serve runs a node until ctx ends or a listener fails. It prints the address of
// the page to stdout and logs to stderr.
func Serve(ctx context.Context, cfg config.Config, version string, stdout, stderr io.Writer) error {
	started := time.Now()
	level := new(slog.LevelVar)
	level.Set(cfg.Log.Level)
	logger := newLogger(stderr, cfg.Log.Format, level)
	if err := reportWarnings(cfg, logger); err != nil {
		return err
	}
	a, err := Start(ctx, Options{Config: cfg, Version: version, Logger: logger, LogLevel: level, Stdout: stdout, Stderr: stderr})
	if err != nil {
		return err
	}
	if slices.Contains(cfg.HTTP.AllowedOrigins, "*") {
		logger.Warn("the pages of every origin may connect", "setting", "ALLOWED_ORIGINS=*",
			"remedy", "list the origins of your pages, unless all that a page could do here needs a token")
	}
	logger.Info("serving", "url", a.URL(), "version", version, "started_in", time.Since(started))
	fmt.Fprintf(stdout, "Switchyard is at %s\n", a.URL())
	var failure error
	select {
	case <-ctx.Done():
		logger.Info("stopping", "reason", context.Cause(ctx))
	case failure = <-a.Failed():
	}
	err = a.Stop(context.WithoutCancel(ctx))
	if failure != nil {
		return failure
	}
	if err != nil {
		// Clients that ignored the close are not an error of the service. Each step
		// has logged what it left, and the exit code is 0.
		logger.Warn("stopped, not all of it in time", "error", err)
	}
	return nil
}

// reportWarnings logs what is likely a mistake in the environment. With
// STRICT_SETTINGS it returns that as an error instead.
func reportWarnings(cfg config.Config, logger *slog.Logger) error {
	warnings := config.Warnings()
	if cfg.Settings.Strict && len(warnings) > 0 {
		return fmt.Errorf("%s (STRICT_SETTINGS=true refuses this)", strings.Join(warnings, "\n"))
	}
	for _, w := range warnings {
		logger.Warn("a setting is likely a mistake", "warning", w)
	}
	return nil
}

// Migrate migrates the database to this version's schema. With -plan it prints the
// pending migrations as JSON and changes nothing. It takes as long as its caller lets
// it: a deploy ends it after migrate_limit.
func Migrate(ctx context.Context, cfg config.Config, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("migrate", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	plan := flags.Bool("plan", false, "print the pending migrations and change nothing")
	if err := parseFlags(flags, args); err != nil {
		return err
	}
	if err := reportWarnings(cfg, newLogger(stderr, cfg.Log.Format, cfg.Log.Level)); err != nil {
		return err
	}
	url := cfg.Store.URL.Reveal()
	if !*plan {
		return store.Migrate(ctx, url)
	}
	pending, err := store.Pending(ctx, url)
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(pending)
}

// Healthcheck returns an error unless the node on this host answers /healthz
// with 200.
func Healthcheck(ctx context.Context, cfg config.Config) error {
	ctx, cancel := context.WithTimeout(ctx, healthcheckTimeout)
	defer cancel()
	url, err := localURL("LISTEN_ADDR", cfg.HTTP.ListenAddr)
	if err != nil {
		return err
	}
	url += "/healthz"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("LISTEN_ADDR=%s: %w", cfg.HTTP.ListenAddr, err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("not healthy: %w", err)
	}
	defer res.Body.Close() //nolint:errcheck // nothing is read from it
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("not healthy: %s answered %s", url, res.Status)
	}
	return nil
}

// localURL returns the URL by which this host reaches a listener of the service.
// The setting is named in errors.
func localURL(setting, address string) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", fmt.Errorf("%s=%s: %w", setting, address, err)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, port), nil
}

// newLogger returns a logger in LOG_FORMAT.
func newLogger(w io.Writer, format string, level slog.Leveler) *slog.Logger {
	opts := &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Value.Kind() == slog.KindDuration { // 1.5s, not 1500000000
			a.Value = slog.StringValue(a.Value.Duration().String())
		}
		return a
	}}
	if format == "text" {
		return slog.New(slog.NewTextHandler(w, opts))
	}
	return slog.New(slog.NewJSONHandler(w, opts))
}
