// Package hub delivers messages on one node. It hands publications to the log,
// receives committed messages from the log and from other nodes, puts each room
// in order, reads missing messages from the log, and sends one encoded frame to
// every member. DESIGN.md beside this file explains how.
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

// A Log stores publications and returns them. It reports committed publications
// to [Hub.Completed].
type Log interface {
	// Append hands a publication to the log and returns at once. The
	// publication completes later.
	Append(*message.Publication)
	// Read returns part of a room, from one snapshot.
	Read(context.Context, message.Range) (message.Page, error)
}

// A CommitFeed lists what any node committed.
type CommitFeed interface {
	// Commits returns what was committed since a cursor, and the cursor of the
	// next call. Nothing is skipped between the two calls.
	Commits(context.Context, message.Cursor) (message.Commits, error)
	// Heads returns the newest seq of each of the rooms, 0 for a room that the
	// log does not have.
	Heads(context.Context, []message.Room) (message.Epoch, []message.Head, error)
}

// A Broker carries payloads to the other nodes. It may lose, repeat and reorder
// them, and may also deliver a node's own payloads to it. Received payloads go
// to [Hub.Receive].
type Broker interface {
	// Publish never blocks.
	Publish(message.Room, []byte)
	// Subscribe waits until the subscription is active. On an error it may
	// still become active later.
	Subscribe(context.Context, message.Room) error
	// Unsubscribe ends a subscription. It never blocks.
	Unsubscribe(message.Room)
}

// An Outlet is the bounded send queue of one connection. It is safe for
// concurrent use. Only Flushed blocks.
type Outlet interface {
	// Send queues whole frames and tries to write them. It returns false when
	// the connection is closing and accepts no more.
	Send(protocol.Frame) bool
	// Queue queues frames without writing them. They leave with the next Send
	// or Flush.
	Queue(protocol.Frame) bool
	// Flush tries to write what is queued.
	Flush()
	// Flushed waits until nothing is queued.
	Flushed(context.Context) error
	// Answered waits until the last answer to a read has left, and SendAnswer is Send
	// for one.
	Answered(context.Context) error
	SendAnswer(protocol.Frame) bool
}

// Readers count the bytes that are read for each reader, a user or an address, on all
// nodes. They never block and are safe for concurrent use.
type Readers interface {
	// ReadDebt returns how long a reader must wait until what was read is paid.
	ReadDebt(reader string) (wait time.Duration)
	ChargeRead(reader string, bytes int)
}

// A Memory bounds what is read for clients and has not been sent yet. It is safe for
// concurrent use.
type Memory interface {
	// Reserve waits until there are so many bytes, and reserves them until Free is called
	// with as many. Readers take turns. The wait is bounded.
	Reserve(ctx context.Context, reader any, bytes int) error
	Free(bytes int)
}

// A Config holds the dependencies and bounds of a hub. All fields are required
// except the durations, the numbers, Node and the presence fields.
type Config struct {
	Log        Log
	Feed       CommitFeed
	Batches    BatchAppender
	RoomLister RoomLister
	Broker     Broker
	// Presence is nil if presence is disabled. PresenceLimit is the largest
	// number of entries that is listed, 200 by default.
	Presence      Presence
	PresenceLimit int
	// Readers counts what is read for clients. Nil: nothing is counted.
	Readers Readers
	// Memory bounds the pages of history that are read at a time. Nil: nothing does.
	Memory Memory
	// RepairWait is how long a hole is left to fill by itself before the log is
	// read. 20 ms by default.
	RepairWait time.Duration
	// FeedInterval is the time between two reads of the commit feed, and so
	// roughly the delay of a message that the broker lost. 250 ms by default.
	FeedInterval time.Duration
	// TopicIdle is how long a topic without members is kept, at most. 10 s by
	// default.
	TopicIdle time.Duration
	// MaxInflight bounds the uncommitted publishes of one client. 64 by
	// default.
	MaxInflight int
	// MaxRooms bounds the rooms that one client is in. 1,000 by default. All clients of
	// one reader may be in 20 times as many together.
	MaxRooms int
	// MemoryLimit is the memory of the process in bytes, from which the hub takes its
	// share: see MemoryShare. 0: it is not bounded.
	MemoryLimit int64
	// Node names the room of the delivery canary; "" disables the canary. At
	// most 64 letters, digits, dots and hyphens.
	Node string
	// CanaryInterval is the time between two canary messages, 1 s by default.
	// CanaryStale is the greatest permitted age of the newest canary that has
	// arrived, 5 s by default.
	CanaryInterval time.Duration
	CanaryStale    time.Duration

	Logger     *slog.Logger
	Registerer prometheus.Registerer

	bounds bounds // defaultBounds unless a test sets them
}

// defaults fills in what the caller left out.
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
		c.bounds = defaultBounds(c.MemoryLimit)
	}
}

const (
	// subscribeTimeout is how long a new topic waits for its subscription. If
	// it becomes active later, the commit feed has the messages before that.
	subscribeTimeout = 250 * time.Millisecond

	// shardCount is the number of shards, each with its own lock.
	shardCount = 64
)

// A Hub holds the topics of one node and delivers to their members. It is safe
// for concurrent use.
type Hub struct {
	cfg          Config
	logger       *slog.Logger
	metrics      *metrics
	bootID       uint64 // identifies this process in payloads
	ids          atomic.Uint64
	seed         maphash.Seed
	shards       [shardCount]shard
	readSlots    readSlots
	historySlots *historySlots
	roomQuota    *roomQuota
	// clientsWithAcks are clients whose outlets hold acks that ackLoop is to
	// write.
	clientsWithAcks inbox[*Client]
	// presenceChanges are waiting to be handed to Presence.
	presenceChanges inbox[message.PresenceChange]
	canary          *canary // nil without Config.Node
	signalClock     signalClock
	signalAges      *signalAges
	repairQueue     repairQueue
	memory          memoryUsage
	logUnavailable  atomic.Bool  // the last read of the log failed
	loggedEpoch     atomic.Value // the message.Epoch that was logged as new most recently
	feedEpoch       atomic.Value // the message.Epoch that feedLoop read last

	ctx    context.Context // ends with Close
	cancel context.CancelFunc

	// mu protects the fields below.
	mu     sync.Mutex
	closed bool
	loops  sync.WaitGroup // Wait needs no lock: no goroutine is added once closed is set
}

// A shard holds part of the topics under one lock.
type shard struct {
	mu     sync.RWMutex
	topics map[message.Room]*topic
}

// New returns a hub whose loops run until Close.
func New(cfg Config) *Hub {
	cfg.defaults()
	var boot [8]byte
	_, _ = rand.Read(boot[:]) // cannot fail since Go 1.24
	h := &Hub{
		cfg:          cfg,
		logger:       cfg.Logger.With("component", "hub"),
		metrics:      newMetrics(cfg.Registerer),
		bootID:       binary.BigEndian.Uint64(boot[:]),
		seed:         maphash.MakeSeed(),
		readSlots:    newReadSlots(),
		historySlots: newHistorySlots(maxHistoryReads),
		roomQuota:    newRoomQuota(cfg.MaxRooms, cfg.bounds.roomBytes),

		signalAges: newSignalAges(),
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

// Start begins to publish canaries, if Config.Node is set. Call it once, after
// the log and the broker that use this hub have started.
func (h *Hub) Start() {
	if h.canary != nil {
		h.spawn(h.canary.loop)
	}
}

// Close ends the hub's loops, repairs and catch-ups, and waits for them until
// ctx ends. The caller closes the clients first.
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

// spawn runs f on a goroutine that Close waits for. After Close it does
// nothing.
func (h *Hub) spawn(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.closed {
		h.loops.Go(f)
	}
}

// shard returns the shard of a room. The hash seed belongs to this process, so
// that clients cannot choose names that fall into one shard.
func (h *Hub) shard(room message.Room) *shard {
	return &h.shards[maphash.String(h.seed, string(room))%shardCount]
}

// lookup returns the room's topic, or nil if this node has none.
func (h *Hub) lookup(room message.Room) *topic {
	s := h.shard(room)
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.topics[room]
}

// acquire returns the room's topic, creating it if necessary, and keeps it
// until release.
func (h *Hub) acquire(room message.Room) *topic {
	s := h.shard(room)
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.topics[room]
	if t == nil {
		t = newTopic(h, room)
		s.topics[room] = t
		h.metrics.topics.Inc()
		h.roomQuota.addTopics(1)
		h.spawn(t.openLoop)
	}
	t.refCount++
	return t
}

// release undoes one acquire. The sweep closes the topic after it has been
// unused for a while, so that a client that returns soon can still resume from
// its ring.
func (h *Hub) release(t *topic) {
	s := h.shard(t.room)
	s.mu.Lock()
	defer s.mu.Unlock()
	t.refCount--
	t.idleSince = time.Now()
}

// sweepLoop closes topics that have been unused for a while.
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

// sweep closes the topics of a shard that are due.
func (h *Hub) sweep(s *shard, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for room, t := range s.topics {
		// An unused topic is kept as long as it was in use, at most TopicIdle.
		// A topic that was in use for a moment only is closed at the next
		// sweep.
		if t.refCount > 0 || now.Sub(t.idleSince) < min(h.cfg.TopicIdle, t.idleSince.Sub(t.createdAt)) {
			continue
		}
		delete(s.topics, room)
		h.metrics.topics.Dec()
		h.roomQuota.addTopics(-1)
		t.close()
		// Under the shard's lock, so that it precedes the Subscribe of the next
		// topic of this room.
		h.cfg.Broker.Unsubscribe(room)
	}
}

// newID returns an id for a publication whose publisher gave none. The boot id
// makes it unique across nodes and restarts.
func (h *Hub) newID() string {
	b := strconv.AppendUint(make([]byte, 0, 28), h.bootID, 36)
	b = append(b, '-')
	return string(strconv.AppendUint(b, h.ids.Add(1), 36))
}

// sleep waits for d. It returns false if the hub closes first.
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
