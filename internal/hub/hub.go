// Package hub knows who listens to what on this node. It hands publications to
// the log, takes stored messages from the log and from other nodes, puts each
// room in order, fills what is missing from the log, and fans out one encoded
// frame to every member. DESIGN.md beside this file tells the hard parts.
package hub

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// A Log stores publications and gives them back. Its commits come to
// [Hub.Settled].
type Log interface {
	// Append takes a publication and returns at once; it settles later.
	Append(*message.Publication)
	// Read returns part of a room, in one snapshot.
	Read(context.Context, message.Range) (message.Page, error)
}

// A CommitFeed tells what was committed, by whichever node.
type CommitFeed interface {
	// Commits returns what was committed from a cursor on, and the cursor to
	// ask with next; nothing is ever skipped between the two.
	Commits(context.Context, message.Cursor) (message.Commits, error)
	// Heads returns how far each of the rooms has come; one that the log does not
	// know is at 0.
	Heads(context.Context, []message.Room) (message.Epoch, []message.Head, error)
}

// A Broker carries payloads to the other nodes. It may lose and swap them, and
// may bring a node's own back. What comes in goes to [Hub.Receive].
type Broker interface {
	// Publish never blocks.
	Publish(message.Room, []byte)
	// Subscribe waits until the subscription holds; an error says that it may
	// come later.
	Subscribe(context.Context, message.Room) error
	Unsubscribe(message.Room)
}

// An Outlet is the way to one client. Safe for concurrent use; only Flushed
// blocks.
type Outlet interface {
	// Send hands over whole frames and tries to write them; false says that
	// the connection is closing and takes no more.
	Send(protocol.Frame) bool
	// Queue hands over frames that leave with the next Send or Flush.
	Queue(protocol.Frame) bool
	Flush()
	// Flushed waits until nothing is queued.
	Flushed(context.Context) error
}

// Config is what a hub needs; all of it but the durations and Presence is required.
type Config struct {
	Log       Log
	Feed      CommitFeed
	Batches   BatchAppender
	Directory Directory
	Broker    Broker
	// Presence is nil where nobody keeps it; PresenceLimit is the most members
	// that are listed, 200 by default.
	Presence      Presence
	PresenceLimit int
	// RepairWait is how long a hole may fill by itself. 20 ms by default.
	RepairWait time.Duration
	// FeedInterval is the time between two reads of the commit feed, and so
	// about the delay of a message that the broker lost. 250 ms by default.
	FeedInterval time.Duration
	// TopicIdle is how long a topic without members lives on, at most. 10 s by
	// default.
	TopicIdle time.Duration
	// MaxInflight bounds the publishes of one client under way. 64 by default.
	MaxInflight int
	// MaxRooms bounds the rooms one client is in. 1,000 by default.
	MaxRooms int
	// Node names the room of the delivery canary; "" is without one. Letters,
	// digits, dots and hyphens, at most 64.
	Node string
	// CanaryInterval is the time between two canaries, 1 s by default;
	// CanaryStale how old the newest that came back may be, 5 s by default.
	CanaryInterval time.Duration
	CanaryStale    time.Duration

	Logger     *slog.Logger
	Registerer prometheus.Registerer

	bounds bounds // the usual ones by default
}

func (c *Config) defaults() {
	orDuration := func(d *time.Duration, value time.Duration) {
		if *d <= 0 {
			*d = value
		}
	}
	orDuration(&c.RepairWait, 20*time.Millisecond)
	orDuration(&c.FeedInterval, 250*time.Millisecond)
	orDuration(&c.TopicIdle, 10*time.Second)
	orDuration(&c.CanaryInterval, time.Second)
	orDuration(&c.CanaryStale, 5*time.Second)
	if c.MaxInflight <= 0 {
		c.MaxInflight = 64
	}
	if c.PresenceLimit <= 0 {
		c.PresenceLimit = 200
	}
	if c.MaxRooms <= 0 {
		c.MaxRooms = 1000
	}
	if c.bounds == (bounds{}) {
		c.bounds = defaultBounds()
	}
}

const (
	// subscribeTimeout is how long a new topic waits for its subscription; the
	// commit feed covers what it would miss.
	subscribeTimeout = 250 * time.Millisecond

	shardCount = 64
)

// A Hub is one node's rooms. Safe for concurrent use.
type Hub struct {
	cfg       Config
	logger    *slog.Logger
	metrics   *metrics
	bootID    uint64 // names this process in payloads
	ids       atomic.Uint64
	seed      maphash.Seed
	shards    [shardCount]shard
	readSlots readSlots
	acks      inbox[*Client]
	// presences are on their way to Presence.
	presenceChanges inbox[message.PresenceChange]
	canary          *canary // nil without a node's name
	repairQueue     repairQueue
	memory          memoryUsage
	logUnavailable  atomic.Bool  // the last read of the log failed
	loggedEpoch     atomic.Value // the message.Epoch that was last logged as new

	ctx    context.Context // ends with Close
	cancel context.CancelFunc

	mu sync.Mutex
	// Protects following.
	closed bool
	loops  sync.WaitGroup // Wait needs no lock: nothing is added once closed
}

// A shard holds part of the topics.
type shard struct {
	mu     sync.RWMutex
	topics map[message.Room]*topic
}

// New returns a hub that is at work: its loops run until Close.
func New(cfg Config) *Hub {
	cfg.defaults()
	var boot [8]byte
	_, _ = rand.Read(boot[:]) // never fails: crypto/rand, since Go 1.24
	h := &Hub{
		cfg:       cfg,
		logger:    cfg.Logger.With("component", "hub"),
		metrics:   newMetrics(cfg.Registerer),
		bootID:    binary.BigEndian.Uint64(boot[:]),
		seed:      maphash.MakeSeed(),
		readSlots: newReadSlots(),
	}
	for i := range h.shards {
		h.shards[i].topics = make(map[message.Room]*topic)
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	h.spawn(h.feedLoop)
	h.spawn(h.sweepLoop)
	if cfg.Node != "" {
		h.canary = newCanary(h, cfg.Node)
		h.metrics.registerCanaryAge(cfg.Registerer, h.canary)
	}
	return h
}

// Start begins the delivery canary, if there is one. It is called once, when the
// log and the broker have been started with this hub.
func (h *Hub) Start() {
	if h.canary != nil {
		h.spawn(h.canary.loop)
	}
}

// Close ends the hub's loops, repairs and resumes, and waits for them until
// ctx ends. Clients are the caller's to close first.
func (h *Hub) Close(ctx context.Context) error {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.cancel()
	done := make(chan struct{})
	go func() { h.loops.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for the hub's loops: %w", ctx.Err())
	}
}

// spawn runs f on a goroutine that Close waits for; not at all once closed.
func (h *Hub) spawn(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.closed {
		h.loops.Go(f)
	}
}

// shard is where a room's topic is. The seed is this process's own: nobody can
// choose names that meet in one shard.
func (h *Hub) shard(room message.Room) *shard {
	return &h.shards[maphash.String(h.seed, string(room))%shardCount]
}

// lookup returns the room's topic, nil where nobody here listens.
func (h *Hub) lookup(room message.Room) *topic {
	s := h.shard(room)
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.topics[room]
}

// acquire returns the room's topic and keeps it alive until release.
func (h *Hub) acquire(room message.Room) *topic {
	s := h.shard(room)
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.topics[room]
	if t == nil {
		t = newTopic(h, room)
		s.topics[room] = t
		h.metrics.topics.Inc()
		h.spawn(t.openLoop)
	}
	t.refCount++
	return t
}

// release lets go of a topic; the sweep closes it when nobody wants it for a
// while, so that who comes back soon finds its ring.
func (h *Hub) release(t *topic) {
	s := h.shard(t.room)
	s.mu.Lock()
	defer s.mu.Unlock()
	t.refCount--
	t.idleSince = time.Now()
}

// sweepLoop lets go of topics that nobody has used for a while.
func (h *Hub) sweepLoop() {
	tick := time.NewTicker(min(time.Second, h.cfg.TopicIdle))
	defer tick.Stop()
	for {
		select {
		case <-h.ctx.Done():
			return
		case now := <-tick.C:
			for i := range h.shards {
				h.sweep(&h.shards[i], now)
			}
		}
	}
}

// sweep closes a shard's topics that are due.
func (h *Hub) sweep(s *shard, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for room, t := range s.topics {
		// It lives on for as long as it was in use, at most TopicIdle: names
		// that are only touched are not kept.
		if t.refCount > 0 || now.Sub(t.idleSince) < min(h.cfg.TopicIdle, t.idleSince.Sub(t.createdAt)) {
			continue
		}
		delete(s.topics, room)
		h.metrics.topics.Dec()
		t.close()
		// Under the shard's lock, so that it comes before the subscribe of a
		// next topic of this name.
		h.cfg.Broker.Unsubscribe(room)
	}
}

// newID names a publication whose publisher did not: unique over nodes and
// restarts by the boot id.
func (h *Hub) newID() string {
	b := strconv.AppendUint(make([]byte, 0, 28), h.bootID, 36)
	b = append(b, '-')
	return string(strconv.AppendUint(b, h.ids.Add(1), 36))
}

// History returns a page of a room for a reader of any kind.
func (h *Hub) History(ctx context.Context, r message.Range) (message.Page, error) {
	if r.Limit <= 0 || r.Limit > protocol.MaxHistory {
		r.Limit = protocol.MaxHistory
	}
	r.MaxBytes = h.cfg.bounds.pageBytes
	page, err := h.cfg.Log.Read(ctx, r)
	if err != nil {
		return page, fmt.Errorf("reading history: %w", err)
	}
	return page, nil
}

// sleep waits for d, or less when the hub closes; false says so.
func (h *Hub) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-h.ctx.Done():
		return false
	}
}
