package testkit

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// redisTimeout bounds how long a server may take to start, stop or answer.
const redisTimeout = 10 * time.Second

// A RedisServer is a real redis-server without persistence: after a restart it is
// empty. Its methods belong to the test's goroutine.
type RedisServer struct {
	tb       testing.TB // nil for the shared server
	port     int
	args     []string
	password string
	sentinel string   // the configuration file, if this is a sentinel
	dir      string   // made at the first start and kept
	process  *Process // the running process or the last one
}

var (
	sharedRedis struct {
		sync.Mutex
		server *RedisServer
	}
	prefixCount atomic.Int64
)

// Redis returns the server that the tests of this binary share, which the first
// call starts. Tests use keys and channels with a RedisPrefix, and must not stop
// the server.
func Redis(tb testing.TB) *RedisServer {
	tb.Helper()
	sharedRedis.Lock()
	defer sharedRedis.Unlock()
	if sharedRedis.server == nil {
		r := &RedisServer{}
		if err := r.start(); err != nil {
			tb.Fatalf("testkit: %v", err)
		}
		sharedRedis.server = r
	}
	return sharedRedis.server
}

// RedisPrefix returns a prefix of keys and channels that no other test of this
// binary uses.
func RedisPrefix() string { return fmt.Sprintf("t%d:", prefixCount.Add(1)) }

// StartRedis starts a server that belongs to the test, which may stop, kill and
// pause it. It is killed when the test ends. The arguments are those of
// redis-server, such as "--requirepass", "secret".
func StartRedis(tb testing.TB, args ...string) *RedisServer {
	tb.Helper()
	r := &RedisServer{tb: tb, args: args}
	for i := range args {
		if args[i] == "--requirepass" && i+1 < len(args) {
			r.password = args[i+1]
		}
	}
	if err := r.start(); err != nil {
		tb.Fatalf("testkit: %v", err)
	}
	tb.Cleanup(r.kill)
	return r
}

// kill kills the server when its test has ended.
func (r *RedisServer) kill() { _ = r.process.Stop(syscall.SIGKILL, redisTimeout) }

func (r *RedisServer) start() error {
	path, err := FindProgram("redis-server", "redis-server")
	if err != nil {
		return err
	}
	if r.port == 0 {
		r.port = FreePort()
	}
	args := append([]string{
		"--port", strconv.Itoa(r.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
	}, r.args...)
	if r.sentinel != "" {
		args = []string{r.sentinel, "--port", strconv.Itoa(r.port), "--bind", "127.0.0.1", "--sentinel"}
	}
	if r.process, err = Start(Program{Path: path, Args: args, Dir: r.dir}); err != nil {
		return err
	}
	r.dir = r.process.Dir()
	for deadline := time.Now().Add(redisTimeout); ; {
		// A server that asks for a password is up.
		_, err := r.command("PING")
		if err == nil || strings.Contains(err.Error(), "NOAUTH") {
			return nil
		}
		select {
		case <-r.process.Done():
			return fmt.Errorf("redis-server ended at once:\n%s", r.process.Output())
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("redis-server did not answer within %v: %w\n%s", redisTimeout, err, r.process.Output())
		}
	}
}

// Addr returns host:port.
func (r *RedisServer) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(r.port)) }

// URL returns redis://host:port, with the password if one was set.
func (r *RedisServer) URL() string {
	if r.password != "" {
		return "redis://:" + r.password + "@" + r.Addr()
	}
	return "redis://" + r.Addr()
}

// Kill kills the server with SIGKILL, so that connections break.
func (r *RedisServer) Kill() { r.stop(syscall.SIGKILL) }

// Stop stops the server with SIGTERM, as an operator does.
func (r *RedisServer) Stop() { r.stop(syscall.SIGTERM) }

func (r *RedisServer) stop(sig syscall.Signal) {
	r.mustOwn().Helper()
	if err := r.process.Stop(sig, redisTimeout); err != nil {
		r.tb.Errorf("testkit: %v", err)
	}
}

// Restart kills the server if it runs, and starts it again, empty and on the same
// port.
func (r *RedisServer) Restart() {
	r.mustOwn().Helper()
	r.stop(syscall.SIGKILL)
	if err := r.start(); err != nil {
		r.tb.Fatalf("testkit: %v", err)
	}
}

// Pause suspends the process (SIGSTOP): its connections stay open, and nothing
// answers. Resume ends it.
func (r *RedisServer) Pause() { r.signal(sigStop) }

// Resume continues a paused process.
func (r *RedisServer) Resume() { r.signal(sigCont) }

func (r *RedisServer) signal(sig syscall.Signal) {
	r.mustOwn().Helper()
	if err := r.process.Signal(sig); err != nil {
		r.tb.Fatalf("testkit: %v", err)
	}
}

// Output returns what the server printed, at most its last 64 KiB.
func (r *RedisServer) Output() string { return r.process.Output() }

// State returns the state of the process in /proc: T while it is paused, empty
// when it has ended.
func (r *RedisServer) State() string {
	state, _, _ := stat(r.process.Pid())
	return state
}

// mustOwn returns the test that the server belongs to, and panics for the shared
// server.
func (r *RedisServer) mustOwn() testing.TB {
	if r.tb == nil {
		panic("testkit: the shared Redis is not to be stopped: use StartRedis")
	}
	return r.tb
}

// Do sends one command on a new connection and returns the reply. The elements of
// an array are joined by spaces.
func (r *RedisServer) Do(tb testing.TB, args ...string) string {
	tb.Helper()
	answer, err := r.command(args...)
	if err != nil {
		tb.Fatalf("testkit: redis %v: %v", args, err)
	}
	return answer
}

// DoExpectingError sends a command that the server must refuse, and returns its
// error.
func (r *RedisServer) DoExpectingError(tb testing.TB, args ...string) string {
	tb.Helper()
	answer, err := r.command(args...)
	if err == nil {
		tb.Fatalf("testkit: redis %v: %q, want an error", args, answer)
	}
	return err.Error()
}

func (r *RedisServer) command(args ...string) (string, error) {
	conn, err := net.DialTimeout("tcp", r.Addr(), redisTimeout)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(redisTimeout)); err != nil {
		return "", err
	}
	br := bufio.NewReader(conn)
	if r.password != "" {
		if _, err := exchange(conn, br, "AUTH", r.password); err != nil {
			return "", err
		}
	}
	return exchange(conn, br, args...)
}

// exchange sends a command and reads its reply, in the part of RESP2 that tests
// need.
func exchange(w io.Writer, br *bufio.Reader, args ...string) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, arg := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(arg), arg)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return "", err
	}
	return readReply(br)
}

func readReply(br *bufio.Reader) (string, error) {
	line, err := br.ReadString('\n')
	if err != nil {
		return "", err
	}
	kind, rest := line[0], strings.TrimSpace(line[1:])
	n, _ := strconv.Atoi(rest)
	switch kind {
	case '-':
		return "", fmt.Errorf("redis said %s", rest)
	case '$':
		if n < 0 {
			return "", nil
		}
		bulk := make([]byte, n+2)
		_, err := io.ReadFull(br, bulk)
		return string(bulk[:n]), err
	case '*':
		var parts []string
		for range n {
			part, err := readReply(br)
			if err != nil {
				return "", err
			}
			parts = append(parts, part)
		}
		return strings.Join(parts, " "), nil
	}
	return rest, nil // + and :
}
