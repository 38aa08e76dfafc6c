package broker

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"sync"

	"switchyard/internal/message"
)

const (
	// clusterBuckets is the number of hash tags that the rooms of a cluster
	// share: enough to spread over many masters, few enough for a connection
	// each.
	clusterBuckets = 64
	// maxIdlePings is how many pings a connection without rooms stays open.
	maxIdlePings = 10
)

// A bucket is a set of rooms that one Redis server owns at a time, and the
// connection that receives their broadcasts. A cluster has clusterBuckets of
// them; otherwise there is one, whose connection is never idle.
type bucket struct {
	index      int
	redis      *Redis
	slot       int // of the cluster
	subscriber *subscriber
	owner      *server // guarded by redis.mu; nil while unknown

	// mu protects the fields below.
	mu        sync.Mutex
	running   bool
	idlePings int           // consecutive pings and failed attempts without a room
	ended     chan struct{} // closed when the latest connectLoop has ended; nil before the first
}

// bucketOf returns the index of the room's bucket: FNV-1a of the name, 32 bits,
// modulo the number of buckets. All versions that ever share a cluster must
// agree on it.
func bucketOf(room message.Room, buckets int) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(room))            // never fails
	return int(h.Sum32() % uint32(buckets)) //nolint:gosec // 1 or 64
}

// bucketTag returns the part of a channel's name that Redis hashes to a slot.
func bucketTag(index int) string { return fmt.Sprintf("b%02d", index) }

func newBucket(r *Redis, index int) *bucket {
	b := &bucket{index: index, redis: r}
	prefix := r.prefix
	if r.sharded() {
		prefix += "{" + bucketTag(index) + "}:"
		b.slot = slotOf(bucketTag(index))
	}
	b.subscriber = &subscriber{
		opts: r.config.server, prefix: prefix, sharded: r.sharded(),
		logger: r.logger, metrics: r.metrics, rooms: newSubscriptions(), ownerMayHaveChanged: make(chan struct{}, 1),
		locate:  func(ctx context.Context, last connectionResult) (string, error) { return r.locate(ctx, b, last) },
		isOwner: func(addr string) bool { return r.ownerAddr(b) == addr },
	}
	if r.sharded() {
		// The server's monitor logs and reports outages, once for all buckets.
		b.subscriber.checkIdle, b.subscriber.quiet = b.checkIdle, true
		b.subscriber.onChange = func() {}
	} else {
		b.subscriber.onChange = r.updateHealth
		b.subscriber.abandoned, b.subscriber.probe = make(chan abandonment, 1), newProbeRoom()
		_, _ = b.subscriber.rooms.add(b.subscriber.probe) // subscribed on each connection
	}
	return b
}

// subscribe makes sure that the bucket has a connection, and waits until Redis
// has confirmed the room's subscription.
func (b *bucket) subscribe(ctx context.Context, room message.Room) error {
	b.mu.Lock()
	wait, err := b.subscriber.rooms.add(room)
	b.mu.Unlock()
	if errors.Is(err, ErrClosed) {
		return err
	}
	b.ensureRunning()
	if err != nil || wait == nil {
		return err
	}
	select {
	case err := <-wait:
		return err
	case <-ctx.Done():
		b.subscriber.rooms.cancelWait(room, wait)
		return fmt.Errorf("wait for Redis to confirm a subscription: %w", ctx.Err())
	}
}

// ensureRunning starts connectLoop if it is needed and does not run.
func (b *bucket) ensureRunning() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.running || (b.subscriber.checkIdle != nil && b.subscriber.rooms.len() == 0) {
		return
	}
	before, ended := b.ended, make(chan struct{})
	b.running = b.redis.startLoop(func(ctx context.Context, receive Receive) {
		defer close(ended)
		if before != nil {
			<-before // that loop is about to end, and only one loop at a time may use the subscriptions
		}
		b.subscriber.connectLoop(ctx, receive)
	})
	if b.running {
		b.idlePings, b.ended = 0, ended
	}
}

// checkIdle is called by connectLoop at each ping and failed attempt. It returns
// true, once, when the bucket has had no rooms for a while: connectLoop then ends.
func (b *bucket) checkIdle() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.subscriber.rooms.len() > 0 {
		b.idlePings = 0
		return false
	}
	b.idlePings++
	if b.idlePings < maxIdlePings {
		return false
	}
	b.running = false
	return true
}
