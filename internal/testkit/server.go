package testkit

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// serverTimeout bounds how long a server may take to be ready, with the race
// detector and on a busy machine.
const serverTimeout = 30 * time.Second

// BuildServer builds cmd/server with the race detector, and returns the path of the
// program.
func BuildServer(tb testing.TB) string { return build(tb, "server", "-race") }

// BuildSwitchyard builds cmd/switchyard with the race detector, and returns the
// path of the program.
func BuildSwitchyard(tb testing.TB) string { return build(tb, "switchyard", "-race") }

// builds has a function for each program and flag, which builds it at its first
// call.
var builds sync.Map

// build builds a command once in this test binary, and returns the path of the
// program. TESTKIT_BIN names a folder in which test binaries share their programs:
// the go command then only checks that the program in it is up to date.
func build(tb testing.TB, command, flag string) string {
	tb.Helper()
	type result struct {
		path string
		err  error
	}
	once, _ := builds.LoadOrStore(command+flag, sync.OnceValue(func() (r result) {
		r.path, r.err = runBuild(command, flag)
		return r
	}))
	r := once.(func() result)()
	if r.err != nil {
		tb.Fatalf("testkit: %v", r.err)
	}
	return r.path
}

func runBuild(command, flag string) (string, error) {
	dir := os.Getenv("TESTKIT_BIN")
	if dir == "" {
		var err error
		if dir, err = TempDir("build", nil); err != nil {
			return "", err
		}
	} else {
		lock, err := waitLock(filepath.Join(dir, "lock"))
		if err != nil {
			return "", err
		}
		defer func() { _ = lock.Close() }()
	}
	path := filepath.Join(dir, command+flag)
	out, err := exec.Command("go", "build", "-buildvcs=false", flag, "-o", path, "switchyard/cmd/"+command).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build cmd/%s: %w\n%s", command, err, out)
	}
	return path, nil
}

// A Server is a process of cmd/server. Its methods belong to the test's goroutine.
type Server struct {
	tb      testing.TB
	program string
	env     map[string]string
	files   int      // the limit of open files; 0 is that of the test
	process *Process // the running process or the last one
	dir     string
	// Addr and Admin are the host:port of the two listeners, and stay the same
	// over restarts.
	Addr, Admin string
}

// StartServer starts a server with these settings and waits until it is ready.
// Without DATABASE_URL it has its SQLite file in a directory of its own. It is
// killed when the test ends, and a data race that it has reported fails the test.
func StartServer(tb testing.TB, env map[string]string) *Server {
	tb.Helper()
	return startServer(tb, BuildServer(tb), env)
}

// StartPlainServer is StartServer without the race detector, for benchmarks.
func StartPlainServer(tb testing.TB, env map[string]string) *Server {
	tb.Helper()
	return startServer(tb, build(tb, "server", "-trimpath"), env)
}

// StartServerWithFiles is StartServer with a limit of open files, soft and hard.
func StartServerWithFiles(tb testing.TB, files int, env map[string]string) *Server {
	tb.Helper()
	return startServer(tb, BuildServer(tb), env, func(s *Server) { s.files = files })
}

func startServer(tb testing.TB, program string, env map[string]string, change ...func(*Server)) *Server {
	tb.Helper()
	dir, err := TempDir("server", nil)
	if err != nil {
		tb.Fatalf("testkit: %v", err)
	}
	s := &Server{
		tb: tb, program: program, env: env, dir: dir,
		Addr:  fmt.Sprintf("127.0.0.1:%d", FreePort()),
		Admin: fmt.Sprintf("127.0.0.1:%d", FreePort()),
	}
	for _, set := range change {
		set(s)
	}
	s.start()
	tb.Cleanup(func() {
		_ = s.process.Signal(sigCont) // a test may have failed while the process was stopped
		s.Kill()
		if out := s.Output(); strings.Contains(out, "DATA RACE") {
			tb.Errorf("the server has a data race:\n%s", out)
		}
	})
	return s
}

func (s *Server) start() {
	s.tb.Helper()
	s.launch()
	ctx, cancel := context.WithTimeout(context.Background(), serverTimeout)
	defer cancel()
	if err := s.WaitReady(ctx); err != nil {
		s.tb.Fatalf("testkit: %v; it printed:\n%s", err, s.Output())
	}
}

func (s *Server) launch() {
	s.tb.Helper()
	env := []string{"LISTEN_ADDR=" + s.Addr, "ADMIN_ADDR=" + s.Admin}
	for name, value := range s.env {
		env = append(env, name+"="+value)
	}
	program := Program{Path: s.program, Env: env, Dir: s.dir}
	if s.files > 0 {
		prlimit, err := FindProgram("prlimit", "util-linux")
		if err != nil {
			s.tb.Fatalf("testkit: %v", err)
		}
		program.Path, program.Args = prlimit, []string{fmt.Sprintf("--nofile=%d:%[1]d", s.files), s.program}
	}
	p, err := Start(program)
	if err != nil {
		s.tb.Fatalf("testkit: %v", err)
	}
	s.process = p
}

// WaitReady returns when /readyz answers 200. It fails when the process or ctx ends
// first.
func (s *Server) WaitReady(ctx context.Context) error {
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL()+"/readyz", nil)
		if err != nil {
			return fmt.Errorf("request /readyz: %w", err)
		}
		req.Close = true // leave no idle connection
		res, err := http.DefaultClient.Do(req)
		if err == nil {
			_ = res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-s.process.Done():
			return fmt.Errorf("the server ended before it was ready")
		case <-ctx.Done():
			return fmt.Errorf("the server was not ready in time: %w", ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// URL returns http://host:port, without a slash at its end.
func (s *Server) URL() string { return "http://" + s.Addr }

// SocketURL returns the URL for WebSocket clients.
func (s *Server) SocketURL() string { return "ws://" + s.Addr + "/ws" }

// Pid returns the process id.
func (s *Server) Pid() int { return s.process.Pid() }

// Output returns what the process printed, at most its last 64 KiB.
func (s *Server) Output() string { return s.process.Output() }

// Kill kills the process with SIGKILL, and waits until it has ended.
func (s *Server) Kill() { _ = s.process.Stop(syscall.SIGKILL, serverTimeout) }

// Stop stops the process with SIGTERM and returns its exit status: nil for code 0.
func (s *Server) Stop() error { return s.StopWithin(serverTimeout) }

// StopWithin is Stop with another bound, after which the process is killed.
func (s *Server) StopWithin(grace time.Duration) error {
	if err := s.process.Stop(syscall.SIGTERM, grace); err != nil {
		return err
	}
	return s.process.Wait(context.Background()) // returns at once: it has ended
}

// LimitFiles changes the limit of open files of the running process.
func (s *Server) LimitFiles(soft int) {
	s.tb.Helper()
	prlimit, err := FindProgram("prlimit", "util-linux")
	if err != nil {
		s.tb.Fatalf("testkit: %v", err)
	}
	if out, err := exec.Command(prlimit, "--pid", strconv.Itoa(s.Pid()), fmt.Sprintf("--nofile=%d:", soft)).CombinedOutput(); err != nil {
		s.tb.Fatalf("testkit: prlimit: %v: %s", err, out)
	}
}

// OpenFiles returns the descriptors that the process has open.
func (s *Server) OpenFiles() (descriptors []int) {
	s.tb.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.Pid()))
	if err != nil {
		s.tb.Fatalf("testkit: %v", err)
	}
	for _, entry := range entries {
		if fd, err := strconv.Atoi(entry.Name()); err == nil {
			descriptors = append(descriptors, fd)
		}
	}
	return descriptors
}

// Signal sends a signal, such as SIGSTOP.
func (s *Server) Signal(sig os.Signal) {
	s.tb.Helper()
	if err := s.process.Signal(sig); err != nil {
		s.tb.Fatalf("testkit: %v", err)
	}
}

// Restart starts the process again on the same ports and files, and waits
// until it is ready.
func (s *Server) Restart() {
	s.tb.Helper()
	s.Kill()
	s.start()
}

// Ended reports whether the process has ended.
func (s *Server) Ended() bool {
	select {
	case <-s.process.Done():
		return true
	default:
		return false
	}
}

// Launch starts the process again on the same ports and files. It does not wait
// until the server is ready, which it may never be.
func (s *Server) Launch() {
	s.tb.Helper()
	s.Kill()
	s.launch()
}

// State returns the state of the process in /proc: T while it is stopped, empty
// when it has ended.
func (s *Server) State() string {
	state, _, _ := stat(s.Pid())
	return state
}
