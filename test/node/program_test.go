package node

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"switchyard/internal/testkit"
	"switchyard/internal/testkit/fakeservice"
)

// debianModules is where Debian's package node-ws is.
const debianModules = "/usr/share/nodejs"

// A nodeProgram is test/node/program.mjs.
type nodeProgram struct {
	t      *testing.T
	cmd    *exec.Cmd
	input  io.WriteCloser
	lines  chan string
	stderr bytes.Buffer
	ended  sync.Once
	// messages are those that were printed so far.
	messages []string
	// last are the lines that were printed between the last expected one and the end.
	last []string
}

// socketClasses returns the classes that programs use here: that of the package ws, and
// Node's own, which Node has from version 20 on. The class of Debian's node-undici for
// Node 18 is not one: it fails each handshake that offers two subprotocols, as a client
// that resumes its session does.
func socketClasses(t *testing.T) []string {
	t.Helper()
	if exec.CommandContext(t.Context(), "node", "--experimental-websocket", "-e", "").Run() != nil {
		t.Log("this Node has no class of its own: version 20 is the first")
		return []string{"ws"}
	}
	return []string{"ws", "own"}
}

// startNodeProgram starts the program with a class for its sockets. manner is how it uses the client.
func startNodeProgram(t *testing.T, kind, url string, manner ...string) *nodeProgram {
	t.Helper()
	node, err := exec.LookPath("node")
	if err != nil {
		t.Fatalf("Node is missing, Debian's package nodejs (18 or newer): %v", err)
	}
	args := append([]string{"program.mjs", kind, url}, manner...)
	if kind == "own" { // Node 20 and 21 have the class of Node 22 behind a flag
		args = append([]string{"--experimental-websocket"}, args...)
	}
	p := &nodeProgram{t: t, lines: make(chan string, 1000)}
	p.cmd = exec.CommandContext(t.Context(), node, args...)
	p.cmd.Env = append(os.Environ(), "NODE_PATH="+cmp.Or(os.Getenv("NODE_PATH"), debianModules))
	p.cmd.Stderr = &p.stderr
	if p.input, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	output, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.lines)
		for lines := bufio.NewScanner(output); lines.Scan(); {
			p.lines <- lines.Text()
		}
	}()
	t.Cleanup(p.kill)
	return p
}

func (p *nodeProgram) kill() {
	p.ended.Do(func() {
		_ = p.cmd.Process.Kill()
		for range p.lines { // until the output ends
		}
		_ = p.cmd.Wait()
	})
}

// expect waits for a line, and skips others. A message may come before its ack or after.
func (p *nodeProgram) expect(want string) {
	p.t.Helper()
	ctx := testkit.Within(p.t, 30*time.Second)
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				_ = p.cmd.Wait()
				p.t.Fatalf("Node ended before %q: %s", want, &p.stderr)
			}
			if message, isMessage := strings.CutPrefix(line, "message "); isMessage {
				p.messages = append(p.messages, message)
			}
			if line == want {
				return
			}
		case <-ctx.Done():
			p.t.Fatalf("Node did not print %q", want)
		}
	}
}

func (p *nodeProgram) write(line string) {
	p.t.Helper()
	if _, err := fmt.Fprintln(p.input, line); err != nil {
		p.t.Fatal(err)
	}
}

func (p *nodeProgram) publish(text string, seq int) {
	p.t.Helper()
	p.write(text)
	p.expect(fmt.Sprintf("ack %s %d", text, seq))
}

// expectEnd closes the client, and waits until Node ends by itself.
func (p *nodeProgram) expectEnd() {
	p.t.Helper()
	p.write("close")
	_ = p.input.Close()
	p.ended.Do(func() {
		for line := range p.lines { // until the output ends
			p.last = append(p.last, line)
		}
		if err := p.cmd.Wait(); err != nil {
			p.t.Errorf("Node ended with %v: %s", err, &p.stderr)
		}
	})
}

// A program in Node lives on while the service is away, with the class of the package ws
// as with Node's own, and gets every message once.
func TestANodeProgramOutlivesTheService(t *testing.T) {
	for _, kind := range socketClasses(t) {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			server := testkit.StartServer(t, nil)
			proxy := testkit.NewProxy(t, server.Addr)
			nobody, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			free := nobody.Addr().String()
			_ = nobody.Close()
			proxy.Retarget(free) // a proxy whose target is not there ends each connection
			p := startNodeProgram(t, kind, "ws://"+proxy.Addr()+"/ws")
			p.expect("state waiting")
			p.expect("error connect_failed") // after the second attempt
			proxy.Retarget(server.Addr)
			p.expect("state live")
			p.publish("one", 1)
			proxy.Cut()
			p.expect("state waiting")
			p.expect("state live")
			p.publish("two", 2)
			server.Kill()
			p.expect("state waiting")
			server.Restart()
			p.expect("state live")
			p.publish("three", 3)
			p.publish("four", 4) // the messages before it have come by its ack
			p.expectEnd()
			if got := strings.Join(p.messages, " "); !strings.HasPrefix(got, "one two three") {
				t.Errorf("the messages are %s", got)
			}
		})
	}
}

// Nothing listens on the port at all, and a client that is closed while it connects ends
// its program: each class reports a failure in its own way.
func TestANodeProgramIsRefusedAndClosed(t *testing.T) {
	for _, kind := range socketClasses(t) {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = l.Close() }()
			p := startNodeProgram(t, kind, fmt.Sprintf("ws://127.0.0.1:%d/ws", testkit.FreePort()))
			p.expect("state waiting")
			p.expect("state connecting")
			p.expect("state waiting")
			p.expectEnd()
			connecting := startNodeProgram(t, kind, "ws://"+l.Addr().String()+"/ws")
			conn, err := l.Accept() // and no answer
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			connecting.expectEnd()
		})
	}
}

// A socket that is given up while it connects is no error that ends the program: not when
// no answer comes in time, nor when a move to it is canceled.
func TestANodeProgramGivesUpASocketThatConnects(t *testing.T) {
	for _, kind := range socketClasses(t) {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and says nothing
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = silent.Close() }()
			p := startNodeProgram(t, kind, "ws://"+silent.Addr().String()+"/ws", "fast")
			p.expect("state waiting")
			p.expect("state connecting")
			p.expect("state waiting")
			p.expectEnd()

			var accepted atomic.Bool
			first, handshakes, done := make(chan *fakeservice.Conn, 1), make(chan struct{}, 10), make(chan struct{})
			service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				handshakes <- struct{}{}
				if accepted.Swap(true) {
					<-done // no answer
					return
				}
				conn, err := fakeservice.Accept(t, w, r)
				if err != nil {
					t.Error(err)
					return
				}
				first <- conn
				conn.Queue(`{"type":"welcome","session":"s","resumed":false,"user":null,"node":"n1","color":"blue","deployment":"d1","version":"1","heartbeat_ms":600000,"max_frame":65536}`)
				conn.Serve(func(f fakeservice.Frame) bool {
					if f.Type == "join" {
						conn.Queue(f.Joined("e1", 0))
					}
					return true
				})
			}))
			defer service.Close()
			defer close(done)
			moving := startNodeProgram(t, kind, "ws"+strings.TrimPrefix(service.URL, "http")+"/ws")
			moving.expect("state live")
			conn := testkit.Receive(t, "the first connection", first)
			// Each request to move cancels the one before it, whose socket connects.
			for _, avoid := range []string{"n1", "n2", "n3"} {
				testkit.Receive(t, "a handshake", handshakes)
				conn.Queue(fmt.Sprintf(`{"type":"move","after_ms":0,"deadline_ms":600000,"avoid":{"node":%q},"reason":"drain"}`, avoid))
			}
			testkit.Receive(t, "the last handshake", handshakes)
			moving.expectEnd()
		})
	}
}

// A program lives on while a proxy answers each handshake with 502.
func TestANodeProgramOutlivesAProxyWithoutAService(t *testing.T) {
	for _, kind := range socketClasses(t) {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			server := testkit.StartServer(t, nil)
			target, err := url.Parse(server.URL())
			if err != nil {
				t.Fatal(err)
			}
			forward := httputil.NewSingleHostReverseProxy(target)
			refusals := map[string]int64{"ws": 20, "own": 4}[kind] // each takes half a second with Node's own class
			var requests atomic.Int64
			proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if requests.Add(1) <= refusals {
					http.Error(w, "Bad Gateway", http.StatusBadGateway)
					return
				}
				forward.ServeHTTP(w, r)
			}))
			defer proxy.Close()
			p := startNodeProgram(t, kind, "ws"+strings.TrimPrefix(proxy.URL, "http")+"/ws")
			p.expect("error connect_failed")
			p.expect("state live")
			p.publish("one", 1)
			p.expectEnd()
			if n := requests.Load(); n <= refusals {
				t.Errorf("it was live after %d requests", n)
			}
		})
	}
}

// A program whose listeners throw, and that awaits none of its publishes, lives on: it gets
// every message, and what failed is reported to it.
func TestACarelessNodeProgramLivesOn(t *testing.T) {
	t.Parallel()
	server := testkit.StartServer(t, nil)
	proxy := testkit.NewProxy(t, server.Addr)
	p := startNodeProgram(t, "ws", "ws://"+proxy.Addr()+"/ws", "careless")
	p.expect("state live")
	p.write("one")
	p.expect("message one")
	p.expect("error listener_failed")
	p.write("two")
	p.expect("message two")
	p.write(strings.Repeat("x", 100_000))
	p.expect("error too_large")
	proxy.Retarget("127.0.0.1:1")
	proxy.Cut()
	p.expect("state waiting")
	p.write("three")
	p.expectEnd()
	if !slices.Contains(p.last, "error closed") {
		t.Errorf("before its end it printed %q, want the error of the publish that nobody awaits", p.last)
	}
}

// The client needs nothing that React Native lacks.
func TestANodeProgramWithTheGlobalsOfReactNative(t *testing.T) {
	t.Parallel()
	server := testkit.StartServer(t, nil)
	proxy := testkit.NewProxy(t, "127.0.0.1:1")
	p := startNodeProgram(t, "native", "http://"+proxy.Addr()+"/ws")
	p.expect("error connect_failed") // after the second attempt
	proxy.Retarget(server.Addr)
	p.expect("state live")
	p.publish("one", 1)
	proxy.Cut()
	p.expect("state waiting")
	p.expect("state live")
	p.publish("two", 2)
	p.expectEnd()
}

// Without a class for its sockets a program ends at once, with an error that names what is missing.
func TestANodeProgramWithoutAWebSocketIsRefused(t *testing.T) {
	p := startNodeProgram(t, "none", "ws://127.0.0.1:1/ws")
	for range p.lines { // until the output ends
	}
	p.ended.Do(func() {
		if err := p.cmd.Wait(); err == nil || !strings.Contains(p.stderr.String(), "as the option WebSocket") {
			t.Errorf("it ended with %v: %s", err, &p.stderr)
		}
	})
}
