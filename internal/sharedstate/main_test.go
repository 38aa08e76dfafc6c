package sharedstate

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"switchyard/internal/broker"
	"switchyard/internal/message"
	"switchyard/internal/testkit"
	"switchyard/internal/testkit/metrictest"
)

// TestMain runs more tests at a time than there are cores, because most of them
// wait for timers.
func TestMain(m *testing.M) { testkit.MainParallel(m, 24) }

// testContext returns a context for one call that must succeed.
func testContext(t *testing.T) context.Context {
	t.Helper()
	return testkit.Within(t, testkit.Timeout)
}

// A backendFactory returns a config whose nodes share one backend, and a function
// that opens a node.
type backendFactory func(t *testing.T) (cfg Config, open func(Config) (*Node, error))

func memoryFactory(*testing.T) (Config, func(Config) (*Node, error)) {
	var shared MemoryBackend
	return Config{}, func(c Config) (*Node, error) { return NewMemory(&shared, c) }
}

// redisFactory uses a prefix of its own for each test.
func redisFactory(url func(t *testing.T) string) backendFactory {
	return func(t *testing.T) (Config, func(Config) (*Node, error)) {
		t.Helper()
		opts, slots, err := broker.Options(broker.Config{URL: url(t)})
		if err != nil {
			t.Fatal(err)
		}
		return Config{Redis: opts, ClusterSlots: slots, Prefix: testkit.RedisPrefix()}, OpenRedis
	}
}

// redisAt uses the Redis at that URL.
func redisAt(url string) backendFactory { return redisFactory(func(*testing.T) string { return url }) }

// withLongTimeout lets calls take long, for tests that are not about time and
// must not fail on a busy machine. These tests also need not wait for
// sweepAfter, which the tests in virtual time hold.
func withLongTimeout(factory backendFactory) backendFactory {
	return func(t *testing.T) (Config, func(Config) (*Node, error)) {
		cfg, open := factory(t)
		cfg.timeout, cfg.sweepDelay = testkit.Timeout, time.Second
		return cfg, open
	}
}

// A testNode is a node with its events, its log and its metrics.
type testNode struct {
	*Node
	reg  *prometheus.Registry
	logs *testkit.Logs

	mu     sync.Mutex
	events []message.NodeEvent
	status message.NodeStatus
}

// startNodes starts nodes that share a backend, and waits until they listen.
func startNodes(t *testing.T, factory backendFactory, change func(*Config), names ...string) []*testNode {
	t.Helper()
	cfg, open := factory(t)
	var peers []*testNode
	for _, name := range names {
		c := cfg
		c.Node = name
		p := &testNode{reg: prometheus.NewRegistry(), logs: new(testkit.Logs)}
		c.Registerer, c.Logger = p.reg, p.logs.Logger()
		if change != nil {
			change(&c)
		}
		n, err := open(c)
		if err != nil {
			t.Fatal(err)
		}
		p.Node = n
		t.Cleanup(func() {
			if err := n.Close(testContext(t)); err != nil {
				t.Errorf("Close: %v", err)
			}
		})
		n.Start(Hooks{Status: p.reportStatus, Notify: p.onEvent})
		peers = append(peers, p)
	}
	for _, p := range peers {
		p.waitEvent(t, "that it listens", func(e message.NodeEvent) bool { return e.Kind == message.EventMissed })
	}
	return peers
}

// startPair starts node-a and node-b.
func startPair(t *testing.T, factory backendFactory, change func(*Config)) (a, b *testNode) {
	t.Helper()
	both := startNodes(t, factory, change, "node-a", "node-b")
	return both[0], both[1]
}

func (p *testNode) onEvent(e message.NodeEvent) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, e)
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

// countEvents returns how many events the node got that match.
func (p *testNode) countEvents(matches func(message.NodeEvent) bool) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	count := 0
	for _, e := range p.events {
		if matches(e) {
			count++
		}
	}
	return count
}

// waitEvent waits for an event that matches.
func (p *testNode) waitEvent(t *testing.T, what string, matches func(message.NodeEvent) bool) {
	t.Helper()
	testkit.Eventually(t, p.cfg.Node+" gets an event "+what, func() bool { return p.countEvents(matches) > 0 })
}

// save saves sessions, and fails the test unless all are kept. It repeats a save
// that failed, because a call may exceed its timeout on a busy machine.
func (p *testNode) save(t *testing.T, sessions ...message.Session) {
	t.Helper()
	var batch []message.SessionSave
	for _, s := range sessions {
		batch = append(batch, message.SessionSave{Session: s})
	}
	testkit.EventuallyNil(t, p.cfg.Node+" saves sessions", func() error {
		var failed error
		for i, r := range p.Save(testContext(t), batch) {
			switch r {
			case message.SaveDone:
			case message.SaveFailed:
				failed = fmt.Errorf("save %d failed", i)
			default:
				t.Fatalf("save %d: %v", i, saveResults[r])
			}
		}
		return failed
	})
}

// trySave saves one session and returns the result.
func (p *testNode) trySave(t *testing.T, s message.Session, touch bool) message.SaveResult {
	t.Helper()
	return p.Save(testContext(t), []message.SessionSave{{Session: s, Renew: touch}})[0]
}

// resume resumes a session, and fails the test if that fails.
func (p *testNode) resume(t *testing.T, secret, user string) message.Session {
	t.Helper()
	s, ok, err := p.Resume(testContext(t), secret, user)
	if err != nil || !ok {
		t.Fatalf("resume: %v, %v", ok, err)
	}
	return s
}

// wantNoResume fails the test if the session is resumed, or the call fails.
func (p *testNode) wantNoResume(t *testing.T, why, secret, user string) {
	t.Helper()
	s, ok, err := p.Resume(testContext(t), secret, user)
	if err != nil || ok || s.User != "" || s.Rooms != nil || s.ID != "" {
		t.Errorf("%s: Resume returned %+v, %v, %v", why, s, ok, err)
	}
}

// metric is metrictest.Sum of the node.
func (p *testNode) metric(t *testing.T, name, value string) float64 {
	t.Helper()
	return metrictest.Sum(t, p.reg, name, value)
}

// aclCommands are the commands that the Redis user needs by docs/shared-state.md.
var aclCommands = strings.Fields("+publish +subscribe +unsubscribe +ping +eval +evalsha +get +set +getrange +pexpire +del " +
	"+time +zadd +zrem +zscore +zrevrangebyscore +zrangebyscore +zremrangebyscore +zcard +hset +hget +hdel +hincrby +hgetall +hexists +hlen +hscan +sadd +srem +srandmember +hmget")
