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
	// checkInterval is the time between two comparisons of the revisions.
	checkInterval = time.Second
	// retryPause is the pause after the backend did not accept changes.
	retryPause = 250 * time.Millisecond
	// resyncNotifyDelay is the delay of events after Redis lost entries. By then
	// all nodes have resynced, so watchers do not see entries removed and added
	// again.
	resyncNotifyDelay = 1500 * time.Millisecond
)

// A presenceBatch holds changes of one shard. Its tag is the name under which
// the backend keeps this node's entries of the shard; a resync begins a new
// one. The backend applies the batch only if the tag's revision is at least
// minRevision and below the batch's own. So batches apply in order, each once,
// however late one arrives, and a loss is noticed.
type presenceBatch struct {
	shard       int
	tag         string
	minRevision int64
	revision    int64
	changes     []entryChange

	// The outcome, which the backend writes.
	err          error
	lost         bool // the tag is at a revision that the batch does not follow
	changedRooms []message.Room
}

// An entryChange adds an entry if present is true, and removes it otherwise.
type entryChange struct {
	entryKey
	user       string
	generation int64
	present    bool
}

// presenceLoop sends the changed entries to the backend, many in one round trip,
// and compares the revisions each checkInterval.
func (n *Node) presenceLoop(ctx context.Context) {
	p := n.presence
	check := time.NewTicker(checkInterval)
	defer check.Stop()
	grace := time.NewTimer(time.Hour)
	defer grace.Stop()
	for {
		grace.Reset(p.removeExpired())
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

// flushOnce sends one round trip of changes. It returns false if there are none,
// or if the backend did not accept some, after a pause.
func (p *presence) flushOnce(ctx context.Context) bool {
	batches := p.nextBatches()
	if len(batches) == 0 || ctx.Err() != nil {
		return false
	}
	p.node.backend.applyPresence(ctx, batches)
	var failed, resync bool
	var toResync [shardCount]bool
	for _, b := range batches {
		failed = failed || b.err != nil
		if b.lost {
			resync, toResync[b.shard] = true, true
		}
		p.complete(b)
	}
	if resync {
		p.resyncShards(toResync)
	}
	if !failed {
		return true
	}
	select {
	case <-time.After(retryPause):
	case <-ctx.Done():
	}
	p.wakeUp() // presenceLoop first removes the entries whose grace period is over, and checks the shards
	return false
}

// nextBatches returns the next changes to send, in one batch for each shard.
func (p *presence) nextBatches() []*presenceBatch {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tombstones > p.tombstoneLimit {
		p.resyncAll()
	}
	byShard := make(map[int]*presenceBatch)
	var batches []*presenceBatch
	count := min(len(p.dirty), maxBatchChanges)
	for _, key := range p.dirty[:count] {
		shard := shardOf(key.room)
		b := byShard[shard]
		if b == nil {
			state := &p.shards[shard]
			state.sent++
			b = &presenceBatch{shard: shard, tag: p.tag(shard), minRevision: state.confirmed, revision: state.sent}
			byShard[shard] = b
			batches = append(batches, b)
		}
		entry := p.entries[key]
		entry.dirty = false
		p.entries[key] = entry
		b.changes = append(b.changes, entryChange{key, entry.user, entry.generation, entry.present})
	}
	if p.dirty = p.dirty[count:]; len(p.dirty) == 0 {
		p.dirty = nil
	}
	return batches
}

// complete evaluates the outcome of a batch. If it was not applied, its entries
// are queued again.
func (p *presence) complete(b *presenceBatch) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if b.err == nil && !b.lost {
		p.shards[b.shard].confirmed = b.revision
	}
	for _, c := range b.changes {
		entry, known := p.entries[c.entryKey]
		switch {
		case !known:
		case b.err != nil || b.lost:
			p.put(c.entryKey, entry, true)
		case !entry.present && !entry.dirty:
			delete(p.entries, c.entryKey)
			p.tombstones--
		}
	}
	p.flushed += int64(len(b.changes))
	close(p.progress)
	p.progress = make(chan struct{})
	switch {
	case b.err == nil && p.shards[b.shard].delayUntil > p.now():
		p.coalescer.add(resyncNotifyDelay, b.changedRooms...)
	case b.err == nil:
		p.coalescer.add(0, b.changedRooms...)
	case !errors.Is(b.err, errBackingOff):
		// The backend may nevertheless have applied it. Then sending it again
		// changes nothing, and no event would follow.
		for _, c := range b.changes {
			p.coalescer.add(resyncNotifyDelay, c.room)
		}
	}
}

// checkShards resyncs the shards in which the backend has lost something of this
// node, and looks for stale tags.
func (n *Node) checkShards(ctx context.Context) {
	p := n.presence
	all, _ := n.backend.tags(ctx) // on an error, the shards that are unknown are nil
	var toResync [shardCount]bool
	resync := false
	for i, tags := range all {
		state := &p.shards[i]
		if tags == nil || state.sent == 0 {
			continue
		}
		if at := tags[p.tag(i)]; at < state.confirmed || at > state.sent {
			resync, toResync[i] = true, true
		}
	}
	if resync {
		p.resyncShards(toResync)
	}
	n.findStaleTags(all)
}

// resyncShards gives shards a new tag and queues all their entries. The entries
// that the backend has under the old tag become stale, and are swept.
func (p *presence) resyncShards(toResync [shardCount]bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, resync := range toResync {
		if resync {
			p.node.metrics.resyncs.Inc()
			p.shards[i] = shardState{tagNumber: p.shards[i].tagNumber + 1, delayUntil: p.now() + int64(resyncNotifyDelay)}
		}
	}
	for key, entry := range p.entries {
		switch {
		case !toResync[shardOf(key.room)]:
		case entry.present:
			p.put(key, entry, true)
			p.coalescer.add(resyncNotifyDelay, key.room)
		case !entry.dirty:
			delete(p.entries, key)
			p.tombstones--
		}
	}
}

// resyncAll drops all tombstones, which are too many, and gives all shards a new
// tag. The caller holds mu.
func (p *presence) resyncAll() {
	p.node.metrics.drop(dropTombstonesFull, p.tombstones)
	for key, entry := range p.entries {
		if !entry.present {
			delete(p.entries, key)
		}
	}
	p.flushed += int64(len(p.dirty)) // dropped; so readers do not wait for it
	p.tombstones, p.dirty = 0, nil
	for i := range p.shards {
		p.shards[i] = shardState{tagNumber: p.shards[i].tagNumber + 1}
	}
	for key, entry := range p.entries {
		entry.dirty = false
		p.put(key, entry, true)
	}
}
