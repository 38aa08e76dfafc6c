package backup

import (
	"bytes"
	"context"
	"strings"

	"switchyard/internal/stack"
)

// acmeFolder is Traefik's folder for the certificates of Let's Encrypt.
const acmeFolder = "/acme"

// A Runner runs programs in the stack. It hides the containers from this package.
type Runner interface {
	// Run runs a program beside a running service, as a user who may connect to it
	// without a password. The environment leads psql and similar programs to the
	// right server and database.
	Run(ctx context.Context, service string, p stack.Program) error
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
	Run(ctx context.Context, p stack.Program) error
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

// output runs a program and returns its output without the last newline.
func output(ctx context.Context, run func(context.Context, stack.Program) error, args ...string) (string, error) {
	var out bytes.Buffer
	err := run(ctx, stack.Program{Args: args, Stdout: &out})
	return strings.TrimSuffix(out.String(), "\n"), err
}

// runOn returns a function that runs programs on one service.
func runOn(s Runner, service string) func(context.Context, stack.Program) error {
	return func(ctx context.Context, p stack.Program) error { return s.Run(ctx, service, p) }
}

// shellQuote quotes s as one word for a shell.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
