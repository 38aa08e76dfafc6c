package session

import (
	"context"
	"time"
)

const (
	// shareEvery is how often what users spent is shared with other nodes.
	shareEvery = 250 * time.Millisecond
	// shareMost bounds the users of one time; the others' turn is the next one.
	shareMost = 2048
)

// A spending is what a user spent on one node since that was shared last.
type spending struct {
	user  string
	spent [measures]float64
	ago   time.Duration // since it began to

	// The answer: what is left over all nodes.
	level [measures]float64
	err   error
}

// limitLoop shares what users spent, and forgets the idle ones.
func (n *Node) limitLoop(ctx context.Context) {
	if n.limits.off {
		return
	}
	tick := time.NewTicker(shareEvery)
	defer tick.Stop()
	for turn := 0; ; turn++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		n.limits.share(ctx)
		n.limits.forget(turn % limitShards)
	}
}

// share tells what was spent and takes over what is left. When that fails the
// node goes on by itself, and what it could not tell is forgiven: nobody pays
// for an outage after it.
func (l *limits) share(ctx context.Context) {
	batch := l.due()
	if len(batch) == 0 {
		return
	}
	l.node.space.meter(ctx, l.rates, batch)
	now := time.Now()
	for _, b := range batch {
		shard := l.shard(b.user)
		shard.mu.Lock()
		if s := shard.spenders[b.user]; s != nil && b.err == nil {
			s.at = now
			for m := range s.level {
				s.level[m] = b.level[m] - s.spent[m] // since it was asked
			}
		}
		shard.mu.Unlock()
	}
}

// due takes what is to be shared now off the books.
func (l *limits) due() (batch []*spending) {
	now := time.Now()
	for i := range l.shards {
		shard := &l.shards[i]
		shard.mu.Lock()
		count := min(len(shard.queue), shareMost/limitShards)
		for _, user := range shard.queue[:count] {
			s := shard.spenders[user] // the queued are not forgotten
			batch = append(batch, &spending{user: user, spent: s.spent, ago: now.Sub(s.since)})
			s.spent, s.queued = [measures]float64{}, false
		}
		if shard.queue = shard.queue[count:]; len(shard.queue) == 0 {
			shard.queue = nil
		}
		shard.mu.Unlock()
	}
	return batch
}

// forget removes the idle users of one shard.
func (l *limits) forget(index int) {
	shard := &l.shards[index]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	now := time.Now()
	for user, s := range shard.spenders {
		if s.refill(&l.rates, now); s.isIdle(&l.rates) {
			delete(shard.spenders, user)
		}
	}
	l.sizes[index] = len(shard.spenders)
	total := 0
	for _, size := range l.sizes {
		total += size
	}
	l.node.metrics.spenders.Set(float64(total))
}
