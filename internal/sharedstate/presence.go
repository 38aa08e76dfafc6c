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
	// DefaultLeaveGrace is how long a session whose socket ended is still in
	// its rooms.
	DefaultLeaveGrace = 3 * time.Second
	// shardCount is among how many hash tags rooms are shared. All nodes that
	// ever share a Redis agree on it.
	shardCount = 16
	// maxEntries bounds the places of this node's sessions in rooms.
	maxEntries = 1 << 20
	// maxTombstones bounds those that were left and are not told yet: over it the
	// node begins anew, as if all had been lost, and tells who is there.
	maxTombstones = 100_000
)

// A entryKey is a session's place in a room.
type entryKey struct {
	room    message.Room
	session message.SessionID
}

// An presenceEntry is what this node knows of a seat.
type presenceEntry struct {
	user       string
	generation int64
	// leaves is when it goes, in ns since the presence was made; 0: it stays.
	leaveAt int64
	present bool // else it is vacant, and kept until that is told
	dirty   bool // what is here is not what was told, and it is queued
}

// A graceEnd is the end of a grace, unless the occupant came back since.
type graceEnd struct {
	key entryKey
	at  int64
}

// presence is this node's own sessions in rooms: the truth about them, of which
// the space gets each change. What it does with the space is presenceLoop's.
type presence struct {
	node      *Node
	grace     time.Duration
	started   time.Time
	wake      chan struct{} // holds a token when there may be something to tell
	coalescer changeCoalescer
	// maxEntries and maxTombstones, which tests make small.
	entryLimit, tombstoneLimit int

	mu         sync.Mutex // Protects following.
	entries    map[entryKey]presenceEntry
	tombstones int
	dirty      []entryKey // what is to be told, each once
	graces     []graceEnd
	enqueued   int64         // how many were ever queued,
	flushed    int64         // and told, or dropped
	progress   chan struct{} // closed and made anew when told grows

	shards [shardCount]shardState // presenceLoop's, but for sent
}

// shardState is how far the space has followed in one shard.
type shardState struct {
	tagNumber  int64 // of the tag: raised when something was lost
	confirmed  int64 // the last revision that was confirmed
	sent       int64 // the last one that was sent; guarded by presence.mu
	delayUntil int64 // until when changes are told late, in ns: other nodes tell anew, too
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

// shardOf is the room's shard: FNV-1a of the name, 32 bits.
func shardOf(room message.Room) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(room)) // never fails
	return int(h.Sum32() % shardCount)
}

// A tag is what a node signs its sessions with: its name and how often it had
// to begin anew. Nothing is ever added under a tag that another one replaced.
func (p *presence) tag(shard int) string {
	return p.node.cfg.Node + "~" + strconv.FormatInt(p.shards[shard].tagNumber, 10)
}

func nodeOf(tag string) string {
	if i := strings.LastIndexByte(tag, '~'); i >= 0 {
		return tag[:i]
	}
	return ""
}

// tagNumber is -1 for what is no tag.
func tagNumber(tag string) int64 {
	number, err := strconv.ParseInt(tag[strings.LastIndexByte(tag, '~')+1:], 10, 64)
	if err != nil {
		return -1
	}
	return number
}

// Change tells who has joined and left rooms on this node. It never blocks:
// other nodes learn it in some milliseconds, or as soon as they can be reached.
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

// now is the presence's clock, in ns.
func (p *presence) now() int64 { return int64(time.Since(p.started)) + 1 }

func (p *presence) wakeUp() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// applyChange takes one change, unless a newer socket of the session is in the
// room. Caller holds mu.
func (p *presence) applyChange(c *message.PresenceChange, now int64) {
	s := entryKey{c.Room, c.Session}
	o, known := p.entries[s]
	if known && c.Generation < o.generation {
		return
	}
	if c.Kind == message.PresenceJoined {
		p.join(s, o, known, c)
		return
	}
	if !known || !o.present {
		return
	}
	if c.Kind == message.PresenceDisconnected && len(p.graces) < p.entryLimit {
		if o.leaveAt == 0 {
			o.leaveAt = now + int64(p.grace)
			p.graces = append(p.graces, graceEnd{s, o.leaveAt})
			p.entries[s] = o
		}
		return
	}
	p.markGone(s, o)
}

func (p *presence) join(s entryKey, o presenceEntry, known bool, c *message.PresenceChange) {
	if !known && len(p.entries) >= p.entryLimit {
		p.node.metrics.drop(dropEntriesFull, 1)
		return
	}
	same := known && o.present && o.generation == c.Generation && o.user == c.User
	if known && !o.present {
		p.tombstones--
	}
	o.user, o.generation, o.present, o.leaveAt = c.User, c.Generation, true, 0
	p.put(s, o, !same)
}

// markGone notes that a session is gone. Caller holds mu.
func (p *presence) markGone(s entryKey, o presenceEntry) {
	o.present, o.leaveAt = false, 0
	p.tombstones++
	p.put(s, o, true)
}

// put writes a seat back, and queues it where it has changed. Caller holds mu.
func (p *presence) put(s entryKey, o presenceEntry, changed bool) {
	if changed && !o.dirty {
		o.dirty = true
		p.dirty = append(p.dirty, s)
		p.enqueued++
	}
	p.entries[s] = o
	p.node.metrics.presenceEntries.Set(float64(len(p.entries) - p.tombstones))
}

// endGraces vacates the seats whose grace is over, and returns how long it is
// until the next one. Graces are equally long, so their order is that of time.
func (p *presence) endGraces() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	for len(p.graces) > 0 {
		g := p.graces[0]
		if g.at > now {
			return time.Duration(g.at - now)
		}
		p.graces = p.graces[1:]
		if o := p.entries[g.key]; o.present && o.leaveAt == g.at {
			p.markGone(g.key, o)
		}
	}
	p.graces = nil
	return time.Hour
}

// Room returns who is in a room on all nodes; over limit, how many. What this
// node was told before the call is in it. An error wraps message.ErrSharedStateUnavailable when
// other nodes can't be asked for theirs.
func (n *Node) Room(ctx context.Context, room message.Room, limit int) (message.Presence, error) {
	n.presence.waitFlushed(ctx)
	alive, known := n.nodes.alive()
	if !known {
		return message.Presence{}, fmt.Errorf("who is in a room: %w", message.ErrSharedStateUnavailable)
	}
	alive[n.cfg.Node] = true
	return n.backend.roomPresence(ctx, room, alive, limit)
}

// maxFlushWait bounds how long a reader waits for what was changed before it asked.
const maxFlushWait = 250 * time.Millisecond

// waitFlushed waits until all that is queued now was told, a while.
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
