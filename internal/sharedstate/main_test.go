package sharedstate

import (
	"bytes"
	"context"
	"flag"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"switchyard/internal/broker"
	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// TestMain runs more tests at a time than there are cores: they mostly wait
// for timeouts.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "6"); err != nil {
		panic(err)
	}
	testkit.Main(m)
}

// testTimeout is how long a test waits for what must come.
const testTimeout = 20 * time.Second

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// eventually polls until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(testTimeout); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", testTimeout, what)
		}
	}
}

// A backendFactory is a place where nodes of one test meet: it returns a config with
// which they find each other, and opens nodes by it.
type backendFactory func(t *testing.T) (cfg Config, open func(Config) (*Node, error))

func memoryFactory(*testing.T) (Config, func(Config) (*Node, error)) {
	var shared MemoryBackend
	return Config{}, func(c Config) (*Node, error) { return NewMemory(&shared, c) }
}

// redisFactory meets under a prefix of its own.
func redisFactory(url func(t *testing.T) string) backendFactory {
	return func(t *testing.T) (Config, func(Config) (*Node, error)) {
		t.Helper()
		opts, err := broker.Options(url(t))
		if err != nil {
			t.Fatal(err)
		}
		return Config{Redis: opts, Prefix: testkit.RedisPrefix()}, OpenRedis
	}
}

// redisAt is a house in the Redis of that URL.
func redisAt(url string) backendFactory { return redisFactory(func(*testing.T) string { return url }) }

// withLongTimeout is a house where calls may take long: a story that is not about
// time must not fail on a busy machine.
func withLongTimeout(h backendFactory) backendFactory {
	return func(t *testing.T) (Config, func(Config) (*Node, error)) {
		cfg, open := h(t)
		cfg.timeout = testTimeout
		return cfg, open
	}
}

// A testNode is a node with all that it was told and that it logged.
type testNode struct {
	*Node
	reg  *prometheus.Registry
	logs *logs

	mu     sync.Mutex
	events []message.NodeEvent
	status message.NodeStatus
}

// startNodes opens nodes of one house, by name.
func startNodes(t *testing.T, h backendFactory, change func(*Config), names ...string) []*testNode {
	t.Helper()
	cfg, open := h(t)
	var peers []*testNode
	for _, name := range names {
		c := cfg
		c.Node = name
		p := &testNode{reg: prometheus.NewRegistry(), logs: &logs{}}
		c.Registerer, c.Logger = p.reg, loggerOf(p.logs)
		if change != nil {
			change(&c)
		}
		n, err := open(c)
		if err != nil {
			t.Fatal(err)
		}
		p.Node = n
		t.Cleanup(func() {
			if err := n.Close(within(t, testTimeout)); err != nil {
				t.Errorf("Close: %v", err)
			}
		})
		n.Start(Hooks{Status: p.reportStatus, Notify: p.onEvent})
		peers = append(peers, p)
	}
	for _, p := range peers {
		p.waitEvent(t, "to listen", func(n message.NodeEvent) bool { return n.Kind == message.EventMissed })
	}
	return peers
}

func startPair(t *testing.T, h backendFactory, change func(*Config)) (a, b *testNode) {
	t.Helper()
	both := startNodes(t, h, change, "node-a", "node-b")
	return both[0], both[1]
}

func (p *testNode) onEvent(n message.NodeEvent) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, n)
}

func (p *testNode) setStatus(s message.NodeStatus) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status = s
}

func (p *testNode) reportStatus() message.NodeStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

func (p *testNode) countEvents(want func(message.NodeEvent) bool) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	count := 0
	for _, n := range p.events {
		if want(n) {
			count++
		}
	}
	return count
}

func (p *testNode) waitEvent(t *testing.T, what string, want func(message.NodeEvent) bool) {
	t.Helper()
	eventually(t, "a notice "+what, func() bool { return p.countEvents(want) > 0 })
}

// save keeps sessions whole and fails the test unless all are.
func (p *testNode) save(t *testing.T, sessions ...message.Session) {
	t.Helper()
	var batch []message.SessionSave
	for _, s := range sessions {
		batch = append(batch, message.SessionSave{Session: s})
	}
	for i, r := range p.Save(within(t, testTimeout), batch) {
		if r != message.SaveDone {
			t.Fatalf("save %d: %v", i, saveResults[r])
		}
	}
}

// trySave saves one session and returns what came of it.
func (p *testNode) trySave(t *testing.T, s message.Session, touch bool) message.SaveResult {
	t.Helper()
	return p.Save(within(t, testTimeout), []message.SessionSave{{Session: s, Touch: touch}})[0]
}

// resume fails the test unless the session comes back.
func (p *testNode) resume(t *testing.T, secret, user string) message.Session {
	t.Helper()
	s, ok, err := p.Resume(within(t, testTimeout), secret, user)
	if err != nil || !ok {
		t.Fatalf("resume: %v, %v", ok, err)
	}
	return s
}

// wantNoResume fails the test when the session comes back, or that cannot be told.
func (p *testNode) wantNoResume(t *testing.T, why, secret, user string) {
	t.Helper()
	s, ok, err := p.Resume(within(t, testTimeout), secret, user)
	if err != nil || ok || s.User != "" || s.Rooms != nil || s.ID != "" {
		t.Errorf("%s: resume gave %+v, %v, %v", why, s, ok, err)
	}
}

// metric returns the sum over all labels of a counter or gauge, or a
// histogram's count; with a label's value, only of what bears it.
func (p *testNode) metric(t *testing.T, name, value string) float64 {
	t.Helper()
	families, err := p.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var sum float64
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if value != "" && m.GetLabel()[0].GetValue() != value {
				continue
			}
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return sum
}

// A logs holds what a node logged.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func loggerOf(l *logs) *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// aclCommands are the commands that docs/shared-state.md says a user needs.
var aclCommands = strings.Fields("+publish +subscribe +unsubscribe +ping +eval +evalsha +get +set +getrange +pexpire +del " +
	"+time +zadd +zrem +zscore +zrevrangebyscore +zrangebyscore +zremrangebyscore +zcard +hset +hget +hdel +hincrby +hgetall +hexists +hlen +hscan +sadd +srem +srandmember +hmget")

func (l *logs) count(text string) int { return strings.Count(l.String(), text) }
