package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// The services that this package uses, by their names in the compose file.
const (
	PostgresService        = "postgres"
	PostgresReplicaService = "postgres_replica"
	RedisService           = "redis"
	TraefikService         = "traefik"
)

// acmeFolder is Traefik's folder for the certificates of Let's Encrypt.
const acmeFolder = "/acme"

// A Program is a command line with its input and output.
type Program struct {
	Args   []string
	Stdin  io.Reader
	Stdout io.Writer
}

// A Runner runs programs in the stack. It hides the containers from this package.
type Runner interface {
	// Run runs a program beside a running service, as a user who may connect to it
	// without a password. The environment leads psql and similar programs to the
	// right server and database. The error is a ProgramError if the program failed.
	Run(ctx context.Context, service string, p Program) error
	// ScratchServer returns a scratch server. Close removes a disposable one. One
	// that is not disposable is on the disk of the primary's data, so that its data
	// can replace these by rename.
	ScratchServer(ctx context.Context, disposable bool) (ScratchServer, error)
	// ConfigPaths returns the absolute paths of the files and folders of the
	// configuration on this host.
	ConfigPaths(ctx context.Context) ([]string, error)
	// StateDir returns the folder, among those paths, in which the stack records its
	// own state, such as which service is the primary. A backup includes it for
	// people, and a restore leaves it out. Empty means that there is none.
	StateDir() string
}

// A ServiceManager starts and stops services, and records which of the two
// PostgreSQL servers is the primary.
type ServiceManager interface {
	// Primary returns the recorded primary, whether it runs or not.
	Primary() (string, error)
	// SetPrimary records the primary. It takes effect when the servers start.
	SetPrimary(service string) error
	ServiceController
}

// A ServiceController starts and stops services.
type ServiceController interface {
	// Services returns all services by name, and whether each one runs.
	Services(ctx context.Context) (map[string]bool, error)
	// Stop stops services, first those that depend on others, each within its grace
	// period.
	Stop(ctx context.Context, services ...string) error
	// Start starts services and returns when they are healthy.
	Start(ctx context.Context, services ...string) error
}

// A ScratchServer is an environment to build a PostgreSQL server from a backup: the
// programs of the service's own image, an empty folder, the archive, and no network.
type ScratchServer interface {
	// Run runs a program as the user of the PostgreSQL server.
	Run(ctx context.Context, p Program) error
	// Paths returns the paths for programs on the scratch server.
	Paths() Paths
	// Close ends the programs that still run on the scratch server, and removes its
	// folder, unless an interrupted restore needs that to continue.
	Close(ctx context.Context) error
}

// Paths are paths as the programs on a scratch server see them.
type Paths struct {
	// Dir is the scratch server's own folder.
	Dir string
	// Archive is the folder of the WAL archive.
	Archive string
	// LiveData is the folder of the primary's data, beside Dir. It is empty on a
	// disposable scratch server.
	LiveData string
}

// A ProgramError says that a program failed, with the end of its error output.
type ProgramError struct {
	Program string
	Stderr  string
	Err     error
}

func (e *ProgramError) Error() string {
	if e.Stderr == "" {
		return fmt.Sprintf("%s: %v", e.Program, e.Err)
	}
	return fmt.Sprintf("%s: %s", e.Program, e.Stderr)
}

func (e *ProgramError) Unwrap() error { return e.Err }

// stopGrace is how long a canceled program may take to end.
const stopGrace = 10 * time.Second

// execute runs a command on this host. When ctx ends, it sends the command SIGTERM,
// and after stopGrace SIGKILL.
func execute(ctx context.Context, cmd *exec.Cmd, p Program) error {
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.Stdin, p.Stdout, &tailWriter{to: &stderr}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopGrace
	err := cmd.Run()
	if err == nil {
		return nil
	}
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%s is not installed on this host: %w", filepath.Base(cmd.Path), exec.ErrNotFound)
	}
	if ctx.Err() != nil {
		err = errors.Join(context.Cause(ctx), err)
	}
	return &ProgramError{Program: programName(p.Args), Stderr: oneLine(stderr.String()), Err: err}
}

// programName returns the name of a command line's program for an error: the first
// argument after env and its assignments.
func programName(args []string) string {
	for _, arg := range args {
		if arg != "env" && !strings.Contains(arg, "=") {
			return arg
		}
	}
	return strings.Join(args, " ")
}

// oneLine joins the last four lines of a program's error output.
func oneLine(s string) string {
	lines := strings.FieldsFunc(strings.TrimSpace(s), func(r rune) bool { return r == '\n' || r == '\r' })
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	if len(lines) > 4 {
		lines = lines[len(lines)-4:]
	}
	return strings.Join(lines, "; ")
}

// A tailWriter keeps the last tailSize bytes that are written to it.
type tailWriter struct{ to *bytes.Buffer }

const tailSize = 16 << 10

func (w *tailWriter) Write(b []byte) (int, error) {
	w.to.Write(b)
	if extra := w.to.Len() - tailSize; extra > 0 {
		w.to.Next(extra)
	}
	return len(b), nil
}

// output runs a program and returns its output without the last newline.
func output(ctx context.Context, run func(context.Context, Program) error, args ...string) (string, error) {
	var out bytes.Buffer
	err := run(ctx, Program{Args: args, Stdout: &out})
	return strings.TrimSuffix(out.String(), "\n"), err
}

// runOn returns a function that runs programs on one service.
func runOn(s Runner, service string) func(context.Context, Program) error {
	return func(ctx context.Context, p Program) error { return s.Run(ctx, service, p) }
}

// shellQuote quotes s as one word for a shell.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
