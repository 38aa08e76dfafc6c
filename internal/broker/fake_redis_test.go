package broker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// A fakeRedis is a Redis server in this process, for tests in the virtual time
// of testing/synctest. It knows the commands that the broker uses. It is safe
// for concurrent use.
type fakeRedis struct {
	mu          sync.Mutex
	down        bool          // it refuses connections
	frozen      bool          // it accepts connections and commands, and answers nothing
	delay       time.Duration // of each answer
	countless   bool          // it answers each PUBLISH with 0
	slots       string        // its answer to CLUSTER SLOTS
	connections map[*fakeSession]bool
	commands    map[string]int // how often it got each, by upper-case name
}

// A fakeSession is one connection of a client.
type fakeSession struct {
	conn     net.Conn
	answers  chan string // buffered: a pipeline is read in full before its answers are
	channels map[string]bool
}

func newFakeRedis() *fakeRedis {
	return &fakeRedis{
		connections: map[*fakeSession]bool{}, commands: map[string]int{},
		slots: fmt.Sprintf("*1\r\n*3\r\n:0\r\n:%d\r\n*2\r\n%s:7000\r\n", clusterSlots-1, bulk("10.0.0.1")),
	}
}

// open returns a started broker for url, all of whose servers are f.
func (f *fakeRedis) open(t *testing.T, url string, cfg Config) *node {
	t.Helper()
	return openDialing(t, url, cfg, f.dial)
}

// A fakeCluster has three masters, each with a third of the slots.
type fakeCluster [3]*fakeRedis

func newFakeCluster() *fakeCluster {
	var c fakeCluster
	slots := fmt.Sprintf("*%d\r\n", len(c))
	for i := range c {
		c[i] = newFakeRedis()
		slots += fmt.Sprintf("*3\r\n:%d\r\n:%d\r\n*2\r\n%s:7000\r\n", c.firstSlot(i), c.firstSlot(i+1)-1, bulk(fmt.Sprintf("10.0.0.%d", i+1)))
	}
	for _, f := range c {
		f.slots = slots
	}
	return &c
}

func (c *fakeCluster) firstSlot(master int) int { return clusterSlots * master / len(c) }

// roomOn returns the room with number n of those whose slot the master owns.
func (c *fakeCluster) roomOn(master, n int) message.Room {
	for i := 0; ; i++ {
		room := message.Room(fmt.Sprintf("room-%d", i))
		slot := slotOf(bucketTag(bucketOf(room, clusterBuckets)))
		if slot >= c.firstSlot(master) && slot < c.firstSlot(master+1) {
			if n == 0 {
				return room
			}
			n--
		}
	}
}

// open returns a started broker for the cluster.
func (c *fakeCluster) open(t *testing.T) *node {
	t.Helper()
	return openDialing(t, "redis+cluster://10.0.0.1:7000", Config{}, func(ctx context.Context, network, addr string) (net.Conn, error) {
		for i, f := range c {
			if addr == fmt.Sprintf("10.0.0.%d:7000", i+1) {
				return f.dial(ctx, network, addr)
			}
		}
		return nil, fmt.Errorf("no server at %s", addr)
	})
}

// openDialing returns a started broker for url that dials in this process.
func openDialing(t *testing.T, url string, cfg Config, dial func(ctx context.Context, network, addr string) (net.Conn, error)) *node {
	t.Helper()
	target, err := parseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	target.server.Dialer = dial
	reg := prometheus.NewRegistry()
	cfg.Registerer = reg
	return newNode(t, newRedis(cfg, target), reg)
}

func (f *fakeRedis) dial(_ context.Context, _, _ string) (net.Conn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return nil, errors.New("connection refused")
	}
	client, server := net.Pipe()
	s := &fakeSession{conn: server, answers: make(chan string, 1<<14), channels: map[string]bool{}}
	f.connections[s] = true
	go f.readLoop(s)
	go f.answerLoop(s)
	return client, nil
}

// kill ends all connections and refuses new ones, until start.
func (f *fakeRedis) kill() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = true
	for s := range f.connections {
		_ = s.conn.Close()
	}
}

func (f *fakeRedis) start() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = false
}

func (f *fakeRedis) setFrozen(frozen bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.frozen = frozen
}

func (f *fakeRedis) setDelay(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.delay = d
}

func (f *fakeRedis) count(command string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.commands[command]
}

// subscribed returns the number of connections with a subscription.
func (f *fakeRedis) subscribed() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for s := range f.connections {
		if len(s.channels) > 0 {
			n++
		}
	}
	return n
}

func (f *fakeRedis) readLoop(s *fakeSession) {
	defer func() {
		_ = s.conn.Close()
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.connections, s)
		close(s.answers)
	}()
	r := bufio.NewReader(s.conn)
	for {
		command, err := readCommand(r)
		if err != nil {
			return
		}
		f.do(s, command)
	}
}

// answerLoop writes the answers, and drops them while the server is frozen.
func (f *fakeRedis) answerLoop(s *fakeSession) {
	for answer := range s.answers {
		f.mu.Lock()
		frozen, delay := f.frozen, f.delay
		f.mu.Unlock()
		if frozen {
			continue
		}
		if delay > 0 && len(s.answers) == 0 { // a pipeline's answers come together
			time.Sleep(delay) // the bubble's clock
		}
		if _, err := io.WriteString(s.conn, answer); err != nil {
			_ = s.conn.Close()
		}
	}
}

// readCommand reads one command: an array of bulk strings.
func readCommand(r *bufio.Reader) ([]string, error) {
	n, err := readNumber(r, "*")
	if err != nil {
		return nil, err
	}
	command := make([]string, n)
	for i := range command {
		size, err := readNumber(r, "$")
		if err != nil {
			return nil, err
		}
		b := make([]byte, size+2)
		if _, err := io.ReadFull(r, b); err != nil {
			return nil, err
		}
		command[i] = string(b[:size])
	}
	return command, nil
}

func readNumber(r *bufio.Reader, kind string) (int, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(line, kind)))
}

func bulk(s string) string { return fmt.Sprintf("$%d\r\n%s\r\n", len(s), s) }

func (f *fakeRedis) do(s *fakeSession, command []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name := strings.ToUpper(command[0])
	if name == "PUBLISH" && strings.Contains(command[1], "/probe/") {
		f.commands["probe"]++
	} else {
		f.commands[name]++
	}
	switch name {
	case "PING":
		if len(s.channels) > 0 {
			s.answers <- "*2\r\n" + bulk("pong") + bulk("")
		} else {
			s.answers <- "+PONG\r\n"
		}
	case "SUBSCRIBE", "SSUBSCRIBE", "UNSUBSCRIBE", "SUNSUBSCRIBE":
		for _, channel := range command[1:] {
			if s.channels[channel] = true; strings.Contains(name, "UNSUB") {
				delete(s.channels, channel)
			}
			s.answers <- "*3\r\n" + bulk(strings.ToLower(name)) + bulk(channel) + fmt.Sprintf(":%d\r\n", len(s.channels))
		}
	case "PUBLISH", "SPUBLISH":
		kind := map[string]string{"PUBLISH": "message", "SPUBLISH": "smessage"}[name]
		n := 0
		for other := range f.connections {
			if other.channels[command[1]] {
				n++
				other.answers <- "*3\r\n" + bulk(kind) + bulk(command[1]) + bulk(command[2])
			}
		}
		if f.countless {
			n = 0
		}
		s.answers <- fmt.Sprintf(":%d\r\n", n)
	case "CLUSTER":
		s.answers <- f.slots
	default:
		s.answers <- "-ERR unknown command\r\n"
	}
}

// waitUp waits until the broker's connection is up.
func (n *node) waitUp(t *testing.T) {
	t.Helper()
	testkit.Eventually(t, "the broker to be up", n.Up)
}
