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

// A RedisServer is a real redis-server on a port of its own, without
// persistence: started again, it is empty.
type RedisServer struct {
	tb       testing.TB // nil for the shared one
	port     int
	args     []string
	password string
	sentinel string   // the configuration file of a sentinel
	dir      string   // made at the first start, and the same ever after
	process  *Process // the running or the last one
}

var (
	sharedRedis struct {
		sync.Mutex
		server *RedisServer
	}
	prefixCount atomic.Int64
)

// Redis returns the server that the tests of this binary share; it is started
// at the first call. Tests keep apart by RedisPrefix, and leave it running.
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

// RedisPrefix returns a prefix for keys and channels that no other test of
// this binary uses.
func RedisPrefix() string { return fmt.Sprintf("t%d:", prefixCount.Add(1)) }

// StartRedis returns a server of the test's own, which may be stopped, killed
// and paused. It ends with the test. Arguments are redis-server's, such as
// "--requirepass", "secret".
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

// kill ends the server when its test is over.
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
		// What asks for a password is up, too.
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

// Kill ends the server by SIGKILL: connections break, nothing is said.
func (r *RedisServer) Kill() { r.stop(syscall.SIGKILL) }

// Stop ends the server as an operator would.
func (r *RedisServer) Stop() { r.stop(syscall.SIGTERM) }

func (r *RedisServer) stop(sig syscall.Signal) {
	r.mustOwn().Helper()
	if err := r.process.Stop(sig, redisTimeout); err != nil {
		r.tb.Errorf("testkit: %v", err)
	}
}

// Restart starts the server again, empty and on the same port; one that still
// runs is killed first.
func (r *RedisServer) Restart() {
	r.mustOwn().Helper()
	r.stop(syscall.SIGKILL)
	if err := r.start(); err != nil {
		r.tb.Fatalf("testkit: %v", err)
	}
}

// Pause stops the process (SIGSTOP): its connections stay, and nothing answers.
func (r *RedisServer) Pause() { r.signal(syscall.SIGSTOP) }

// Resume lets a paused process go on.
func (r *RedisServer) Resume() { r.signal(syscall.SIGCONT) }

func (r *RedisServer) signal(sig syscall.Signal) {
	r.mustOwn().Helper()
	if err := r.process.Signal(sig); err != nil {
		r.tb.Fatalf("testkit: %v", err)
	}
}

// Output returns the newest of what the server printed.
func (r *RedisServer) Output() string { return r.process.Output() }

// State returns the process' state as /proc tells it: T while it is paused,
// empty when it is gone.
func (r *RedisServer) State() string {
	state, _, _ := stat(r.process.Pid())
	return state
}

// mustOwn returns the test that may do harm to the server.
func (r *RedisServer) mustOwn() testing.TB {
	if r.tb == nil {
		panic("testkit: the shared Redis is not to be stopped: use StartRedis")
	}
	return r.tb
}

// Do sends one command on a connection of its own and returns the answer:
// elements of an array are joined by spaces.
func (r *RedisServer) Do(tb testing.TB, args ...string) string {
	tb.Helper()
	answer, err := r.command(args...)
	if err != nil {
		tb.Fatalf("testkit: redis %v: %v", args, err)
	}
	return answer
}

// DoExpectingError sends a command that the server is to refuse, and returns what it said.
func (r *RedisServer) DoExpectingError(tb testing.TB, args ...string) string {
	tb.Helper()
	answer, err := r.command(args...)
	if err == nil {
		tb.Fatalf("testkit: redis %v: %q, want a refusal", args, answer)
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

// exchange speaks just enough of Redis' protocol (RESP2) for tests.
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
