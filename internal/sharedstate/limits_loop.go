package sharedstate

import (
	"context"
	"time"
)

const (
	// syncInterval is the time between two syncs with the backend.
	syncInterval = 250 * time.Millisecond
	// maxSyncUsers bounds the users of one sync; the next one takes the others.
	maxSyncUsers = 2048
)

// A usage is what a user spent on one node since the last sync.
type usage struct {
	user  string
	key   string // of the user in the backend, after the backend's own prefix
	spent [measureCount]float64
	ago   time.Duration // how long ago the first of spent was spent

	// The outcome, which the backend writes: the level over all nodes.
	level [measureCount]float64
	err   error
}

// limitLoop syncs the usage of users, and evicts idle users.
func (n *Node) limitLoop(ctx context.Context) {
	if n.publishLimits.disabled && n.readLimits.disabled {
		return
	}
	tick := time.NewTicker(syncInterval)
	defer tick.Stop()
	for round := 0; ; round++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		users := 0
		for _, l := range []*limits{n.publishLimits, n.readLimits} {
			l.sync(ctx)
			users += l.evictIdle(round % limitShards)
		}
		n.metrics.limitedUsers.Set(float64(users))
	}
}

// sync subtracts the usage of users from the backend's buckets and adopts the
// levels. If that fails, the node continues with its own estimates, and the
// usage is dropped: users do not pay for an outage afterwards.
func (l *limits) sync(ctx context.Context) {
	batch := l.dequeueDue()
	if len(batch) == 0 {
		return
	}
	l.node.backend.consume(ctx, l.rates, batch)
	now := time.Now()
	for _, u := range batch {
		shard := l.shard(u.user)
		shard.mu.Lock()
		if b := shard.buckets[u.user]; b != nil && u.err == nil {
			b.at = now
			for m := range b.level {
				b.level[m] = u.level[m] - b.spent[m] // spent during the round trip
			}
		}
		shard.mu.Unlock()
	}
}

// dequeueDue removes and returns the usage that is due.
func (l *limits) dequeueDue() (batch []*usage) {
	now := time.Now()
	for i := range l.shards {
		shard := &l.shards[i]
		shard.mu.Lock()
		count := min(len(shard.queue), maxSyncUsers/limitShards)
		for _, user := range shard.queue[:count] {
			b := shard.buckets[user] // not nil: a queued user is never evicted
			batch = append(batch, &usage{user: user, key: l.prefix + user, spent: b.spent, ago: now.Sub(b.spentSince)})
			b.spent, b.queued = [measureCount]float64{}, false
		}
		if shard.queue = shard.queue[count:]; len(shard.queue) == 0 {
			shard.queue = nil
		}
		shard.mu.Unlock()
	}
	return batch
}

// evictIdle removes the idle users of one shard, and returns the number of all that are
// left.
func (l *limits) evictIdle(index int) int {
	shard := &l.shards[index]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	now := time.Now()
	for user, b := range shard.buckets {
		if b.refill(&l.rates, now); b.isIdle(&l.rates) {
			delete(shard.buckets, user)
		}
	}
	l.shardSizes[index] = len(shard.buckets)
	total := 0
	for _, size := range l.shardSizes {
		total += size
	}
	return total
}
