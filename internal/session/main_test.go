package session

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

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

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
	for deadline := time.Now().Add(patience); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// A house is a place where nodes of one test meet: it returns a config with
// which they find each other, and opens nodes by it.
type house func(t *testing.T) (cfg Config, open func(Config) (*Node, error))

func memoryHouse(*testing.T) (Config, func(Config) (*Node, error)) {
	var space Space
	return Config{}, func(c Config) (*Node, error) { return NewMemory(&space, c) }
}

// redisHouse meets under a prefix of its own.
func redisHouse(url func(t *testing.T) string) house {
	return func(t *testing.T) (Config, func(Config) (*Node, error)) {
		t.Helper()
		opts, err := broker.Options(url(t))
		if err != nil {
			t.Fatal(err)
		}
		return Config{Redis: opts, Prefix: testkit.RedisPrefix()}, OpenRedis
	}
}

// at is a house in the Redis of that URL.
func at(url string) house { return redisHouse(func(*testing.T) string { return url }) }

// unhurried is a house where calls may take long: a story that is not about
// time must not fail on a busy machine.
func unhurried(h house) house {
	return func(t *testing.T) (Config, func(Config) (*Node, error)) {
		cfg, open := h(t)
		cfg.timeout = patience
		return cfg, open
	}
}

// A peer is a node with all that it was told and that it logged.
type peer struct {
	*Node
	reg  *prometheus.Registry
	logs *logs

	mu      sync.Mutex
	notices []message.Notice
	status  message.NodeStatus
}

// crew opens nodes of one house, by name.
func crew(t *testing.T, h house, change func(*Config), names ...string) []*peer {
	t.Helper()
	cfg, open := h(t)
	var peers []*peer
	for _, name := range names {
		c := cfg
		c.Node = name
		p := &peer{reg: prometheus.NewRegistry(), logs: &logs{}}
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
			if err := n.Close(within(t, patience)); err != nil {
				t.Errorf("Close: %v", err)
			}
		})
		n.Start(Hooks{Status: p.tellStatus, Notify: p.hear})
		peers = append(peers, p)
	}
	for _, p := range peers {
		p.waitNotice(t, "to listen", func(n message.Notice) bool { return n.Kind == message.NoticeMissed })
	}
	return peers
}

func pair(t *testing.T, h house, change func(*Config)) (a, b *peer) {
	t.Helper()
	both := crew(t, h, change, "node-a", "node-b")
	return both[0], both[1]
}

func (p *peer) hear(n message.Notice) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.notices = append(p.notices, n)
}

func (p *peer) say(s message.NodeStatus) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status = s
}

func (p *peer) tellStatus() message.NodeStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

func (p *peer) heard(want func(message.Notice) bool) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	count := 0
	for _, n := range p.notices {
		if want(n) {
			count++
		}
	}
	return count
}

func (p *peer) waitNotice(t *testing.T, what string, want func(message.Notice) bool) {
	t.Helper()
	eventually(t, "a notice "+what, func() bool { return p.heard(want) > 0 })
}

// save keeps sessions whole and fails the test unless all are.
func (p *peer) save(t *testing.T, sessions ...message.Session) {
	t.Helper()
	var batch []message.SessionSave
	for _, s := range sessions {
		batch = append(batch, message.SessionSave{Session: s})
	}
	for i, r := range p.Save(within(t, patience), batch) {
		if r != message.SaveDone {
			t.Fatalf("save %d: %v", i, saveResults[r])
		}
	}
}

// try saves one session and returns what came of it.
func (p *peer) try(t *testing.T, s message.Session, touch bool) message.SaveResult {
	t.Helper()
	return p.Save(within(t, patience), []message.SessionSave{{Session: s, Touch: touch}})[0]
}

// resume fails the test unless the session comes back.
func (p *peer) resume(t *testing.T, secret, user string) message.Session {
	t.Helper()
	s, ok, err := p.Resume(within(t, patience), secret, user)
	if err != nil || !ok {
		t.Fatalf("resume: %v, %v", ok, err)
	}
	return s
}

// refuses fails the test when the session comes back, or that cannot be told.
func (p *peer) refuses(t *testing.T, why, secret, user string) {
	t.Helper()
	s, ok, err := p.Resume(within(t, patience), secret, user)
	if err != nil || ok || s.User != "" || s.Rooms != nil || s.ID != "" {
		t.Errorf("%s: resume gave %+v, %v, %v", why, s, ok, err)
	}
}

// metric returns the sum over all labels of a counter or gauge, or a
// histogram's count; with a label's value, only of what bears it.
func (p *peer) metric(t *testing.T, name, value string) float64 {
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

// aclRights are the commands that docs/sessions.md says a user needs.
var aclRights = strings.Fields("+publish +subscribe +unsubscribe +ping +eval +evalsha +get +set +getrange +pexpire +del " +
	"+time +zadd +zrem +zscore +zrevrangebyscore +zrangebyscore +zremrangebyscore +zcard +hset +hget +hdel +hincrby +hgetall +hexists +hlen +hscan +sadd +srem +srandmember +hmget")

func (l *logs) count(text string) int { return strings.Count(l.String(), text) }
