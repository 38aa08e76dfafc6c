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

// Bounds of the programs that are run.
const (
	quickLimit = time.Minute     // for queries: an engine under load is slow
	startLimit = 5 * time.Minute // to create containers, or to stop them with their grace period
	pullLimit  = 15 * time.Minute
	// outputLimit bounds the bytes that are kept of a program's output.
	outputLimit = 32 << 20
)

// A command runs programs on the host, above all docker.
type command struct {
	// inheritedFile, if set, is the lock's file, which each program inherits: the
	// lock is held until the last of them ends.
	inheritedFile *os.File
	// mergeStderr appends standard error to the output.
	mergeStderr bool
}

// run runs a program for at most limit and returns its output. It adds env to the
// environment, and removes the variables of the colors: .env is their only source.
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
	// The program has its own process group: Ctrl-C reaches only this command,
	// which then ends the program. When this command dies, the program ends too.
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

// lastLine returns the last line of a program's error output, at most 500 bytes.
func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	last := strings.TrimSpace(lines[len(lines)-1])
	return last[:min(len(last), 500)]
}

// A boundedBuffer keeps the first outputLimit bytes and drops the rest.
type boundedBuffer struct{ bytes.Buffer }

func (b *boundedBuffer) Write(p []byte) (int, error) {
	if room := outputLimit - b.Len(); room > 0 {
		b.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}
