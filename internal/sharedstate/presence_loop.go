package sharedstate

import (
	"context"
	"errors"
	"time"

	"switchyard/internal/message"
)

const (
	// maxBatchChanges bounds the changes of one round trip.
	maxBatchChanges = 256
	// checkInterval is how often a node compares what the space knows of it.
	checkInterval = time.Second
	// retryPause is how long it waits after the space did not take changes.
	retryPause = 250 * time.Millisecond
	// resyncNotifyDelay is how long watchers wait where Redis has lost something: by then all
	// nodes have told it again who is there, and nobody is seen to go and come.
	resyncNotifyDelay = 1500 * time.Millisecond
)

// A presenceBatch is a batch of changes in one shard. The space applies it only if the
// tag is at a revision from low up to its own: so batches apply in order, each
// once, however late one arrives, and what was lost is noticed.
type presenceBatch struct {
	shard       int
	tag         string
	minRevision int64
	revision    int64
	changes     []entryChange

	// The answer.
	err          error
	lost         bool // the tag is at another revision
	changedRooms []message.Room
}

type entryChange struct {
	entryKey
	user       string
	generation int64
	present    bool
}

// presenceLoop tells the space what changes, all that waits in one round trip,
// and compares now and then whether it still knows.
func (n *Node) presenceLoop(ctx context.Context) {
	p := n.presence
	check := time.NewTicker(checkInterval)
	defer check.Stop()
	grace := time.NewTimer(time.Hour)
	defer grace.Stop()
	for {
		grace.Reset(p.endGraces())
		for p.flushOnce(ctx) {
		}
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		case <-grace.C:
		case <-check.C:
			n.checkShards(ctx)
		}
	}
}

// flushOnce sends a round trip of changes; false: there are none, or they were not
// taken and wait.
func (p *presence) flushOnce(ctx context.Context) bool {
	batches := p.nextBatches()
	if len(batches) == 0 || ctx.Err() != nil {
		return false
	}
	p.node.backend.applyPresence(ctx, batches)
	var failed, lost bool
	var renew [shardCount]bool
	for _, l := range batches {
		failed = failed || l.err != nil
		if l.lost {
			lost, renew[l.shard] = true, true
		}
		p.complete(l)
	}
	if lost {
		p.resyncShards(renew)
	}
	if !failed {
		return true
	}
	select {
	case <-time.After(retryPause):
	case <-ctx.Done():
	}
	p.wakeUp() // and meanwhile graces end, and the check may come
	return false
}

// nextBatches returns what is to be told next, by shard.
func (p *presence) nextBatches() []*presenceBatch {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tombstones > p.tombstoneLimit {
		p.resyncAll()
	}
	byShard := make(map[int]*presenceBatch)
	var batches []*presenceBatch
	count := min(len(p.dirty), maxBatchChanges)
	for _, s := range p.dirty[:count] {
		shard := shardOf(s.room)
		l := byShard[shard]
		if l == nil {
			st := &p.shards[shard]
			st.sent++
			l = &presenceBatch{shard: shard, tag: p.tag(shard), minRevision: st.confirmed, revision: st.sent}
			byShard[shard] = l
			batches = append(batches, l)
		}
		o := p.entries[s]
		o.dirty = false
		p.entries[s] = o
		l.changes = append(l.changes, entryChange{s, o.user, o.generation, o.present})
	}
	if p.dirty = p.dirty[count:]; len(p.dirty) == 0 {
		p.dirty = nil
	}
	return batches
}

// complete takes what became of a roll. What was not taken is queued again.
func (p *presence) complete(l *presenceBatch) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.err == nil && !l.lost {
		p.shards[l.shard].confirmed = l.revision
	}
	for _, c := range l.changes {
		o, known := p.entries[c.entryKey]
		switch {
		case !known:
		case l.err != nil || l.lost:
			p.put(c.entryKey, o, true)
		case !o.present && !o.dirty:
			delete(p.entries, c.entryKey)
			p.tombstones--
		}
	}
	p.flushed += int64(len(l.changes))
	close(p.progress)
	p.progress = make(chan struct{})
	switch {
	case l.err == nil && p.shards[l.shard].delayUntil > p.now():
		p.coalescer.add(resyncNotifyDelay, l.changedRooms...)
	case l.err == nil:
		p.coalescer.add(0, l.changedRooms...)
	case !errors.Is(l.err, errBackingOff):
		// It may have been applied, and then nothing will change later.
		for _, c := range l.changes {
			p.coalescer.add(resyncNotifyDelay, c.room)
		}
	}
}

// checkShards compares what the space knows of this node with what it told,
// and has what dead nodes left behind removed.
func (n *Node) checkShards(ctx context.Context) {
	p := n.presence
	all, _ := n.backend.tags(ctx) // a shard that is not known is nil
	var renew [shardCount]bool
	lost := false
	for i, tags := range all {
		st := &p.shards[i]
		if tags == nil || st.sent == 0 {
			continue
		}
		if at := tags[p.tag(i)]; at < st.confirmed || at > st.sent {
			lost, renew[i] = true, true
		}
	}
	if lost {
		p.resyncShards(renew)
	}
	n.findStaleTags(all)
}

// resyncShards begins shards anew under a new tag, and queues all who are there. What
// the old tag left behind is swept.
func (p *presence) resyncShards(shards [shardCount]bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, lost := range shards {
		if lost {
			p.node.metrics.resyncs.Inc()
			p.shards[i] = shardState{tagNumber: p.shards[i].tagNumber + 1, delayUntil: p.now() + int64(resyncNotifyDelay)}
		}
	}
	for s, o := range p.entries {
		switch {
		case !shards[shardOf(s.room)]:
		case o.present:
			p.put(s, o, true)
			p.coalescer.add(resyncNotifyDelay, s.room)
		case !o.dirty:
			delete(p.entries, s)
			p.tombstones--
		}
	}
}

// resyncAll renews all shards, since more was left than can be told one by
// one. Caller holds mu.
func (p *presence) resyncAll() {
	p.node.metrics.drop(dropTombstonesFull, p.tombstones)
	for s, o := range p.entries {
		if !o.present {
			delete(p.entries, s)
		}
	}
	p.flushed += int64(len(p.dirty)) // nobody waits for that
	p.tombstones, p.dirty = 0, nil
	for i := range p.shards {
		p.shards[i] = shardState{tagNumber: p.shards[i].tagNumber + 1}
	}
	for s, o := range p.entries {
		o.dirty = false
		p.put(s, o, true)
	}
}
