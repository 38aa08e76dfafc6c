// Package sharedstate keeps the state that nodes share beside the log: sessions,
// the status of each node, presence, bans, and how much of a rate limit each
// user has spent. None of it decides what a message is: if all of it is lost,
// clients resume by their own positions and miss nothing.
//
// It has two backends, held to one contract test: Redis, for several nodes, and
// MemoryBackend, for the nodes of one process. A Node is one node's access to
// either. All methods of a Node are safe for concurrent use.
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

// Defaults of Config.
const (
	DefaultPrefix = "sy:"
	DefaultTTL    = 2 * time.Minute
)

// callTimeout bounds each round trip. A healthy Redis answers in less than a
// millisecond, and clients must not wait for one that is not.
const callTimeout = 500 * time.Millisecond

// A Config configures a Node. Redis and Prefix concern OpenRedis only.
type Config struct {
	// Node is the name of this process: 1 to 128 of A-Z a-z 0-9 . _ -. No other
	// process that uses the same Redis may ever have the same name.
	Node string
	// Redis says how to reach Redis.
	Redis *redis.UniversalOptions
	// ClusterSlots reads the map of slots of a cluster; the client does so by itself if it
	// is nil.
	ClusterSlots func(context.Context) ([]redis.ClusterSlot, error)
	// Prefix begins the name of every key and channel; DefaultPrefix if empty.
	Prefix string
	// TTL is how long a session is kept after its last save; DefaultTTL if 0.
	TTL time.Duration
	// LeaveGrace is how long a session stays in its rooms after its connection
	// ended; DefaultLeaveGrace if 0.
	LeaveGrace time.Duration
	// Rates limit what each user publishes over all nodes. All nodes must have the same.
	Rates Rates
	// ReadRates limit what each user reads, likewise.
	ReadRates Rates

	Logger     *slog.Logger          // nil: silent
	Registerer prometheus.Registerer // nil: not registered

	timeout       time.Duration // of a round trip; callTimeout if 0
	announceEvery time.Duration // announceInterval if 0
	sweepDelay    time.Duration // after a node's death; sweepAfter if 0
}

var nodeName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,128}$`)

// withDefaults returns the config with its defaults, or an error if the name is
// invalid.
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
	if c.sweepDelay <= 0 {
		c.sweepDelay = sweepAfter
	}
	if c.announceEvery <= 0 {
		c.announceEvery = announceInterval
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.Logger = c.Logger.With("component", "session")
	return c, nil
}

// Hooks are functions that a started node calls, from several goroutines. They
// must not block.
type Hooks struct {
	// Status returns the node's status for the others, once a second. The node
	// itself sets Node, Returned and Age.
	Status func() message.NodeStatus
	// Notify gets the events of all nodes, of this one too.
	Notify func(message.NodeEvent)
	// Epoch returns the epoch of this node's log, "" while it is unknown. A node
	// warns if others announce another one; it may be nil.
	Epoch func() message.Epoch
}

// A Node is one node's access to the shared state.
type Node struct {
	cfg                       Config
	log                       *slog.Logger
	metrics                   *metrics
	backend                   backend
	outbox                    *backlog[outgoingEvent]
	endQueue                  *backlog[endedSession]
	ctx                       context.Context // of all loops
	cancel                    context.CancelFunc
	loops                     sync.WaitGroup // Go is called only with mu held and closed false
	hooks                     atomic.Pointer[Hooks]
	nodes                     nodeRegistry
	bans                      banList
	presence                  *presence
	publishLimits, readLimits *limits
	deadSince                 map[staleTag]time.Time // when a check first found the tag of a dead node; owned by presenceLoop
	sweeps                    chan []staleTag        // to sweepLoop; never closed
	otherLog                  otherLog               // owned by listenLoop

	mu      sync.Mutex // Protects following.
	started bool
	closed  bool
}

// OpenRedis returns a node that shares its state in Redis. It does not wait for
// Redis: the node works, with what it knows itself, until Redis can be reached.
func OpenRedis(cfg Config) (*Node, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if cfg.Redis == nil {
		return nil, errors.New("the options for Redis are missing")
	}
	m := newMetrics(cfg.Registerer)
	return newNode(cfg, openRedis(cfg, m), m), nil
}

// NewMemory returns a node that shares its state with the other nodes of the
// same MemoryBackend. With nil it gets a backend of its own.
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
	n.presence, n.publishLimits = newPresence(n, cfg.LeaveGrace), newLimits(n, "l:", cfg.Rates)
	n.readLimits = newLimits(n, "lr:", cfg.ReadRates)
	n.ctx, n.cancel = context.WithCancel(context.Background())
	return n
}

// Start starts the loops: other nodes see this one from now on, and it calls its
// hooks. Only the first call has an effect.
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
		n.limitLoop, n.announceLoop,
	} {
		n.loops.Go(func() { loop(n.ctx) })
	}
}

// Up reports whether the last attempt reached the backend.
func (n *Node) Up() bool { return n.State() != stateDown }

// State returns "up", "down" if the last attempt did not reach the backend, or "refused"
// if it was reached and has refused to store something within the last seconds.
func (n *Node) State() string { return n.backend.state() }

// Close flushes the queues and sends a last heartbeat, as long as ctx lasts.
// Then it ends all loops and connections. The node's sessions and presence
// entries stay until they expire, because its clients are about to reconnect to
// other nodes. Only the first call has an effect.
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

// notify passes an event to the hook of this node.
func (n *Node) notify(event message.NodeEvent) {
	if h := n.hooks.Load(); h != nil && h.Notify != nil {
		h.Notify(event)
	}
}
