package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"switchyard/internal/message"
)

const (
	// clusterBuckets is how many shard channels' hash tags a cluster's rooms
	// share: enough to spread over many masters, few enough for a connection each.
	clusterBuckets = 64
	// emptyPings is how many pings a connection without rooms is kept.
	emptyPings = 10
)

// A bucket is the rooms that live on the same Redis server, wherever that is
// now, and the connection that receives them. There is one bucket, always
// connected, but in a cluster.
type bucket struct {
	index int
	redis *Redis
	slot  int // of the cluster
	link  *subscriber
	owner *server // guarded by redis.mu; nil while unknown

	mu      sync.Mutex // Protects following.
	running bool
	empty   int           // attempts and pings in a row without a room
	ended   chan struct{} // closed when the last link has ended; nil before the first
}

// bucketOf is the room's bucket. All versions that ever share a cluster must
// agree on it: FNV-1a of the name, 32 bits, modulo the number of buckets.
func bucketOf(room message.Room, buckets int) int {
	h := uint32(2166136261)
	for i := range len(room) {
		h = (h ^ uint32(room[i])) * 16777619
	}
	return int(h % uint32(buckets)) //nolint:gosec // 1 or 64
}

// bucketTag is the part of a channel's name that Redis hashes to a slot.
func bucketTag(index int) string { return fmt.Sprintf("b%02d", index) }

func newBucket(r *Redis, index int) *bucket {
	b := &bucket{index: index, redis: r}
	prefix := r.prefix
	if r.sharded() {
		prefix += "{" + bucketTag(index) + "}:"
		b.slot = slotOf(bucketTag(index))
	}
	b.link = &subscriber{
		opts: r.place.server, prefix: prefix, sharded: r.sharded(),
		logger: r.logger, metrics: r.metrics, rooms: newSubscriptions(), moved: make(chan struct{}, 1),
		locate: func(ctx context.Context, last attempt) (string, error) { return r.locate(ctx, b, last) },
		isAt:   func(addr string) bool { return r.ownerOf(b) == addr },
	}
	if r.sharded() {
		// A server's watch tells of outages and comebacks, once and not per bucket.
		b.link.idle, b.link.quiet = b.idle, true
		b.link.onChange = func() {}
	} else {
		b.link.onChange = r.health
	}
	return b
}

// subscribe makes sure that there is a connection, and waits for the room.
func (b *bucket) subscribe(ctx context.Context, room message.Room) error {
	b.mu.Lock()
	wait, err := b.link.rooms.want(room)
	b.mu.Unlock()
	if errors.Is(err, ErrClosed) {
		return err
	}
	b.wake()
	if err != nil || wait == nil {
		return err
	}
	select {
	case err := <-wait:
		return err
	case <-ctx.Done():
		b.link.rooms.giveUp(room, wait)
		return fmt.Errorf("wait for Redis to confirm a subscription: %w", ctx.Err())
	}
}

// wake starts the link if it is needed and does not run.
func (b *bucket) wake() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.running || (b.link.idle != nil && b.link.rooms.len() == 0) {
		return
	}
	before, ended := b.ended, make(chan struct{})
	b.running = b.redis.goLoop(func(ctx context.Context, receive Receive) {
		defer close(ended)
		if before != nil {
			<-before // it is about to end: a link's rooms belong to one at a time
		}
		b.link.connectLoop(ctx, receive)
	})
	if b.running {
		b.empty, b.ended = 0, ended
	}
}

// idle is asked by the link at each ping and failed attempt. True, given once,
// ends the link: its bucket has been empty for a while.
func (b *bucket) idle() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.link.rooms.len() > 0 {
		b.empty = 0
		return false
	}
	b.empty++
	if b.empty < emptyPings {
		return false
	}
	b.running = false
	return true
}
