// Package testkit starts the real programs that tests need: PostgreSQL, Redis, and
// the programs of this module, each in a private directory and on free ports. No
// process outlives the test binary, even if that is killed. The package works on
// Linux; elsewhere it compiles, so that unit tests do, and what a system lacks is an
// error that names it. It never skips a test: a missing program fails the test with the name
// of the Debian package to install.
package testkit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A Program describes how to start a process.
type Program struct {
	// Path is the executable, as FindProgram returns it. Args do not include its
	// name.
	Path string
	Args []string
	// Env is added to the environment of the test binary.
	Env []string
	// Dir is the working directory. If it is empty, a private one is made, which
	// belongs to User.
	Dir string
	// User is the user that the program runs as; nil means the user of the test.
	User *User
	// Stdout receives standard output if it is not nil. Otherwise standard output
	// is captured together with standard error.
	Stdout io.Writer
}

// A Process is a started Program. All methods may be called at any time and
// from any goroutine.
type Process struct {
	name   string
	dir    string
	cmd    *exec.Cmd
	output *tail
	done   chan struct{} // closed by waitLoop after it has set err
	err    error
}

// Start starts a program in its own process group. Main stops it when the tests are
// over, and the kernel kills it if the test binary dies.
func Start(p Program) (*Process, error) {
	dir := p.Dir
	name := filepath.Base(p.Path)
	if dir == "" {
		var err error
		if dir, err = TempDir(name, p.User); err != nil {
			return nil, err
		}
	}
	proc := &Process{name: name, dir: dir, output: newTail(), done: make(chan struct{})}
	proc.cmd = exec.Command(p.Path, p.Args...)
	proc.cmd.Dir = dir
	proc.cmd.Env = append(os.Environ(), p.Env...)
	proc.cmd.Stderr = proc.output
	proc.cmd.Stdout = proc.output
	if p.Stdout != nil {
		proc.cmd.Stdout = p.Stdout
	}
	// A grandchild may keep the pipe open: bound the wait for it.
	proc.cmd.WaitDelay = 2 * time.Second
	proc.cmd.SysProcAttr = attributes(p.User)
	if err := resources.start(proc); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return proc, nil
}

// waitLoop waits for the end of the process and closes done.
func (p *Process) waitLoop() {
	p.err = p.cmd.Wait()
	resources.remove(p)
	p.output.close()
	close(p.done)
}

// Pid returns the process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Dir returns the working directory.
func (p *Process) Dir() string { return p.dir }

// Done returns a channel that is closed once the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Output returns what the process printed, at most its last 64 KiB.
func (p *Process) Output() string { return p.output.String() }

// Signal sends a signal to the process, not to its children.
func (p *Process) Signal(sig os.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("signal %s: %w", p.name, err)
	}
	return nil
}

// Wait returns when the process has ended: nil for exit code 0, otherwise an
// *exec.ExitError. If ctx ends first, Wait returns an error that wraps its error.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("wait for %s to end: %w", p.name, ctx.Err())
	}
}

// ExitCode waits until the process has ended, at most for d, and returns its exit code.
func (p *Process) ExitCode(tb testing.TB, d time.Duration) int {
	tb.Helper()
	err := p.Wait(Within(tb, d))
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	tb.Fatalf("testkit: %v; it printed:\n%s", err, p.Output())
	return 0
}

// WaitOutput returns when the process has printed text. It fails when the process
// or ctx ends first, with what the process has printed.
func (p *Process) WaitOutput(ctx context.Context, text string) error {
	for {
		changed, ended := p.output.changes()
		switch {
		case strings.Contains(p.output.String(), text):
			return nil
		case ended:
			return fmt.Errorf("%s ended before it printed %q; it printed:\n%s", p.name, text, p.Output())
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%s did not print %q: %w; it printed:\n%s", p.name, text, ctx.Err(), p.Output())
		}
	}
}

// Stop sends sig and waits for the process to end. After grace it kills the whole
// process group and returns an error. Stopping a process that has ended is no error.
func (p *Process) Stop(sig os.Signal, grace time.Duration) error {
	select {
	case <-p.done:
		return nil
	default:
	}
	if err := p.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	if err := p.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		p.killGroup()
		return nil
	}
	p.killGroup()
	<-p.done // bounded: SIGKILL, and WaitDelay for the pipes
	if sig == syscall.SIGKILL {
		return nil
	}
	return fmt.Errorf("%s did not end within %v of %v and was killed", p.name, grace, sig)
}

// alternativeNames are the names that systems other than Debian give to a program.
// scripts/deps has the same names.
var alternativeNames = map[string][]string{
	"chromium":                     {"chromium-browser", "google-chrome"},
	"firefox-esr":                  {"firefox"},
	"prometheus-alertmanager":      {"alertmanager"},
	"prometheus-blackbox-exporter": {"blackbox_exporter"},
	"redis-cli":                    {"valkey-cli"},
	"redis-server":                 {"valkey-server"},
}

// postgresDirs are the folders of PostgreSQL's programs on systems that keep them
// out of PATH: Debian, and Red Hat with the packages of postgresql.org.
var postgresDirs = []string{"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin"}

// FindPostgresProgram returns the path of one of PostgreSQL's programs.
func FindPostgresProgram(program string) (string, error) {
	return FindProgram(program, "postgresql", postgresDirs...)
}

// FindProgram returns the path of a program. It searches dirs (patterns of
// filepath.Glob, of which the last match wins) and then PATH, by Debian's name and
// then by those of other systems.
func FindProgram(program, debianPackage string, dirs ...string) (string, error) {
	for _, dir := range dirs {
		if found, _ := filepath.Glob(filepath.Join(dir, program)); len(found) > 0 {
			return found[len(found)-1], nil
		}
	}
	for _, name := range append([]string{program}, alternativeNames[program]...) {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("this test needs %s, which is in the Debian package %s: apt-get install -y %[2]s",
		program, debianPackage)
}

// FreePort returns a port on 127.0.0.1 that is free now. It is below the ports that
// Linux gives to outgoing connections (from 32768), so that a connection of a test
// does not use the port of a server that is being restarted. No two calls return the
// same port: the clients of a server that was stopped still try to reach it.
func FreePort() int {
	for range 1000 {
		port := 10_000 + rand.N(22_000)
		if _, used := usedPorts.LoadOrStore(port, true); used {
			continue
		}
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			_ = l.Close()
			return port
		}
	}
	panic("testkit: no free port on 127.0.0.1")
}

// usedPorts has the ports that FreePort has returned or found in use.
var usedPorts sync.Map

// A starter starts processes from one OS thread that lives as long as the tests:
// the kernel sends Pdeathsig when the thread that started a child ends, not the
// process.
type starter struct {
	requests chan startRequest // closed by resourceRegistry.close
	ended    chan struct{}     // closed by startLoop
}

// A startRequest asks startLoop to start cmd.
type startRequest struct {
	cmd *exec.Cmd
	err chan error // receives one result; buffered
}

func newStarter() *starter {
	s := &starter{requests: make(chan startRequest), ended: make(chan struct{})}
	go s.startLoop()
	return s
}

// startLoop lives until requests is closed.
func (s *starter) startLoop() {
	runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
	defer close(s.ended)
	for r := range s.requests {
		r.err <- r.cmd.Start()
	}
}

func (s *starter) start(cmd *exec.Cmd) error {
	r := startRequest{cmd: cmd, err: make(chan error, 1)}
	s.requests <- r
	return <-r.err
}

// A tail keeps the last tailBytes that were written to it. It is safe for
// concurrent use.
type tail struct {
	mu      sync.Mutex // Protects following.
	buf     []byte
	changed chan struct{} // closed and replaced at each change
	ended   bool
}

const tailBytes = 64 << 10

func newTail() *tail { return &tail{changed: make(chan struct{})} }

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b...)
	if len(t.buf) > 2*tailBytes {
		t.buf = append([]byte(nil), t.buf[len(t.buf)-tailBytes:]...)
	}
	t.signal()
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf[max(0, len(t.buf)-tailBytes):])
}

// changes returns a channel that is closed at the next change, and whether the
// writer has ended.
func (t *tail) changes() (changed <-chan struct{}, ended bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.changed, t.ended
}

func (t *tail) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
	t.signal()
}

// signal wakes those that wait for a change. The caller holds mu.
func (t *tail) signal() {
	close(t.changed)
	t.changed = make(chan struct{})
}
