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

// The services that this package speaks with, as the compose file calls them.
const (
	PostgresService        = "postgres"
	PostgresReplicaService = "postgres_replica"
	RedisService           = "redis"
	TraefikService         = "traefik"
)

// acmeFolder is where Traefik keeps what Let's Encrypt gave it.
const acmeFolder = "/acme"

// A Program is one run of a program of PostgreSQL, of Redis or of the system.
type Program struct {
	Args   []string
	Stdin  io.Reader
	Stdout io.Writer
}

// A Runner is where programs run. It is all that this package knows of
// containers.
type Runner interface {
	// Run runs a program beside a running service, as a user who may connect to
	// it without a password; psql and its kin find the right server and database
	// in their environment. The error holds what the program said.
	Run(ctx context.Context, service string, p Program) error
	// ScratchServer returns a bench. A scratch bench is gone when it is closed; one that
	// is not lies on the disk of the primary's data, so that the bench's can take
	// their place by rename.
	ScratchServer(ctx context.Context, disposable bool) (ScratchServer, error)
	// ConfigPaths returns the files that make up the configuration: absolute paths of
	// files and folders of this host.
	ConfigPaths(ctx context.Context) ([]string, error)
	// StateDir returns the folder among them of what the stack itself writes down as
	// it goes, such as who is the primary: it is packed to be read, and never
	// restored. Empty: there is none.
	StateDir() string
}

// A ServiceManager starts and stops services, and knows which of the two
// PostgreSQL takes writes.
type ServiceManager interface {
	// Primary returns the service that is to take writes, whether it runs or not.
	Primary() (string, error)
	// SetPrimary makes another service that, at the next start of both.
	SetPrimary(service string) error
	ServiceController
}

// A ServiceController starts and stops services.
type ServiceController interface {
	// Services returns all services by name, and whether each one runs.
	Services(ctx context.Context) (map[string]bool, error)
	// Stop stops services, those that rest on others first, each within its grace
	// period.
	Stop(ctx context.Context, services ...string) error
	// Start starts services and returns once they are healthy.
	Start(ctx context.Context, services ...string) error
}

// A ScratchServer is where a PostgreSQL server can be built from a backup: the programs
// of the service's own image, an empty folder, the archive, and no network.
type ScratchServer interface {
	// Run runs a program as the user whom the server runs as.
	Run(ctx context.Context, p Program) error
	// Paths tells where programs on the bench find things.
	Paths() Paths
	// Close ends what still runs on the bench, and removes its folder, but where a
	// restore that was cut short needs that to go on.
	Close(ctx context.Context) error
}

// Paths are paths as the programs on a bench see them.
type Paths struct {
	// Dir is the bench's own.
	Dir string
	// Archive is the folder of the WAL archive.
	Archive string
	// LiveData is the folder of the primary's data, beside Folder; empty on a scratch
	// bench.
	LiveData string
}

// A ProgramError is a program that failed, and what it said.
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

// stopGrace is how long a program that is no longer wanted has to end.
const stopGrace = 10 * time.Second

// execute runs a command of this host. When ctx ends the command is asked to
// end, and killed when it does not.
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

// programName returns the name to tell of a command line: what follows env and
// its assignments.
func programName(args []string) string {
	for _, arg := range args {
		if arg != "env" && !strings.Contains(arg, "=") {
			return arg
		}
	}
	return strings.Join(args, " ")
}

// oneLine brings what a program said into one line, without its own prefix.
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

// A tailWriter keeps the newest of what is written to it.
type tailWriter struct{ to *bytes.Buffer }

const tailSize = 16 << 10

func (w *tailWriter) Write(b []byte) (int, error) {
	w.to.Write(b)
	if extra := w.to.Len() - tailSize; extra > 0 {
		w.to.Next(extra)
	}
	return len(b), nil
}

// output runs a program and returns what it printed, without the last newline.
func output(ctx context.Context, run func(context.Context, Program) error, args ...string) (string, error) {
	var out bytes.Buffer
	err := run(ctx, Program{Args: args, Stdout: &out})
	return strings.TrimSuffix(out.String(), "\n"), err
}

// runOn returns Run of a service as a function of the program alone.
func runOn(s Runner, service string) func(context.Context, Program) error {
	return func(ctx context.Context, p Program) error { return s.Run(ctx, service, p) }
}

// shellQuote returns s as one word of a shell.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
