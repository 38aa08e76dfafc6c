package sharedstate

import (
	"context"
	"time"
)

const (
	// syncInterval is how often what users spent is shared with other nodes.
	syncInterval = 250 * time.Millisecond
	// maxSyncUsers bounds the users of one time; the others' turn is the next one.
	maxSyncUsers = 2048
)

// A usage is what a user spent on one node since that was shared last.
type usage struct {
	user  string
	spent [measureCount]float64
	ago   time.Duration // since it began to

	// The answer: what is left over all nodes.
	level [measureCount]float64
	err   error
}

// limitLoop shares what users spent, and forgets the idle ones.
func (n *Node) limitLoop(ctx context.Context) {
	if n.limits.disabled {
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
		n.limits.sync(ctx)
		n.limits.evictIdle(round % limitShards)
	}
}

// sync tells what was spent and takes over what is left. When that fails the
// node goes on by itself, and what it could not tell is forgiven: nobody pays
// for an outage after it.
func (l *limits) sync(ctx context.Context) {
	batch := l.dequeueDue()
	if len(batch) == 0 {
		return
	}
	l.node.backend.consume(ctx, l.rates, batch)
	now := time.Now()
	for _, b := range batch {
		shard := l.shard(b.user)
		shard.mu.Lock()
		if s := shard.buckets[b.user]; s != nil && b.err == nil {
			s.at = now
			for m := range s.level {
				s.level[m] = b.level[m] - s.spent[m] // since it was asked
			}
		}
		shard.mu.Unlock()
	}
}

// dequeueDue takes what is to be shared now off the books.
func (l *limits) dequeueDue() (batch []*usage) {
	now := time.Now()
	for i := range l.shards {
		shard := &l.shards[i]
		shard.mu.Lock()
		count := min(len(shard.queue), maxSyncUsers/limitShards)
		for _, user := range shard.queue[:count] {
			s := shard.buckets[user] // the queued are not forgotten
			batch = append(batch, &usage{user: user, spent: s.spent, ago: now.Sub(s.spentSince)})
			s.spent, s.queued = [measureCount]float64{}, false
		}
		if shard.queue = shard.queue[count:]; len(shard.queue) == 0 {
			shard.queue = nil
		}
		shard.mu.Unlock()
	}
	return batch
}

// evictIdle removes the idle users of one shard.
func (l *limits) evictIdle(index int) {
	shard := &l.shards[index]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	now := time.Now()
	for user, s := range shard.buckets {
		if s.refill(&l.rates, now); s.isIdle(&l.rates) {
			delete(shard.buckets, user)
		}
	}
	l.shardSizes[index] = len(shard.buckets)
	total := 0
	for _, size := range l.shardSizes {
		total += size
	}
	l.node.metrics.limitedUsers.Set(float64(total))
}
