// Package sharedstate keeps what nodes share and no log holds: sessions that
// outlive a socket, which nodes there are, who is in which room, who is barred,
// and how much each user has spent of a limit. None of it is the truth about a
// message; when it is lost, clients resume by their own positions.
//
// There are two places where nodes can meet, behind one contract test: Redis,
// for many nodes, and a Space, for one process. A Node is one node's part and
// the same for both. All its methods may be called concurrently.
package sharedstate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"switchyard/internal/message"
)

// What a Config leaves out.
const (
	DefaultPrefix = "sy:"
	DefaultTTL    = 2 * time.Minute
)

// callTimeout bounds each round trip. Redis answers in less than a millisecond
// or is in trouble, and nobody waits for it in trouble.
const callTimeout = 500 * time.Millisecond

// A Config says who a node is and where it meets the others.
type Config struct {
	// Node names this process among all that ever shared the Redis: 1 to 128
	// of A-Z a-z 0-9 . _ -, and never given to a second process.
	Node string
	// Redis is how to reach it; what NewMemory ignores.
	Redis *redis.UniversalOptions
	// Prefix begins the name of every key and channel; DefaultPrefix when empty.
	Prefix string
	// TTL is how long a session is kept after its last save; DefaultTTL when 0.
	TTL time.Duration
	// LeaveGrace is how long a session whose socket ended is still in its
	// rooms; DefaultLeaveGrace when 0.
	LeaveGrace time.Duration
	// Rates bound each user over all nodes, which all have the same ones.
	Rates Rates

	Logger     *slog.Logger          // nil: silent
	Registerer prometheus.Registerer // nil: not registered

	timeout time.Duration // callTimeout when 0; a test on a busy machine has more
}

var nodeName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,128}$`)

func (c Config) withDefaults() (Config, error) {
	if !nodeName.MatchString(c.Node) {
		return c, fmt.Errorf("the node's name %.140q must be 1 to 128 of A-Z a-z 0-9 . _ -", c.Node)
	}
	if c.Prefix == "" {
		c.Prefix = DefaultPrefix
	}
	if c.TTL <= 0 {
		c.TTL = DefaultTTL
	}
	if c.timeout <= 0 {
		c.timeout = callTimeout
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.Logger = c.Logger.With("component", "session")
	return c, nil
}

// Hooks are what a node calls once it is started. They must not block, and are
// called from several goroutines.
type Hooks struct {
	// Status tells of the node, each second; Node, Returned and Age are not its.
	Status func() message.NodeStatus
	// Notify gets what other nodes, and this one, have to tell.
	Notify func(message.NodeEvent)
}

// A Node is one node's part of what nodes share.
type Node struct {
	cfg       Config
	log       *slog.Logger
	metrics   *metrics
	backend   backend
	outbox    *backlog[outgoingEvent]
	endQueue  *backlog[endedSession]
	ctx       context.Context // the life of all loops
	cancel    context.CancelFunc
	loops     sync.WaitGroup // joined only with mu held and closed false
	hooks     atomic.Pointer[Hooks]
	nodes     nodeRegistry
	bans      banList
	presence  *presence
	limits    *limits
	deadSince map[staleTag]time.Time // since when; presenceLoop's
	sweeps    chan []staleTag        // to sweepLoop; never closed

	mu      sync.Mutex // Protects following.
	started bool
	closed  bool
}

// OpenRedis returns a node that meets others in Redis, which need not be up.
func OpenRedis(cfg Config) (*Node, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if cfg.Redis == nil {
		return nil, errors.New("no way to Redis is given")
	}
	m := newMetrics(cfg.Registerer)
	return newNode(cfg, openRedis(cfg, m), m), nil
}

// NewMemory returns a node that meets the other nodes of the same space; a nil
// space is one of its own.
func NewMemory(s *MemoryBackend, cfg Config) (*Node, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if s == nil {
		s = new(MemoryBackend)
	}
	m := newMetrics(cfg.Registerer)
	m.up.Set(1)
	return newNode(cfg, s.newView(cfg, m), m), nil
}

func newNode(cfg Config, s backend, m *metrics) *Node {
	n := &Node{
		cfg: cfg, log: cfg.Logger, metrics: m, backend: s,
		outbox: newBacklog[outgoingEvent](maxQueuedEvents), endQueue: newBacklog[endedSession](maxQueuedEnds),
		sweeps: make(chan []staleTag, 1),
	}
	n.presence, n.limits = newPresence(n, cfg.LeaveGrace), newLimits(n, cfg.Rates)
	n.ctx, n.cancel = context.WithCancel(context.Background())
	return n
}

// Start begins to take part: other nodes see this one, and its hooks are
// called. It is called once.
func (n *Node) Start(h Hooks) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.started || n.closed {
		return
	}
	n.started = true
	n.hooks.Store(&h)
	for _, loop := range []func(context.Context){
		n.heartbeatLoop, n.listenLoop, n.sendLoop, n.endLoop, n.presenceLoop, n.coalesceLoop, n.sweepLoop,
		n.limitLoop,
	} {
		n.loops.Go(func() { loop(n.ctx) })
	}
}

// Up says whether what nodes share could be reached when it was last tried.
func (n *Node) Up() bool { return n.backend.up() }

// Close says that the node goes, sends what waits, while ctx lasts, then ends
// all loops and connections. What the node shared stays until it expires: its
// clients are about to come back elsewhere. Calling it again is harmless.
func (n *Node) Close(ctx context.Context) error {
	n.mu.Lock()
	again, started := n.closed, n.started
	n.closed = true
	n.mu.Unlock()
	if again {
		return nil
	}
	if started {
		n.presence.waitFlushed(ctx)
		n.sendHeartbeat(ctx, true)
		n.outbox.flush(ctx)
		n.endQueue.flush(ctx)
	}
	n.cancel()
	done := make(chan struct{})
	go func() {
		n.loops.Wait()
		close(done)
	}()
	select {
	case <-done: // every loop's calls are bounded by callTimeout
	case <-ctx.Done():
	}
	return errors.Join(ctx.Err(), n.backend.close())
}

// notify hands a notice to whoever listens on this node.
func (n *Node) notify(event message.NodeEvent) {
	if h := n.hooks.Load(); h != nil && h.Notify != nil {
		h.Notify(event)
	}
}
