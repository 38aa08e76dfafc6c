package stack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A Program is a command line with its input and output.
type Program struct {
	Args   []string
	Stdin  io.Reader
	Stdout io.Writer
	// Stderr, if set, gets the error output, of which an error then says nothing.
	Stderr io.Writer
}

// A programError says that a program failed, with the end of its error output.
type programError struct {
	program string
	stderr  string
	err     error
}

func (e *programError) Error() string {
	if text := lastLines(e.stderr, 4); text != "" {
		return e.program + ": " + text
	}
	return fmt.Sprintf("%s: %v", e.program, e.err)
}

func (e *programError) Unwrap() error { return e.err }

// Bounds of the programs that are run.
const (
	QuickLimit = time.Minute     // for queries: an engine under load is slow
	StartLimit = 5 * time.Minute // to create containers, or to stop them with their grace period
	pullLimit  = 15 * time.Minute
	// stopGrace is how long a canceled program may take to end.
	stopGrace = 10 * time.Second
	// outputLimit bounds the bytes that are kept of a program's output, stderrLimit
	// those of its error output.
	outputLimit = 32 << 20
	stderrLimit = 16 << 10
)

// Execute runs a command of this host with the input and output of p. When ctx ends,
// it sends the command SIGTERM, and after stopGrace SIGKILL. The cause of the error
// is that of ctx if ctx ended.
func Execute(ctx context.Context, cmd *exec.Cmd, p Program) error {
	var stderr tailBuffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.Stdin, p.Stdout, p.Stderr
	if p.Stderr == nil {
		cmd.Stderr = &stderr
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopGrace
	err := cmd.Run()
	switch cause := context.Cause(ctx); {
	case err == nil:
		return nil
	case errors.Is(err, exec.ErrNotFound):
		return fmt.Errorf("%s is not installed on this host: %w", filepath.Base(cmd.Path), exec.ErrNotFound)
	case cause != nil:
		err = cause
	case lacksCompose(stderr.String()):
		return errNoCompose
	}
	return &programError{program: programName(p.Args), stderr: stderr.String(), err: err}
}

var errNoCompose = errors.New("docker on this host has no Compose v2: install its plugin (docker-compose-plugin, or docker-compose-v2)")

// lacksCompose reports whether docker took compose for a command that it does not
// know: without the plugin it complains of Compose's own flags.
func lacksCompose(stderr string) bool {
	return strings.Contains(stderr, "unknown shorthand flag: 'p' in -p") || strings.Contains(stderr, "'compose' is not a docker command")
}

// command returns a command in the stack's folder, without the variables of the
// colors: .env is their only source. It inherits the stack's lock, which is held
// until the last program ends.
func (s *Stack) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = s.Dir
	cmd.Env = slices.DeleteFunc(cmd.Environ(), isColorSetting)
	if s.lock != nil {
		cmd.ExtraFiles = []*os.File{s.lock.file}
	}
	// The program has its own process group: Ctrl-C reaches only this command, which
	// then ends the program. When this command dies, the program ends too.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	return cmd
}

// output runs a command for at most limit, adds env to its environment, and returns
// its output, also that of a command that failed. The error names what the command
// was asked to do. merged appends the error output to the output.
func (s *Stack) output(ctx context.Context, limit time.Duration, merged bool, env []string, name string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no end within %v", limit))
	defer cancel()
	cmd := s.command(ctx, name, args...)
	cmd.Env = append(cmd.Env, env...)
	var out headBuffer
	p := Program{Stdout: &out}
	if merged {
		p.Stderr = &out
	}
	err := Execute(ctx, cmd, p)
	var failed *programError
	if errors.As(err, &failed) {
		err = fmt.Errorf("%s %s: %w", name, describeArgs(args), failed.err)
		if last := lastLines(failed.stderr, 1); last != "" {
			err = fmt.Errorf("%w: %s", err, last[:min(len(last), 500)])
		}
	}
	return out.Bytes(), err
}

// Shell runs a shell command of the operator in a folder. It inherits no lock.
func Shell(ctx context.Context, limit time.Duration, dir, script string, args ...string) ([]byte, error) {
	return (&Stack{Dir: dir}).output(ctx, limit, false, nil, "sh", append([]string{"-c", script, "sh"}, args...)...)
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

// describeArgs returns the first arguments that are not flags, for an error that
// names what the program was asked to do.
func describeArgs(args []string) string {
	var found []string
	for i := 0; i < len(args) && len(found) < 4; i++ {
		switch {
		case slices.Contains([]string{"-p", "-f", "--filter", "--format", "--type"}, args[i]):
			i++ // its value
		case !strings.HasPrefix(args[i], "-"):
			found = append(found, args[i])
		}
	}
	return strings.Join(found, " ")
}

// isColorSetting reports whether a NAME=value would override a color's lines of .env.
func isColorSetting(variable string) bool {
	name, _, _ := strings.Cut(variable, "=")
	for _, prefix := range []string{"IMAGE_", "DEPLOYMENT_", "REPLICAS_"} {
		for _, c := range Colors {
			if name == prefix+strings.ToUpper(string(c)) {
				return true
			}
		}
	}
	return false
}

// lastLines joins the last n lines of a program's error output in one line.
func lastLines(s string, n int) string {
	lines := strings.FieldsFunc(strings.TrimSpace(s), func(r rune) bool { return r == '\n' || r == '\r' })
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return strings.Join(lines[max(0, len(lines)-n):], "; ")
}

// A headBuffer keeps the first outputLimit bytes and drops the rest.
type headBuffer struct{ bytes.Buffer }

func (b *headBuffer) Write(p []byte) (int, error) {
	if room := outputLimit - b.Len(); room > 0 {
		b.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// A tailBuffer keeps the last stderrLimit bytes.
type tailBuffer struct{ bytes.Buffer }

func (b *tailBuffer) Write(p []byte) (int, error) {
	b.Buffer.Write(p)
	b.Next(max(0, b.Len()-stderrLimit))
	return len(p), nil
}
