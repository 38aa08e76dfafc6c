package deploy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Bounds of the commands that are run.
const (
	quickLimit = time.Minute     // looks: an engine under load takes its time
	startLimit = 5 * time.Minute // a container created, or stopped with its grace
	pullLimit  = 15 * time.Minute
	// outputLimit bounds what is kept of a command's output.
	outputLimit = 32 << 20
)

// A command runs programs on the host: docker.
type command struct {
	// inherit is handed to each program: as long as one runs, the lock is held.
	inheritedFile *os.File
	// both takes standard error for output, too.
	mergeStderr bool
}

// run runs a program with a bound and returns its output. The names in env are
// set, and those of colors are taken out: .env alone is to say them.
func (c command) run(ctx context.Context, limit time.Duration, dir string, env []string, name string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no end within %v", limit))
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(slices.DeleteFunc(cmd.Environ(), isColorSetting), env...)
	var out, stderr boundedBuffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if c.mergeStderr {
		cmd.Stderr = &out
	}
	if c.inheritedFile != nil {
		cmd.ExtraFiles = []*os.File{c.inheritedFile}
	}
	// A group of its own: Ctrl-C is for this command, which ends the program in
	// its own time; and its own death is the program's.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	err := cmd.Run()
	if err == nil {
		return out.Bytes(), nil
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	what := name + " " + describeArgs(args)
	if errors.Is(err, exec.ErrNotFound) {
		return nil, fmt.Errorf("%s is not installed: %w", name, err)
	}
	return out.Bytes(), fmt.Errorf("%s: %w: %s", what, err, lastLine(stderr.String()))
}

// describeArgs are the first of a command's arguments that are no flags: what it was to
// do, for an error.
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

// isColorSetting tells whether a variable would say what .env has to say.
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

// lastLine is the end of what a program complained about.
func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	last := strings.TrimSpace(lines[len(lines)-1])
	return last[:min(len(last), 500)]
}

// A boundedBuffer buffer keeps the first bytes and drops the rest.
type boundedBuffer struct{ bytes.Buffer }

func (b *boundedBuffer) Write(p []byte) (int, error) {
	if room := outputLimit - b.Len(); room > 0 {
		b.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}
