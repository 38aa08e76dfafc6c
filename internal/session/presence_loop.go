package session

import (
	"context"
	"errors"
	"time"

	"switchyard/internal/message"
)

const (
	// rollChanges bounds the changes of one round trip.
	rollChanges = 256
	// checkEvery is how often a node compares what the space knows of it.
	checkEvery = time.Second
	// tellPause is how long it waits after the space did not take changes.
	tellPause = 250 * time.Millisecond
	// lateBy is how long watchers wait where Redis has lost something: by then all
	// nodes have told it again who is there, and nobody is seen to go and come.
	lateBy = 1500 * time.Millisecond
)

// A roll is a batch of changes in one shard. The space applies it only if the
// tag is at a revision from low up to its own: so batches apply in order, each
// once, however late one arrives, and what was lost is noticed.
type roll struct {
	shard    int
	tag      string
	low      int64
	revision int64
	changes  []rollChange

	// The answer.
	err     error
	lost    bool // the tag is at another revision
	changed []message.Room
}

type rollChange struct {
	seat
	user       string
	generation int64
	here       bool
}

// presenceLoop tells the space what changes, all that waits in one round trip,
// and compares now and then whether it still knows.
func (n *Node) presenceLoop(ctx context.Context) {
	p := n.presence
	check := time.NewTicker(checkEvery)
	defer check.Stop()
	grace := time.NewTimer(time.Hour)
	defer grace.Stop()
	for {
		grace.Reset(p.endGraces())
		for p.tell(ctx) {
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

// tell sends a round trip of changes; false: there are none, or they were not
// taken and wait.
func (p *presence) tell(ctx context.Context) bool {
	rolls := p.take()
	if len(rolls) == 0 || ctx.Err() != nil {
		return false
	}
	p.node.space.present(ctx, rolls)
	var failed, lost bool
	var renew [shardCount]bool
	for _, l := range rolls {
		failed = failed || l.err != nil
		if l.lost {
			lost, renew[l.shard] = true, true
		}
		p.settle(l)
	}
	if lost {
		p.renew(renew)
	}
	if !failed {
		return true
	}
	select {
	case <-time.After(tellPause):
	case <-ctx.Done():
	}
	p.kick() // and meanwhile graces end, and the check may come
	return false
}

// take returns what is to be told next, by shard.
func (p *presence) take() []*roll {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.vacant > p.vacantLimit {
		p.beginAnew()
	}
	byShard := make(map[int]*roll)
	var rolls []*roll
	count := min(len(p.dirty), rollChanges)
	for _, s := range p.dirty[:count] {
		shard := shardOf(s.room)
		l := byShard[shard]
		if l == nil {
			st := &p.shards[shard]
			st.high++
			l = &roll{shard: shard, tag: p.tag(shard), low: st.low, revision: st.high}
			byShard[shard] = l
			rolls = append(rolls, l)
		}
		o := p.seats[s]
		o.dirty = false
		p.seats[s] = o
		l.changes = append(l.changes, rollChange{s, o.user, o.generation, o.here})
	}
	if p.dirty = p.dirty[count:]; len(p.dirty) == 0 {
		p.dirty = nil
	}
	return rolls
}

// settle takes what became of a roll. What was not taken is queued again.
func (p *presence) settle(l *roll) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.err == nil && !l.lost {
		p.shards[l.shard].low = l.revision
	}
	for _, c := range l.changes {
		o, known := p.seats[c.seat]
		switch {
		case !known:
		case l.err != nil || l.lost:
			p.put(c.seat, o, true)
		case !o.here && !o.dirty:
			delete(p.seats, c.seat)
			p.vacant--
		}
	}
	p.told += int64(len(l.changes))
	close(p.settled)
	p.settled = make(chan struct{})
	switch {
	case l.err == nil && p.shards[l.shard].late > p.now():
		p.pokes.add(lateBy, l.changed...)
	case l.err == nil:
		p.pokes.add(0, l.changed...)
	case !errors.Is(l.err, errResting):
		// It may have been applied, and then nothing will change later.
		for _, c := range l.changes {
			p.pokes.add(lateBy, c.room)
		}
	}
}

// checkShards compares what the space knows of this node with what it told,
// and has what dead nodes left behind removed.
func (n *Node) checkShards(ctx context.Context) {
	p := n.presence
	all, _ := n.space.tags(ctx) // a shard that is not known is nil
	var renew [shardCount]bool
	lost := false
	for i, tags := range all {
		st := &p.shards[i]
		if tags == nil || st.high == 0 {
			continue
		}
		if at := tags[p.tag(i)]; at < st.low || at > st.high {
			lost, renew[i] = true, true
		}
	}
	if lost {
		p.renew(renew)
	}
	n.findDead(all)
}

// renew begins shards anew under a new tag, and queues all who are there. What
// the old tag left behind is swept.
func (p *presence) renew(shards [shardCount]bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, lost := range shards {
		if lost {
			p.node.metrics.resyncs.Inc()
			p.shards[i] = shardState{number: p.shards[i].number + 1, late: p.now() + int64(lateBy)}
		}
	}
	for s, o := range p.seats {
		switch {
		case !shards[shardOf(s.room)]:
		case o.here:
			p.put(s, o, true)
			p.pokes.add(lateBy, s.room)
		case !o.dirty:
			delete(p.seats, s)
			p.vacant--
		}
	}
}

// beginAnew renews all shards, since more was left than can be told one by
// one. Caller holds mu.
func (p *presence) beginAnew() {
	p.node.metrics.drop(dropVacant, p.vacant)
	for s, o := range p.seats {
		if !o.here {
			delete(p.seats, s)
		}
	}
	p.told += int64(len(p.dirty)) // nobody waits for that
	p.vacant, p.dirty = 0, nil
	for i := range p.shards {
		p.shards[i] = shardState{number: p.shards[i].number + 1}
	}
	for s, o := range p.seats {
		o.dirty = false
		p.put(s, o, true)
	}
}
