package sharedstate

import (
	"context"
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"
	"sync"
	"time"

	"switchyard/internal/message"
)

const (
	// DefaultLeaveGrace is how long a session stays in its rooms after its
	// connection ended.
	DefaultLeaveGrace = 3 * time.Second
	// shardCount is the number of shards, each a hash tag of its own in Redis, on
	// which rooms are spread. All nodes that ever share a Redis must agree on it.
	shardCount = 16
	// maxEntries bounds the presence entries of this node's sessions.
	maxEntries = 1 << 20
	// maxTombstones bounds the entries that are gone and wait to be removed from
	// the backend. Beyond it the node drops them and resyncs all shards.
	maxTombstones = 100_000
)

// An entryKey identifies a presence entry.
type entryKey struct {
	room    message.Room
	session message.SessionID
}

// A presenceEntry is one of this node's sessions in one room.
type presenceEntry struct {
	user       string
	generation int64
	leaveAt    int64 // when the grace ends, by presence.now; 0 if there is none
	present    bool  // false: a tombstone, kept until the backend has removed the entry
	dirty      bool  // changed since it was last sent, and queued in presence.dirty
}

// An entryExpiry says when the grace of an entry ends, unless the session rejoins
// before.
type entryExpiry struct {
	key entryKey
	at  int64 // by presence.now
}

// presence holds the presence entries of this node's sessions, and is
// authoritative for them: the backend has a copy. Only presenceLoop talks to the
// backend; the other methods are safe for concurrent use.
type presence struct {
	node      *Node
	grace     time.Duration
	started   time.Time
	wake      chan struct{} // holds a token when there may be changes to send; never closed
	coalescer changeCoalescer
	// maxEntries and maxTombstones, unless a test changes them.
	entryLimit, tombstoneLimit int

	mu         sync.Mutex // Protects following.
	entries    map[entryKey]presenceEntry
	tombstones int
	dirty      []entryKey    // entries to send, each once
	expiries   []entryExpiry // in order of time
	enqueued   int64         // how many entries were ever appended to dirty
	flushed    int64         // how many of these were sent or dropped
	// progress is closed, and replaced by a new channel, when flushed grows.
	progress chan struct{}

	shards [shardCount]shardState // owned by presenceLoop, except sent
}

// A shardState says how much of one shard the backend has confirmed.
type shardState struct {
	tagNumber  int64 // raised by each resync
	confirmed  int64 // the last revision that the backend confirmed
	sent       int64 // the last revision that was sent; guarded by presence.mu
	delayUntil int64 // until then watchers learn of changes later, because other nodes resync too; by presence.now
}

func newPresence(n *Node, grace time.Duration) *presence {
	if grace <= 0 {
		grace = DefaultLeaveGrace
	}
	return &presence{
		node: n, grace: grace, started: time.Now(), wake: make(chan struct{}, 1),
		entries: make(map[entryKey]presenceEntry), progress: make(chan struct{}),
		coalescer:  changeCoalescer{node: n, wake: make(chan struct{}, 1)},
		entryLimit: maxEntries, tombstoneLimit: maxTombstones,
	}
}

// shardOf returns the shard of a room: the 32-bit FNV-1a hash of its name, modulo
// shardCount.
func shardOf(room message.Room) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(room)) // never fails
	return int(h.Sum32() % shardCount)
}

// tag returns the current tag of a shard, which marks the entries of this node in
// the backend: the node's name, ~, and the number of resyncs. No entry is added
// under a tag once a newer one has replaced it.
func (p *presence) tag(shard int) string {
	return p.node.cfg.Node + "~" + strconv.FormatInt(p.shards[shard].tagNumber, 10)
}

// nodeOf returns the node of a tag, or "" if it is not a tag.
func nodeOf(tag string) string {
	if i := strings.LastIndexByte(tag, '~'); i >= 0 {
		return tag[:i]
	}
	return ""
}

// tagNumber returns the number of a tag, or -1 if it is not a tag.
func tagNumber(tag string) int64 {
	number, err := strconv.ParseInt(tag[strings.LastIndexByte(tag, '~')+1:], 10, 64)
	if err != nil {
		return -1
	}
	return number
}

// Change records that sessions have joined and left rooms on this node. It never
// blocks: other nodes learn of it within milliseconds, or once the backend can
// be reached.
func (n *Node) Change(changes []message.PresenceChange) {
	p := n.presence
	p.mu.Lock()
	now := p.now()
	for i := range changes {
		p.applyChange(&changes[i], now)
	}
	p.mu.Unlock()
	p.wakeUp()
}

// now returns the nanoseconds since the presence started, at least 1.
func (p *presence) now() int64 { return int64(time.Since(p.started)) + 1 }

// wakeUp makes presenceLoop look for changes.
func (p *presence) wakeUp() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// applyChange applies one change, unless a newer connection of the session is in
// the room. The caller holds mu.
func (p *presence) applyChange(c *message.PresenceChange, now int64) {
	key := entryKey{c.Room, c.Session}
	entry, known := p.entries[key]
	if known && c.Generation < entry.generation {
		return
	}
	if c.Kind == message.PresenceJoined {
		p.join(key, entry, known, c)
		return
	}
	if !known || !entry.present {
		return
	}
	if c.Kind == message.PresenceDisconnected && len(p.expiries) < p.entryLimit {
		if entry.leaveAt == 0 {
			entry.leaveAt = now + int64(p.grace)
			p.expiries = append(p.expiries, entryExpiry{key, entry.leaveAt})
			p.entries[key] = entry
		}
		return
	}
	p.markGone(key, entry)
}

// join adds an entry, or updates it for a newer connection, and cancels its
// grace. The caller holds mu.
func (p *presence) join(key entryKey, entry presenceEntry, known bool, c *message.PresenceChange) {
	if !known && len(p.entries) >= p.entryLimit {
		p.node.metrics.drop(dropEntriesFull, 1)
		return
	}
	same := known && entry.present && entry.generation == c.Generation && entry.user == c.User
	if known && !entry.present {
		p.tombstones--
	}
	entry.user, entry.generation, entry.present, entry.leaveAt = c.User, c.Generation, true, 0
	p.put(key, entry, !same)
}

// markGone turns an entry into a tombstone. The caller holds mu.
func (p *presence) markGone(key entryKey, entry presenceEntry) {
	entry.present, entry.leaveAt = false, 0
	p.tombstones++
	p.put(key, entry, true)
}

// put stores an entry, and queues it if it has changed. The caller holds mu.
func (p *presence) put(key entryKey, entry presenceEntry, changed bool) {
	if changed && !entry.dirty {
		entry.dirty = true
		p.dirty = append(p.dirty, key)
		p.enqueued++
	}
	p.entries[key] = entry
	p.node.metrics.presenceEntries.Set(float64(len(p.entries) - p.tombstones))
}

// removeExpired removes the entries whose grace is over, and returns the time until
// the next grace ends. All grace periods are equally long, so they end in order.
func (p *presence) removeExpired() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	for len(p.expiries) > 0 {
		expiry := p.expiries[0]
		if expiry.at > now {
			return time.Duration(expiry.at - now)
		}
		p.expiries = p.expiries[1:]
		if entry := p.entries[expiry.key]; entry.present && entry.leaveAt == expiry.at {
			p.markGone(expiry.key, entry)
		}
	}
	p.expiries = nil
	return time.Hour
}

// Room returns the presence of a room over all nodes, without the entries if
// there are more than limit. It includes the changes that this node recorded
// before the call, unless the backend does not accept them within maxFlushWait.
// An error wraps message.ErrSharedStateUnavailable if the entries of other nodes
// are unknown.
func (n *Node) Room(ctx context.Context, room message.Room, limit int) (message.Presence, error) {
	n.presence.waitFlushed(ctx)
	alive, known := n.nodes.alive()
	if !known {
		return message.Presence{}, fmt.Errorf("read the presence of a room: %w", message.ErrSharedStateUnavailable)
	}
	alive[n.cfg.Node] = true
	return n.backend.roomPresence(ctx, room, alive, limit)
}

// maxFlushWait bounds how long a reader waits for earlier changes to be sent.
const maxFlushWait = 250 * time.Millisecond

// waitFlushed waits until the changes that are queued now are sent or dropped,
// for maxFlushWait at most.
func (p *presence) waitFlushed(ctx context.Context) {
	var timeout <-chan time.Time
	p.mu.Lock()
	mark := p.enqueued
	for p.flushed < mark {
		progress := p.progress
		p.mu.Unlock()
		if timeout == nil {
			timeout = time.After(maxFlushWait)
		}
		select {
		case <-progress:
		case <-timeout:
			return
		case <-ctx.Done():
			return
		}
		p.mu.Lock()
	}
	p.mu.Unlock()
}
